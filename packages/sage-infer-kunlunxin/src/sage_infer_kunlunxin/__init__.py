"""Kunlunxin XPU: a detector that reads ``xpu-smi``, and vLLM on the platform plug-in ``vllm-kunlun``."""

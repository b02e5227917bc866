"""Huawei Ascend: a detector that reads ``npu-smi``, and vLLM on the platform plug-in ``vllm-ascend``."""

"""Cambricon MLU: a detector that reads ``cnmon``, and vLLM on the platform plug-in ``vllm-mlu``."""

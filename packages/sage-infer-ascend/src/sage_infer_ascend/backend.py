"""vLLM on Ascend: the backends of sage-infer-vllm on this vendor's platform. Importing this does not import vLLM."""

from __future__ import annotations

from sage_infer_vllm.vendor import VLLMBackend, VLLMEmbeddingBackend

from sage_infer_ascend.platform import ASCEND

__all__ = ["AscendBackend", "AscendEmbeddingBackend"]


class AscendBackend(VLLMBackend):
    """``InferenceBackend`` on vLLM; the options are those of the backend ``vllm``."""

    platform = ASCEND


class AscendEmbeddingBackend(VLLMEmbeddingBackend):
    """``EmbeddingBackend`` on vLLM's pooling runner; the options are those of ``vllm-embedding``."""

    platform = ASCEND

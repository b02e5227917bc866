"""vLLM on Hygon: the backends of sage-infer-vllm on this vendor's platform. Importing this does not import vLLM."""

from __future__ import annotations

from sage_infer_vllm.vendor import VLLMBackend, VLLMEmbeddingBackend

from sage_infer_hygon.platform import HYGON

__all__ = ["HygonBackend", "HygonEmbeddingBackend"]


class HygonBackend(VLLMBackend):
    """``InferenceBackend`` on vLLM; the options are those of the backend ``vllm``."""

    platform = HYGON


class HygonEmbeddingBackend(VLLMEmbeddingBackend):
    """``EmbeddingBackend`` on vLLM's pooling runner; the options are those of ``vllm-embedding``."""

    platform = HYGON

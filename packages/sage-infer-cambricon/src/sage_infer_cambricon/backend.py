"""vLLM on Cambricon: the backends of sage-infer-vllm on this vendor's platform. Importing this does not import vLLM."""

from __future__ import annotations

from sage_infer_vllm.vendor import VLLMBackend, VLLMEmbeddingBackend

from sage_infer_cambricon.platform import CAMBRICON

__all__ = ["CambriconBackend", "CambriconEmbeddingBackend"]


class CambriconBackend(VLLMBackend):
    """``InferenceBackend`` on vLLM; the options are those of the backend ``vllm``."""

    platform = CAMBRICON


class CambriconEmbeddingBackend(VLLMEmbeddingBackend):
    """``EmbeddingBackend`` on vLLM's pooling runner; the options are those of ``vllm-embedding``."""

    platform = CAMBRICON

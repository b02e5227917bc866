"""vLLM on Kunlunxin: the backends of sage-infer-vllm on this vendor's platform. Importing this does not import vLLM."""

from __future__ import annotations

from sage_infer_vllm.vendor import VLLMBackend, VLLMEmbeddingBackend

from sage_infer_kunlunxin.platform import KUNLUNXIN

__all__ = ["KunlunxinBackend", "KunlunxinEmbeddingBackend"]


class KunlunxinBackend(VLLMBackend):
    """``InferenceBackend`` on vLLM; the options are those of the backend ``vllm``."""

    platform = KUNLUNXIN


class KunlunxinEmbeddingBackend(VLLMEmbeddingBackend):
    """``EmbeddingBackend`` on vLLM's pooling runner; the options are those of ``vllm-embedding``."""

    platform = KUNLUNXIN

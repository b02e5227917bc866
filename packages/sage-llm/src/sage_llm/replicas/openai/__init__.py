"""OpenAI-compatible servers as backends."""

from __future__ import annotations

from typing import Any

from sage_infer.names import GENERATING
from sage_infer.schemas import ModelDescriptor

__all__ = ["is_remote", "open_server"]


def is_remote(model: ModelDescriptor) -> bool:
    """Whether the model is on a server: its path is the server's address."""
    return model.model_path.startswith(("http://", "https://"))


def open_server(model: ModelDescriptor, **options: Any) -> Any:
    """Return the backend of a model on a server; ``model.model_path`` is the server's address.

    See ``OpenAIReplica`` for the options.
    """
    if model.model_type in GENERATING:
        from sage_llm.replicas.openai.llm import OpenAIReplica

        return OpenAIReplica(model, **options)
    from sage_llm.replicas.openai.encoder import OpenAIEmbeddingReplica

    return OpenAIEmbeddingReplica(model, **options)

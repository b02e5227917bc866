"""The contract of an instance that serves several models, and the only one that a gateway knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from attrs import frozen

from sage_infer.contracts.embedding import Truncation
from sage_infer.contracts.inference import ChatMessage, EngineStats, Health, PromptLike
from sage_infer.contracts.stream import TokenStream
from sage_infer.schemas import (
    EmbeddingResult,
    HybridCapabilityDescriptor,
    ModelDescriptor,
    RerankResult,
    SamplingParams,
)

__all__ = ["HybridInferenceBackend", "ModelStatus"]

ModelState = Literal["registered", "loading", "ready", "draining", "sleeping", "failed"]


@frozen(kw_only=True)
class ModelStatus:
    """One model's state; ``since`` is in seconds since the epoch, ``reason`` says why it failed."""

    model_id: str
    state: ModelState
    since: float
    reason: str = ""


@runtime_checkable
class HybridInferenceBackend(Protocol):
    """Several models behind one object. Unknown model names raise ``ModelNotFound`` with the nearest ones."""

    async def start(self) -> None: ...
    async def close(self) -> None: ...
    async def health(self) -> Health: ...
    def stats(self) -> EngineStats: ...

    async def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        params: SamplingParams,
        *,
        model: str | None = None,
        request_id: str | None = None,
        priority: int = 0,
        deadline: float | None = None,
    ) -> list[TokenStream]:
        """``InferenceBackend.generate`` on the named model, or on the default one."""
        ...

    async def chat(
        self,
        messages: Sequence[ChatMessage],
        params: SamplingParams,
        *,
        model: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        request_id: str | None = None,
        priority: int = 0,
        deadline: float | None = None,
    ) -> TokenStream:
        """Render the chat by the model's template and generate."""
        ...

    async def embed(
        self,
        texts: Sequence[str | Sequence[int]],
        *,
        model: str | None = None,
        truncate: Truncation = "error",
        deadline: float | None = None,
    ) -> EmbeddingResult:
        """``EmbeddingBackend.embed_batch`` of the named model, or of the default one.

        ``deadline`` is in seconds from now; a call that is not done by then ends with ``RequestCancelled``.
        """
        ...

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        model: str | None = None,
        top_n: int | None = None,
        deadline: float | None = None,
    ) -> RerankResult:
        """``EmbeddingBackend.rerank`` of the named model, or of the default one; ``deadline`` as in ``embed``."""
        ...

    def list_models(self) -> list[ModelDescriptor]:
        """Every registered model, loaded or not."""
        ...

    async def load_model(self, model: ModelDescriptor) -> None:
        """Load a model beside the others.

        Raises:
            OutOfMemory: it does not fit; the message says by how much.
        """
        ...

    async def unload_model(self, model_id: str) -> None:
        """Let the model's open requests finish, then free its memory."""
        ...

    def get_model_status(self, model_id: str) -> ModelStatus: ...
    def get_hybrid_capability(self) -> HybridCapabilityDescriptor: ...
    async def abort(self, request_id: str) -> None: ...

"""Contract of an instance that serves several models; the only contract that a gateway uses."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from attrs import frozen

from sage_infer.contracts.embedding import TextLike, Truncation
from sage_infer.contracts.inference import ChatMessage, PromptLike
from sage_infer.contracts.lifecycle import EngineStats, Health
from sage_infer.contracts.stream import TokenStream
from sage_infer.schemas import (
    EmbeddingResult,
    HybridCapabilityDescriptor,
    ModelDescriptor,
    RequestOptions,
    RerankResult,
    SamplingParams,
)

__all__ = ["HybridInferenceBackend", "ModelStatus"]

ModelState = Literal["registered", "loading", "ready", "draining", "sleeping", "failed"]


@frozen(kw_only=True)
class ModelStatus:
    """State of one model.

    Attributes:
        model_id: id of the model.
        state: registered, loading, ready, draining, sleeping or failed.
        since: when the state began, in seconds since the epoch.
        reason: why it failed.
        stage: current stage of loading.
        share: completed share of loading, 0 to 1; None if unknown.
        instances: ids of the instances that serve the model; empty for a model in this process.
    """

    model_id: str
    state: ModelState
    since: float
    reason: str = ""
    stage: str = ""
    share: float | None = None
    instances: tuple[str, ...] = ()


@runtime_checkable
class HybridInferenceBackend(Protocol):
    """Several models behind one object. An unknown model name raises ``ModelNotFound`` with similar names."""

    async def start(self) -> None: ...
    async def close(self) -> None: ...
    async def health(self) -> Health: ...
    def stats(self) -> EngineStats: ...

    async def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        params: SamplingParams,
        model: str | None = None,
        *,
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> list[TokenStream]:
        """Call ``InferenceBackend.generate`` of the named model, or of the default model."""
        ...

    async def chat(
        self,
        messages: Sequence[ChatMessage],
        params: SamplingParams,
        model: str | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> TokenStream:
        """Render the messages with the model's chat template and generate an answer."""
        ...

    async def embed(
        self,
        texts: TextLike | Sequence[TextLike],
        model: str | None = None,
        *,
        truncate: Truncation = "error",
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> EmbeddingResult:
        """Call ``EmbeddingBackend.embed`` of the named model, or of the default embedding model."""
        ...

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        model: str | None = None,
        *,
        top_n: int | None = None,
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> RerankResult:
        """Call ``EmbeddingBackend.rerank`` of the named model, or of the default reranker."""
        ...

    def list_models(self) -> list[ModelDescriptor]:
        """Return every registered model, loaded or not."""
        ...

    def load_model(self, model: ModelDescriptor) -> Awaitable[None]:
        """Load a model in addition to the others.

        Before ``start``, the call registers the model and ``start`` loads it; the result does not have to be
        awaited. After ``start``, await the result to wait until the model is loaded.

        Raises:
            InvalidRequest: a model with this id is already registered.
            OutOfMemory: the model does not fit; the message states the missing bytes.
        """
        ...

    async def unload_model(self, model_id: str) -> None:
        """Wait until the model's open requests have finished, then free its memory."""
        ...

    def get_model_status(self, model_id: str) -> ModelStatus: ...
    def get_hybrid_capability(self) -> HybridCapabilityDescriptor: ...
    async def abort(self, request_id: str) -> None: ...

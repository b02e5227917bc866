"""Several models on shared devices behind one object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from sage_infer.checks import Choice
from sage_infer.contracts import (
    ChatMessage,
    EngineStats,
    Health,
    ModelStatus,
    PromptLike,
    TokenStream,
    Truncation,
    check_texts,
)
from sage_infer.errors import InvalidRequest, UnsupportedFeature
from sage_infer.names import GENERATING, ModelType
from sage_infer.schemas import (
    EmbeddingResult,
    HardwareProfile,
    HybridCapabilityDescriptor,
    ModelDescriptor,
    Prompt,
    RerankResult,
    SamplingParams,
)
from sage_infer.schemas.capability import SharingMode
from sage_infer_planning.estimate import GIB
from sage_infer_planning.memory_planner import MemoryPlan

from sage_infer_hybrid.config import ModelConfig, as_config
from sage_infer_hybrid.host import ModelHost, Progress
from sage_infer_hybrid.loaded import LoadedModel
from sage_infer_hybrid.sharing import ComputeSharing, in_time
from sage_infer_hybrid.slices import merge_embeddings, merge_hits

__all__ = ["HybridBackend"]

ModelLike = str | ModelDescriptor | Mapping[str, Any] | ModelConfig


class HybridBackend:
    """``HybridInferenceBackend`` over any installed backends.

    ``HybridBackend(llm_config=…, embedding_config=…)`` loads its models in ``start``; ``HybridBackend()`` has none
    until ``load_model``. A configuration is a model's name, a descriptor, or a mapping with the keys of
    ``ModelConfig``.

    Args:
        llm_config, embedding_config, reranker_config: a model of each kind.
        models: any number of further ones.
        model: one model, as ``open_backend`` gives it.
        sharing_mode: ``time_slice`` (batch work in turns with streams), ``mps`` (all at once) or ``exclusive`` (a
            device each).
        profile: the machine, where it is not to be asked.
        on_progress: called as ``on_progress(model_id, stage, share)`` while a model is loaded.
    """

    def __init__(
        self,
        *,
        llm_config: ModelLike | None = None,
        embedding_config: ModelLike | None = None,
        reranker_config: ModelLike | None = None,
        models: Sequence[ModelLike] = (),
        model: ModelDescriptor | None = None,
        sharing_mode: SharingMode = "time_slice",
        profile: HardwareProfile | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        for problem in Choice(get_args(SharingMode)).problems(sharing_mode, "sharing_mode"):
            raise InvalidRequest(f"{problem.path} {problem.message}")
        self._host = ModelHost(sharing_mode, profile)
        self._host.on_progress = on_progress
        self._sharing = ComputeSharing(sharing_mode, self._host.loaded)
        self._started = False
        given: list[tuple[str, ModelLike | None, ModelType | None]] = [
            ("llm_config", llm_config, "llm"),
            ("embedding_config", embedding_config, "embedding"),
            ("reranker_config", reranker_config, "reranker"),
            ("model", model, None),
            *((f"models[{i}]", value, None) for i, value in enumerate(models)),
        ]
        for where, value, kind in given:
            if value is not None:
                self._host.register(as_config(value, where), kind)

    # --- life

    async def start(self) -> None:
        """Load every model that was named.

        Raises:
            OutOfMemory: they do not fit together; the message says by how much.
        """
        self._host.check_open()
        if not self._started:
            self._started = True
            await self._host.load_registered()

    async def close(self) -> None:
        await self._host.close()

    async def health(self) -> Health:
        if self._host.closed:
            return Health(status="dead", reason="the backend was closed")
        if not self._started:
            return Health(status="starting", reason="start() has not been called")
        if self._host.coming:
            return Health(status="starting", reason=f"being loaded: {', '.join(sorted(self._host.coming))}")
        reasons = []
        for model_id, model in list(self._host.loaded.items()):
            found: Health = await model.backend.health()
            if found.status == "dead":
                self._host.lost(model, found.reason)
            elif found.status != "ok":
                reasons.append(f"{model_id}: {found.reason}")
        failed = [e for e in self._host.registry.entries() if e.state == "failed"]
        reasons += [f"{e.descriptor.model_id}: {e.reason}" for e in failed]
        return Health(status="degraded", reason="; ".join(reasons)) if reasons else Health(status="ok")

    def stats(self) -> EngineStats:
        """Gauges of all models together; counters include those of models that are no longer loaded."""
        return self._host.stats()

    # --- work

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
        loaded = await self._host.ready(model, GENERATING)
        with self._host.call(loaded) as backend:
            streams: list[TokenStream] = await backend.generate(
                prompts, params, request_id=request_id, priority=priority, deadline=deadline
            )
            return streams

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
        loaded = await self._host.ready(model, GENERATING)
        with self._host.call(loaded) as backend:
            prompt = backend.render_chat(messages, tools=tools)
            streams: list[TokenStream] = await backend.generate(
                [prompt], params, request_id=request_id, priority=priority, deadline=deadline
            )
            return streams[0]

    async def render_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        model: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        """A chat as a prompt, by the model's own template."""
        loaded = await self._host.ready(model, GENERATING)
        prompt: Prompt = loaded.backend.render_chat(
            messages, tools=tools, add_generation_prompt=add_generation_prompt
        )
        return prompt

    async def tokenize(self, prompt: PromptLike, *, model: str | None = None) -> list[int]:
        """The token ids that a model computes for a prompt.

        Raises:
            UnsupportedFeature: the model's backend does not show its tokens.
        """
        loaded = await self._host.ready(model, GENERATING)
        tokens: list[int] = _tokenizer(loaded, "tokenize")(prompt)
        return tokens

    async def detokenize(self, token_ids: Sequence[int], *, model: str | None = None) -> str:
        """The text of a model's token ids; raises as ``tokenize``."""
        loaded = await self._host.ready(model, GENERATING)
        text: str = _tokenizer(loaded, "detokenize")(token_ids)
        return text

    async def embed(
        self,
        texts: Sequence[str | Sequence[int]],
        *,
        model: str | None = None,
        truncate: Truncation = "error",
        deadline: float | None = None,
    ) -> EmbeddingResult:
        async with in_time(deadline):
            loaded = await self._host.ready(model, ("embedding",))
            check_texts(texts, truncate)
            with self._host.call(loaded) as backend:

                async def whole(some: Sequence[str | Sequence[int]]) -> EmbeddingResult:
                    result: EmbeddingResult = await backend.embed_batch(some, truncate=truncate)
                    return result

                if not texts:
                    return await whole(texts)
                try:
                    return merge_embeddings(await self._sharing.run(loaded, texts, whole, deadline=deadline))
                except InvalidRequest:
                    return await whole(texts)  # which counts the texts as the caller does

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        model: str | None = None,
        top_n: int | None = None,
        deadline: float | None = None,
    ) -> RerankResult:
        async with in_time(deadline):
            loaded = await self._host.ready(model, ("reranker",))
            with self._host.call(loaded) as backend:

                async def whole(some: Sequence[str]) -> RerankResult:
                    result: RerankResult = await backend.rerank(query, some)
                    return result

                if isinstance(documents, str) or not documents or top_n is not None:
                    checked = await backend.rerank(
                        query, documents[:0], top_n=top_n
                    )  # refuses what it does not take
                    if not documents:
                        return checked  # type: ignore[no-any-return]  # of a backend, which is Any
                try:
                    parts = await self._sharing.run(
                        loaded, documents, whole, each=len(query), deadline=deadline
                    )
                except InvalidRequest:
                    parts = [await whole(documents)]  # which counts the documents as the caller does
                return merge_hits(parts, [len(part.hits) for part in parts], top_n)

    async def abort(self, request_id: str) -> None:
        for model in list(self._host.loaded.values()):
            if model.generates:
                await model.backend.abort(request_id)

    # --- models

    def list_models(self) -> list[ModelDescriptor]:
        return [entry.descriptor for entry in self._host.registry.entries()]

    def get_model_status(self, model_id: str) -> ModelStatus:
        return self._host.named(model_id).status

    def get_hybrid_capability(self) -> HybridCapabilityDescriptor:
        self._host.check_open()
        plan = self.memory_plan()
        ready = [model for model in self._host.loaded.values() if model.entry.state == "ready"]
        used = {device for model in ready for device in model.devices}
        devices = [device for device in plan.devices if device.name in used or not used]
        kinds = sorted({device.name.partition(":")[0] for device in devices if device.name in used} - {"cpu"})
        return HybridCapabilityDescriptor(
            backend_name="hybrid",
            hardware_backend=kinds[0] if kinds else "cpu",
            loaded_models=tuple(model.descriptor for model in ready),
            gpu_sharing_mode=plan.mode,
            memory_isolation=plan.mode == "exclusive",
            total_memory_gb=sum(device.total for device in devices) / GIB,
            available_memory_gb=sum(max(plan.free(device), 0) for device in devices) / GIB,
        )

    def memory_plan(self) -> MemoryPlan:
        """Who has what of which device, of the models that are loaded."""
        return self._host.memory.plan()

    def measured_bytes(self) -> dict[str, int | None]:
        """What loading each model added to this process and its children in main memory."""
        return {model_id: model.measured for model_id, model in self._host.loaded.items()}

    def measured_devices(self) -> dict[str, int | None]:
        """What the models really take of each device at this moment; None where that cannot be measured."""
        return self._host.memory.measured()

    async def load_model(self, model: ModelLike) -> None:
        """Load a model beside the others; what is loaded already stays as it is.

        Raises:
            OutOfMemory: it does not fit; the message says by how much, and what would.
            BackendUnavailable: no backend for it is ready.
        """
        self._host.check_open()
        self._started = True
        await self._host.load(self._host.register(as_config(model, "model"), None), again=True)

    async def unload_model(self, model_id: str) -> None:
        await self._host.unload(self._host.named(model_id), "registered")

    async def sleep_model(self, model_id: str) -> None:
        """As ``unload_model``, but the next request for the model loads it again."""
        await self._host.unload(self._host.named(model_id), "sleeping")


def _tokenizer(loaded: LoadedModel, method: str) -> Callable[[Any], Any]:
    found: Callable[[Any], Any] | None = getattr(loaded.backend, method, None)
    if found is None:
        raise UnsupportedFeature(
            f"the backend of model {loaded.descriptor.model_id!r} does not show its tokens; use another backend"
        )
    return found

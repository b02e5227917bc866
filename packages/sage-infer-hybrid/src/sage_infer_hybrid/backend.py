"""Several models on shared devices behind one object."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Generator, Iterator, Mapping, Sequence
from typing import Any, get_args

from sage_infer.contracts import (
    ChatMessage,
    EngineStats,
    Health,
    Metric,
    ModelStatus,
    PromptLike,
    TextLike,
    TokenStream,
    Truncation,
)
from sage_infer.errors import BackendUnavailable, InvalidRequest, UnsupportedFeature
from sage_infer.names import GENERATING, ModelType
from sage_infer.schemas import (
    CapabilityDescriptor,
    DecodeState,
    EmbeddingResult,
    HardwareProfile,
    HybridCapabilityDescriptor,
    ModelDescriptor,
    RequestOptions,
    RerankResult,
    SamplingParams,
)
from sage_infer.schemas.capability import SharingMode
from sage_infer.sdk.fields import Choice
from sage_infer_planning.estimate import GIB
from sage_infer_planning.memory_planner import MemoryPlan
from sage_infer_planning.registry import ModelEntry

from sage_infer_hybrid.batch import BatchWork
from sage_infer_hybrid.config import ModelConfig, as_config
from sage_infer_hybrid.host import ModelHost
from sage_infer_hybrid.options import forwarded
from sage_infer_hybrid.sharing import ComputeSharing
from sage_infer_hybrid.texts import TextOperations

__all__ = ["HybridBackend"]

ModelLike = str | ModelDescriptor | Mapping[str, Any] | ModelConfig


class HybridBackend(TextOperations):
    """``HybridInferenceBackend`` over any installed backends.

    ``HybridBackend(llm_config=…, embedding_config=…)`` loads its models in ``start``; ``HybridBackend()`` has none
    until ``load_model``. A configuration is a model's name, a descriptor, or a mapping with the keys of
    ``ModelConfig``.

    Args:
        llm_config, embedding_config, reranker_config: a model of each kind.
        models: any number of additional models.
        model: one model, as ``open_backend`` passes it.
        sharing_mode: ``time_slice`` (batch work alternates with streams), ``mps`` (simultaneously) or ``exclusive``
            (one device per model).
        profile: the machine; by default it is detected.
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
    ) -> None:
        for problem in Choice(get_args(SharingMode)).problems(sharing_mode, "sharing_mode"):
            raise InvalidRequest(f"{problem.path} {problem.message}")
        self._host = ModelHost(sharing_mode, profile)
        self._batch = BatchWork(self._host, ComputeSharing(sharing_mode, self._host.loaded))
        self._started = False
        given: list[tuple[str, ModelLike | None, ModelType | None]] = [
            ("llm_config", llm_config, "llm"),
            ("embedding_config", embedding_config, "embedding"),
            ("reranker_config", reranker_config, "reranker"),
            ("model", model, None),
            *((f"models[{i}]", value, None) for i, value in enumerate(models)),
        ]
        places: dict[str, tuple[str, ModelEntry]] = {}
        for where, value, kind in given:
            if value is None:
                continue
            entry = self._host.register(as_config(value, where), kind)
            first, known = places.setdefault(entry.descriptor.model_id, (where, entry))
            if known is not entry:
                raise InvalidRequest(
                    f"{where}: model_id {entry.descriptor.model_id!r} is already that of {first}; give one of them "
                    "another model_id"
                )

    # --- life cycle

    async def start(self) -> None:
        """Load all configured models.

        Raises:
            OutOfMemory: they do not fit together; the message states the missing bytes.
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
            return Health(status="starting", reason=f"loading: {', '.join(sorted(self._host.coming))}")
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
        """Combined gauges of all models; counters include those of unloaded models."""
        return self._host.stats()

    def metrics(self) -> Iterator[Metric]:
        """Each engine's own metrics (``EngineStats.extensions``), by model."""
        for model_id, model in list(self._host.loaded.items()):
            for name, value in model.backend.stats().extensions.items():
                yield Metric(
                    name="sage_infer_engine_" + re.sub(r"\W", "_", name, flags=re.ASCII),
                    kind="gauge",
                    help="Metric of the model's own engine.",
                    value=value,
                    labels={"model": model_id},
                )

    # --- requests

    async def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        params: SamplingParams,
        model: str | None = None,
        *,
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> list[TokenStream]:
        loaded = await self._host.ready(model, GENERATING)
        with self._host.call(loaded) as backend:
            streams: list[TokenStream] = await backend.generate(
                prompts, params, request_id=request_id, options=forwarded(loaded.features, options)
            )
            return streams

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
        loaded = await self._host.ready(model, GENERATING)
        with self._host.call(loaded) as backend:
            prompt = await backend.render_chat(messages, tools=tools, template_variables=template_variables)
            streams: list[TokenStream] = await backend.generate(
                [prompt], params, request_id=request_id, options=forwarded(loaded.features, options)
            )
            return streams[0]

    async def resume(
        self,
        states: Sequence[DecodeState],
        *,
        model: str | None = None,
        request_id: str,
        options: RequestOptions | None = None,
    ) -> TokenStream:
        loaded = await self._host.ready(model, GENERATING)
        with self._host.call(loaded) as backend:
            if "resume" not in loaded.features:
                raise UnsupportedFeature(
                    f"the backend of model {loaded.descriptor.model_id!r} does not claim resume; use another backend"
                )
            stream: TokenStream = await backend.resume(
                states, request_id=request_id, options=forwarded(loaded.features, options)
            )
            return stream

    async def embed(
        self,
        texts: TextLike | Sequence[TextLike],
        model: str | None = None,
        *,
        truncate: Truncation = "error",
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> EmbeddingResult:
        return await self._batch.embed(texts, model, truncate, request_id, options)

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
        return await self._batch.rerank(query, documents, model, top_n, request_id, options)

    async def abort(self, request_id: str) -> None:
        self._batch.abort(request_id)
        for model in list(self._host.loaded.values()):
            if model.generates:
                await model.backend.abort(request_id)

    # --- models

    def list_models(self) -> list[ModelDescriptor]:
        return [entry.descriptor for entry in self._host.registry.entries()]

    def get_model_status(self, model_id: str) -> ModelStatus:
        return self._host.named(model_id).status

    def get_model_capability(self, model_id: str) -> CapabilityDescriptor:
        """The capability of a loaded model, as reported by its backend.

        Raises:
            BackendUnavailable: it is not loaded.
        """
        entry = self._host.named(model_id)
        loaded = self._host.loaded.get(entry.descriptor.model_id)
        if loaded is None:
            raise BackendUnavailable(
                f"model {model_id!r} is {entry.state}, not loaded; call load_model first"
            )
        capability: CapabilityDescriptor = loaded.backend.get_capability()
        return capability

    def get_model_settings(self, model_id: str) -> dict[str, Any]:
        """Backend, options and quantization profile of a model, JSON-ready."""
        return self._host.settings_of(self._host.named(model_id))

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

    def plan(self) -> MemoryPlan:
        """Planned memory per model and device for all registered models, without loading them.

        Raises:
            OutOfMemory: they do not fit together; the message states the missing bytes.
        """
        self._host.check_open()
        return self._host.plan()

    def memory_plan(self) -> MemoryPlan:
        """Memory per model and device of the loaded models."""
        return self._host.memory.plan()

    def measured_bytes(self) -> dict[str, int | None]:
        """Main memory that loading each model added to this process and its children."""
        return {model_id: model.measured for model_id, model in self._host.loaded.items()}

    def measured_devices(self) -> dict[str, int | None]:
        """Measured memory of the models per device; None if it cannot be measured."""
        return self._host.memory.measured()

    def load_model(self, model: ModelLike) -> Awaitable[None]:
        """Load another model; loaded models are unaffected.

        Before ``start``, the call registers the model, and ``start`` loads it. Afterwards the call starts
        loading it, and awaiting the result waits until it is loaded.

        Raises:
            InvalidRequest: a model with that id is already loaded, or registered before the start.
            OutOfMemory: it does not fit; the message states the missing bytes and what would fit.
            BackendUnavailable: its backend is not ready.
        """
        self._host.check_open()
        entry = self._host.add(as_config(model, "model"), may_be_registered=self._started)
        if not self._started:
            return _Done()
        return asyncio.ensure_future(self._host.load(entry, again=True))

    async def unload_model(self, model_id: str) -> None:
        await self._host.unload(self._host.named(model_id), "registered")

    async def sleep_model(self, model_id: str) -> None:
        """Like ``unload_model``, but the next request for the model loads it again."""
        await self._host.unload(self._host.named(model_id), "sleeping")


class _Done:
    """A completed awaitable; unlike a coroutine, it need not be awaited."""

    def __await__(self) -> Generator[Any, Any, None]:
        return
        yield

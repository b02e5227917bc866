"""Two models behind one object."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator
from typing import Any

from sage_infer.contracts import EngineStats, Health, ModelStatus
from sage_infer.errors import EngineDead, InvalidRequest, ModelNotFound, OutOfMemory
from sage_infer.schemas import EmbeddingResult, HybridCapabilityDescriptor, ModelDescriptor, RequestOptions

from kit_reference.embedding import ReferenceEmbedder
from kit_reference.llm import ReferenceLLM


class Registered(Awaitable[None]):
    """Nothing to wait for."""

    def __await__(self) -> Generator[None]:
        yield


class ReferenceHybrid:
    """Two models side by side, and a third that can be loaded."""

    def __init__(self) -> None:
        self.models: dict[str, ModelDescriptor] = {}
        self.backends: dict[str, Any] = {}
        self.state = "new"
        for name, kind in (("talker", "llm"), ("embedder", "embedding")):
            self.models[name] = ModelDescriptor(model_id=name, model_type=kind, model_path="/")  # type: ignore[arg-type]

    async def start(self) -> None:
        self.state = "ok"
        for model in self.models.values():
            await self.open(model)

    async def close(self) -> None:
        self.state = "dead"
        for backend in self.backends.values():
            await backend.close()
        self.backends.clear()

    async def health(self) -> Health:
        if self.state == "new":
            return Health(status="starting", reason="start() has not been called")
        return Health(status="ok") if self.state == "ok" else Health(status="dead", reason="closed")

    def stats(self) -> EngineStats:
        every = [backend.stats() for backend in self.backends.values()]
        names = ("running", "waiting", "kv_blocks_total", "kv_blocks_free", "finished")
        return EngineStats(**{name: sum(getattr(stats, name) for stats in every) for name in names})

    def find(self, model: str | None, kind: str) -> Any:
        if self.state != "ok":
            raise EngineDead("closed; open a new one")
        if model is None:
            model = next(name for name in self.backends if self.models[name].model_type == kind)
        if model not in self.backends:
            raise ModelNotFound(f"no model {model!r}; loaded: {', '.join(self.backends)}")
        return self.backends[model]

    async def generate(
        self, prompts: Any, params: Any, model: str | None = None, *, request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> Any:  # fmt: skip
        backend = self.find(model, "llm")
        return await backend.generate(prompts, params, request_id=request_id, options=options)

    async def chat(
        self, messages: Any, params: Any, model: str | None = None, *, tools: Any = None,
        template_variables: Any = None, request_id: str | None = None, options: RequestOptions | None = None,
    ) -> Any:  # fmt: skip
        backend = self.find(model, "llm")
        prompt = await backend.render_chat(messages, tools=tools, template_variables=template_variables)
        return (await self.generate(prompt, params, model, request_id=request_id, options=options))[0]

    async def embed(
        self, texts: Any, model: str | None = None, *, truncate: str = "error", request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> EmbeddingResult:  # fmt: skip
        result: EmbeddingResult = await self.find(model, "embedding").embed(
            texts, truncate=truncate, request_id=request_id, options=options
        )
        return result

    async def rerank(
        self, query: str, documents: Any, model: str | None = None, *, top_n: int | None = None,
        request_id: str | None = None, options: RequestOptions | None = None,
    ) -> Any:  # fmt: skip
        backend = self.find(model, "embedding")
        return await backend.rerank(query, documents, top_n=top_n, request_id=request_id, options=options)

    def list_models(self) -> list[ModelDescriptor]:
        return list(self.models.values())

    def load_model(self, model: ModelDescriptor) -> Awaitable[None]:
        if model.model_id in self.models:
            raise InvalidRequest(f"{model.model_id!r} is registered already; unload it first")
        if self.state == "new":
            self.models[model.model_id] = model
            return Registered()
        return self.open(model)

    async def open(self, model: ModelDescriptor) -> None:
        if (model.memory_gb or 0) > 8:
            raise OutOfMemory(f"{model.model_id} needs {model.memory_gb} GiB, 8 are there")
        self.models[model.model_id] = model
        backend: Any = ReferenceLLM() if model.model_type == "llm" else ReferenceEmbedder()
        await backend.start()
        self.backends[model.model_id] = backend

    async def unload_model(self, model_id: str) -> None:
        backend = self.find(model_id, "")
        del self.backends[model_id], self.models[model_id]
        while backend.stats().running + backend.stats().waiting:  # noqa: ASYNC110 - a toy
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        await backend.close()

    def get_model_status(self, model_id: str) -> ModelStatus:
        if model_id not in self.models:
            raise ModelNotFound(f"no model {model_id!r}; there are: {', '.join(self.models)}")
        state: Any = "ready" if model_id in self.backends else "registered"
        return ModelStatus(model_id=model_id, state=state, since=0.0)

    def get_hybrid_capability(self) -> HybridCapabilityDescriptor:
        loaded = tuple(self.models[name] for name in self.backends)
        return HybridCapabilityDescriptor(
            backend_name="hybrid", hardware_backend="cpu", loaded_models=loaded, total_memory_gb=8.0,
            available_memory_gb=4.0,
        )  # fmt: skip

    async def abort(self, request_id: str) -> None:
        for backend in self.backends.values():
            await backend.abort(request_id)

"""Hybrids with one mistake each."""

from __future__ import annotations

from typing import Any

import attrs
from kit_reference.hybrid import ReferenceHybrid
from sage_infer.schemas import ModelDescriptor
from sage_infer_testing import HybridBackendContract

from kit_broken.suites import suite


def hybrid(*tests: str) -> Any:
    spare = ModelDescriptor(model_id="spare", model_type="llm", model_path="/")
    giant = ModelDescriptor(model_id="giant", model_type="llm", model_path="/", memory_gb=100.0)
    settings = {"llm": "talker", "embedder": "embedder", "spare": spare, "too_large": giant}
    return suite(HybridBackendContract, "make_backend", *tests, **settings)


@hybrid("test_lists_its_models")
class ListsTwice(ReferenceHybrid):
    def list_models(self) -> Any:
        return super().list_models() * 2


@hybrid("test_capability_lists_the_loaded_models", "test_loads_and_unloads")
class ListsRegistered(ReferenceHybrid):
    def get_hybrid_capability(self) -> Any:
        spare = ModelDescriptor(model_id="spare", model_type="llm", model_path="/")
        capability = super().get_hybrid_capability()
        loaded = {m.model_id: m for m in (*capability.loaded_models, spare)}
        return attrs.evolve(capability, loaded_models=tuple(loaded.values()))


@hybrid("test_unknown_models_are_not_found")
class AnyModel(ReferenceHybrid):
    def find(self, model: Any, kind: str) -> Any:
        return super().find(model if model in self.backends else None, kind or "llm")


@hybrid("test_there_is_a_default_model")
class NoDefault(ReferenceHybrid):
    def find(self, model: Any, kind: str) -> Any:
        return super().find(model or "nothing", kind)


@hybrid("test_generates_with_a_named_model", "test_chats")
class CutsOutputs(ReferenceHybrid):
    async def generate(self, prompts: Any, params: Any, *rest: Any, **options: Any) -> Any:
        return await super().generate(prompts, attrs.evolve(params, max_tokens=1), *rest, **options)


@hybrid("test_embeds_in_order")
class EmbedsBackwards(ReferenceHybrid):
    async def embed(self, texts: Any, *rest: Any, **options: Any) -> Any:
        return await super().embed(texts[::-1], *rest, **options)


@hybrid("test_models_work_side_by_side")
class SharesState(ReferenceHybrid):
    async def embed(self, texts: Any, *rest: Any, **options: Any) -> Any:
        extra = " more" if self.stats().running else ""
        return await super().embed([text + extra for text in texts], *rest, **options)


@hybrid("test_a_late_embedding_is_cancelled")
class IsNeverLate(ReferenceHybrid):
    async def embed(self, texts: Any, *rest: Any, options: Any = None, **more: Any) -> Any:
        return await super().embed(texts, *rest, **more)


@hybrid("test_giving_up_frees_the_request")
class ForgetsAborts(ReferenceHybrid):
    async def abort(self, request_id: str) -> None:
        self.stats = lambda: attrs.evolve(ReferenceHybrid.stats(self), running=1)  # type: ignore[method-assign]


@hybrid("test_unloading_lets_requests_finish")
class UnloadsAtOnce(ReferenceHybrid):
    async def unload_model(self, model_id: str) -> None:
        await self.find(model_id, "").close()
        del self.backends[model_id], self.models[model_id]


@hybrid("test_a_model_that_cannot_fit_is_refused")
class EndlessMemory(ReferenceHybrid):
    async def open(self, model: ModelDescriptor) -> None:
        await super().open(attrs.evolve(model, memory_gb=None))


@hybrid("test_work_after_close_is_refused")
class NeverCloses(ReferenceHybrid):
    async def close(self) -> None:
        """Goes on."""


@hybrid("test_models_are_named_by_position_too")
class NamesModelsByKeyword(ReferenceHybrid):
    async def generate(
        self, prompts: Any, params: Any, some: Any = None, *, model: Any = None, **more: Any
    ) -> Any:
        return await super().generate(prompts, params, model, **more)

    async def embed(self, texts: Any, some: Any = None, *, model: Any = None, **more: Any) -> Any:
        return await super().embed([texts] * 2 if isinstance(texts, str) else texts, model, **more)


@hybrid("test_unknown_options_are_refused_by_name")
class DropsOptions(ReferenceHybrid):
    async def chat(self, *args: Any, options: Any = None, **more: Any) -> Any:
        return await super().chat(*args, **more)


@hybrid("test_a_model_is_registered_before_start")
class RegistersWhenAwaited(ReferenceHybrid):
    async def load_model(self, model: ModelDescriptor) -> None:  # type: ignore[override]
        await super().load_model(model)


@hybrid("test_loads_and_unloads")
class LoadsTwice(ReferenceHybrid):
    def load_model(self, model: ModelDescriptor) -> Any:
        return self.open(model)

"""The kit for instances that serve several models."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar

import pytest
from sage_infer.contracts import HybridInferenceBackend, ModelStatus
from sage_infer.errors import EngineDead, InvalidRequest, ModelNotFound, OutOfMemory, RequestCancelled
from sage_infer.schemas import HybridCapabilityDescriptor, ModelDescriptor, RequestOptions
from sage_infer.schemas.codec import from_json, to_json
from sage_infer.specs import ServedType

from sage_infer_testing.kits.lifecycle import LifecycleSuite
from sage_infer_testing.kits.options import UnheardOptions, refused_by_name
from sage_infer_testing.reading import greedy, read
from sage_infer_testing.waiting import eventually

__all__ = ["HybridBackendContract"]

_UNKNOWN = "no-such-model"


class HybridBackendContract(LifecycleSuite, kit=True):
    """Guarantees of a ``HybridInferenceBackend``.

    Override ``make_backend`` to return an instance with registered models.

    Attributes:
        llm: id of a generative model that is loaded after ``start``; if empty, its tests are skipped.
        embedder: the same for an embedding model.
        spare: a further model that fits in addition to the others; if None, tests of loading are skipped.
        too_large: a model that can never fit; None if there is no limit.
        prompts: texts to generate from.
        texts: texts to embed.
    """

    serves: ClassVar[ServedType] = "hybrid"
    protocol: ClassVar[type] = HybridInferenceBackend
    llm: ClassVar[str] = ""
    embedder: ClassVar[str] = ""
    spare: ClassVar[ModelDescriptor | None] = None
    too_large: ClassVar[ModelDescriptor | None] = None
    prompts: ClassVar[Sequence[str]] = ("The capital of France is", "Once upon a time,")
    texts: ClassVar[Sequence[str]] = ("cat", "A small boat crossed the lake.", "yes")

    # --- helpers of the tests

    def need(self, value: object, name: str) -> Any:
        """Return the value; skip the test if the vendor has not set it."""
        if not value:
            pytest.skip(f"{name} is not set")
        return value

    async def first_stream(self, backend: Any, *, tokens: int = 8, **options: Any) -> Any:
        """Return a greedy stream of the generative model for the first prompt."""
        model = self.need(self.llm, "llm")
        (stream,) = await backend.generate(self.prompts[0], greedy(tokens), **{"model": model, **options})
        return stream

    # --- models and capability

    def test_lists_its_models(self, backend: Any) -> None:
        """``list_models`` returns one descriptor per model with unique ids; each model has a status.

        How to fix: list all registered models, loaded or not; ``get_model_status`` must support all of them.
        """
        models = backend.list_models()
        assert all(isinstance(m, ModelDescriptor) for m in models), f"list_models() returned {models}"
        ids = [m.model_id for m in models]
        assert len(ids) == len(set(ids)), f"an id is listed twice: {ids}"
        for model_id in ids:
            status = backend.get_model_status(model_id)
            assert isinstance(status, ModelStatus), f"get_model_status() returned a {type(status).__name__}"
            assert status.model_id == model_id
        for name in filter(None, (self.llm, self.embedder)):
            assert name in ids, f"{name!r} is not among {ids}"
            assert backend.get_model_status(name).state == "ready", f"{name!r} is not ready after start()"

    def test_capability_lists_the_loaded_models(self, backend: Any) -> None:
        """``get_hybrid_capability`` lists exactly the models that are ready, and survives a round trip through JSON.

        How to fix: build it from the states of the models at the time of the call.
        """
        capability = backend.get_hybrid_capability()
        assert isinstance(capability, HybridCapabilityDescriptor), f"returned a {type(capability).__name__}"
        assert from_json(to_json(capability), HybridCapabilityDescriptor) == capability
        ready = {
            m.model_id for m in backend.list_models() if backend.get_model_status(m.model_id).state == "ready"
        }
        loaded = {m.model_id for m in capability.loaded_models}
        assert loaded == ready, f"loaded_models {sorted(loaded)}, ready are {sorted(ready)}"

    async def test_unknown_models_are_not_found(self, backend: Any) -> None:
        """An unknown model raises ``ModelNotFound`` in every call; the message has the name.

        How to fix: look up the name first: "no model 'x'; did you mean …; loaded: …".
        """
        chat = [{"role": "user", "content": "Hello"}]
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: backend.generate("text", greedy(1), model=_UNKNOWN),
            lambda: backend.chat(chat, greedy(1), model=_UNKNOWN),
            lambda: backend.embed(["text"], model=_UNKNOWN),
            lambda: backend.rerank("query", ["text"], model=_UNKNOWN),
            lambda: backend.unload_model(_UNKNOWN),
        ]
        for call in calls:
            with pytest.raises(ModelNotFound, match=_UNKNOWN):
                await call()
        with pytest.raises(ModelNotFound, match=_UNKNOWN):
            backend.get_model_status(_UNKNOWN)

    # --- work

    async def test_generates_with_a_named_model(self, backend: Any) -> None:
        """``generate(model=…)`` streams that model's output to its end.

        How to fix: forward the call with all arguments to the model's backend.
        """
        output = await read(await self.first_stream(backend))
        assert output.finish_reason == "length", f"ended with {output.finish_reason!r}, not 'length'"
        assert len(output.token_ids) == 8, f"max_tokens=8 returned {len(output.token_ids)} tokens"

    async def test_there_is_a_default_model(self, backend: Any) -> None:
        """Without ``model``, the default model of the matching type is used.

        How to fix: if only one model of a type is loaded, it is the default.
        """
        if self.llm:
            (stream,) = await backend.generate(self.prompts[0], greedy(2))
            assert len((await read(stream)).token_ids) == 2
        if self.embedder:
            assert len(await backend.embed(self.texts)) == len(self.texts)

    async def test_chats(self, backend: Any) -> None:
        """``chat`` renders the messages with the model's template and streams the answer.

        How to fix: call ``render_chat`` of the model's backend, then ``generate``.
        """
        model = self.need(self.llm, "llm")
        stream = await backend.chat([{"role": "user", "content": "Hello"}], greedy(4), model=model)
        assert len((await read(stream)).token_ids) == 4

    async def test_models_are_named_by_position_too(self, backend: Any) -> None:
        """``model`` is the last positional argument of every call, and a single text is treated as a list of one.

        How to fix: copy the signatures from ``HybridInferenceBackend``; forward texts to the backend's ``embed``.
        """
        if self.llm:
            (stream,) = await backend.generate(self.prompts[0], greedy(2), self.llm)
            assert len((await read(stream)).token_ids) == 2
        if self.embedder:
            assert len(await backend.embed(self.texts[0], self.embedder)) == 1

    async def test_unknown_options_are_refused_by_name(self, backend: Any) -> None:
        """An option of a later version is refused by name in every call, never ignored.

        How to fix: check the options against the table in ``sage_infer.sdk`` before forwarding the call.
        """
        unheard, chat = UnheardOptions(unheard_of="x"), [{"role": "user", "content": "Hello"}]
        calls: list[Awaitable[Any]] = []
        if self.llm:
            calls += [
                backend.generate(self.prompts[0], greedy(1), model=self.llm, options=unheard),
                backend.chat(chat, greedy(1), model=self.llm, options=unheard),
            ]
        if self.embedder:
            calls.append(backend.embed(self.texts, model=self.embedder, options=unheard))
        problems = [await refused_by_name(call, "unheard_of") for call in calls]
        assert not any(problems), "; ".join(filter(None, problems))

    async def test_embeds_in_order(self, backend: Any) -> None:
        """``embed`` returns one vector per text, in order, from the named model.

        How to fix: forward the call to ``embed_batch`` of the model's backend.
        """
        model = self.need(self.embedder, "embedder")
        together = (await backend.embed(self.texts, model=model)).vectors
        assert len(together) == len(self.texts)
        for text, vector in zip(self.texts, together, strict=True):
            (alone,) = (await backend.embed([text], model=model)).vectors
            assert alone == pytest.approx(vector, abs=1e-3), f"{text!r} in a batch and alone"

    async def test_models_work_side_by_side(self, backend: Any) -> None:
        """Concurrent generation and embedding produce the same results as each alone.

        How to fix: look for state that is shared between the models.
        """
        model = self.need(self.embedder, "embedder")
        alone = await read(await self.first_stream(backend))
        vectors = (await backend.embed(self.texts, model=model)).vectors
        stream = await self.first_stream(backend)
        output, result = await asyncio.gather(read(stream), backend.embed(self.texts, model=model))
        assert output.token_ids == alone.token_ids, "generation beside embedding differs"
        for vector, expected in zip(result.vectors, vectors, strict=True):
            assert vector == pytest.approx(expected, abs=1e-3), "embedding beside generation differs"

    async def test_a_late_embedding_is_cancelled(self, backend: Any) -> None:
        """A call of ``embed`` past its ``deadline`` ends with ``RequestCancelled`` by ``deadline``; others succeed.

        How to fix: end the call after that many seconds, and free its resources in the model's backend.
        """
        model = self.need(self.embedder, "embedder")
        with pytest.raises(RequestCancelled) as caught:
            await backend.embed(list(self.texts) * 64, model=model, options=RequestOptions(deadline=1e-6))
        assert caught.value.by == "deadline", f"the error says by={caught.value.by!r}"
        result = await backend.embed(self.texts, model=model, options=RequestOptions(deadline=600.0))
        assert len(result.vectors) == len(self.texts)

    async def test_giving_up_frees_the_request(self, backend: Any) -> None:
        """Leaving the loop, and ``abort`` by id, free the request in the model's backend.

        How to fix: return the backend's own stream, or cancel it when your stream is cancelled.
        """
        before = await self.idle(backend)
        async for _ in await self.first_stream(backend, tokens=10_000):
            break
        await self.idle(backend, free_blocks=before.kv_blocks_free)
        request_id = self.new_id()
        stream = await self.first_stream(backend, tokens=10_000, request_id=request_id)
        await backend.abort(request_id)
        await self.idle(backend, free_blocks=before.kv_blocks_free)
        stream.cancel()

    async def test_work_after_close_is_refused(self, closed_backend: Any) -> None:
        """A closed instance raises ``EngineDead``.

        How to fix: check whether the instance is running before looking up the model.
        """
        with pytest.raises(EngineDead):
            await closed_backend.generate(self.prompts[0], greedy(1))

    # --- loading

    async def test_loads_and_unloads(self, backend: Any) -> None:
        """A loaded model becomes ready and is listed; after unloading it is no longer among the loaded models.

        How to fix: keep the state in one place, and read it in ``get_model_status`` and ``get_hybrid_capability``.
        """
        spare: ModelDescriptor = self.need(self.spare, "spare")

        def loaded() -> bool:
            return spare.model_id in {m.model_id for m in backend.get_hybrid_capability().loaded_models}

        assert not loaded(), f"{spare.model_id!r} is loaded already"
        await backend.load_model(spare)
        assert backend.get_model_status(spare.model_id).state == "ready"
        assert loaded(), f"{spare.model_id!r} is ready, and not among loaded_models"
        with pytest.raises(InvalidRequest):
            await backend.load_model(spare)
        await backend.unload_model(spare.model_id)
        assert not loaded(), f"{spare.model_id!r} is still loaded"

    async def test_a_model_is_registered_before_start(self) -> None:
        """Before ``start``, calling ``load_model`` registers the model; the result does not have to be awaited.

        How to fix: make ``load_model`` a plain method that registers the model and returns an awaitable other than a
        coroutine, because Python warns about coroutines that are never awaited.
        """
        spare: ModelDescriptor = self.need(self.spare, "spare")
        backend = self.make_backend()
        try:
            result = backend.load_model(spare)
            registered = {model.model_id for model in backend.list_models()}
            is_coroutine = inspect.iscoroutine(result)
            await result
        finally:
            await backend.close()
        assert spare.model_id in registered, f"{spare.model_id!r} is not among {sorted(registered)}"
        assert not is_coroutine, "load_model returned a coroutine, which must be awaited"

    async def test_unloading_lets_requests_finish(self, backend: Any) -> None:
        """A request that is running while its model is unloaded finishes normally.

        How to fix: refuse new requests, wait for the open ones, then close the model's backend.
        """
        spare: ModelDescriptor = self.need(self.spare, "spare")
        await backend.load_model(spare)
        if spare.model_type == "llm":
            stream = await self.first_stream(backend, model=spare.model_id)
            unloading = asyncio.ensure_future(backend.unload_model(spare.model_id))
            output = await read(stream)
            await unloading
            assert output.finish_reason == "length", f"ended with {output.finish_reason!r}"
        else:
            work = asyncio.ensure_future(backend.embed(self.texts, model=spare.model_id))
            before = backend.stats()
            await eventually(
                lambda: work.done() or backend.stats() != before,
                "embedding did not start",
                within_s=self.settle_s,
            )
            await backend.unload_model(spare.model_id)
            assert len(await work) == len(self.texts)

    async def test_a_model_that_cannot_fit_is_refused(self, backend: Any) -> None:
        """Loading a model that is too large raises ``OutOfMemory``; other models continue to work.

        How to fix: plan memory before loading; the message states the missing amount.
        """
        model: ModelDescriptor = self.need(self.too_large, "too_large")
        with pytest.raises(OutOfMemory):
            await backend.load_model(model)
        if self.llm:
            await read(await self.first_stream(backend))

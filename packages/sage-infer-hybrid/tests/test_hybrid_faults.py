"""Engines that fail, models that come and go under traffic, calls that are given up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hybrid_fakes import Engines, described, hybrid
from sage_infer.errors import (
    BackendUnavailable,
    EngineDead,
    InvalidRequest,
    ModelNotFound,
    OutOfMemory,
    Overloaded,
    SageInferError,
)
from sage_infer.schemas import SamplingParams
from sage_infer_hybrid import HybridBackend, ModelConfig, time_slice
from sage_infer_testing.waiting import eventually

PARAMS = SamplingParams(max_tokens=4)
LLM, ENCODER, RERANKER = described("llm"), described("vec", "embedding"), described("rank", "reranker")


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    made = Engines()
    made.install(monkeypatch)
    return made


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 20))


async def until(condition: Any, what: str) -> None:
    await eventually(condition, lambda: what, within_s=10)


def test_a_load_that_fails_is_told_and_may_be_tried_again(engines: Engines) -> None:
    async def main() -> None:
        engines.changes["llm"] = {"failure": OutOfMemory("no memory for the KV cache")}
        instance = hybrid(ENCODER)
        await instance.start()
        with pytest.raises(OutOfMemory, match="KV cache"):
            await instance.load_model(LLM)
        status = instance.get_model_status("llm")
        assert (status.state, status.reason) == ("failed", "no memory for the KV cache")
        assert engines["llm"].closed
        assert len(await instance.embed(["a"])) == 1
        assert (await instance.health()).status == "degraded"
        with pytest.raises(EngineDead, match="failed: no memory"):
            await instance.generate("x", PARAMS)
        engines.changes.clear()
        await instance.load_model(LLM)
        await instance.generate("x", PARAMS)
        assert (await instance.health()).status == "ok"

    run(main())


def test_an_engine_that_dies_fails_its_model_only(engines: Engines) -> None:
    async def main() -> None:
        instance = hybrid(LLM, ENCODER)
        await instance.start()
        engines["llm"].dead = "killed"
        health = await instance.health()
        assert (health.status, health.reason) == ("degraded", "llm: killed")
        assert instance.get_model_status("llm").state == "failed"
        with pytest.raises(EngineDead, match="killed; load it again"):
            await instance.generate("x", PARAMS)
        assert [m.model_id for m in instance.get_hybrid_capability().loaded_models] == ["vec"]
        assert len(await instance.embed(["a"])) == 1
        await instance.load_model(LLM)
        await instance.generate("x", PARAMS)
        assert engines.made["llm"][0].closed

    run(main())


def test_a_request_waits_for_its_model_to_be_loaded(engines: Engines) -> None:
    async def main() -> None:
        gate = asyncio.Event()
        engines.changes["llm"] = {"gate": gate}
        instance = hybrid(LLM)
        starting = asyncio.ensure_future(instance.start())
        await until(lambda: instance.get_model_status("llm").state == "loading", "not loading")
        request = asyncio.ensure_future(instance.generate("x", PARAMS))
        await asyncio.sleep(0)
        assert not request.done()
        gate.set()
        await starting
        assert len(await request) == 1
        assert len(engines.made["llm"]) == 1

    run(main())


def test_unloading_waits_for_streams_and_refuses_new_ones(engines: Engines) -> None:
    async def main() -> None:
        instance = hybrid(LLM)
        await instance.start()
        await instance.generate("x", PARAMS)
        unloading = asyncio.ensure_future(instance.unload_model("llm"))
        await until(lambda: instance.get_model_status("llm").state == "draining", "not draining")
        with pytest.raises(Overloaded, match="being unloaded"):
            await instance.generate("y", PARAMS)
        assert not engines["llm"].closed
        engines["llm"].finish()
        await unloading
        assert engines["llm"].closed
        with pytest.raises(BackendUnavailable, match="registered, not loaded; call load_model first"):
            await instance.generate("z", PARAMS)
        with pytest.raises(InvalidRequest, match="only a ready one"):
            await instance.unload_model("llm")

    run(main())


def test_a_sleeping_model_wakes_for_a_request(engines: Engines) -> None:
    async def main() -> None:
        instance = hybrid(ENCODER)
        await instance.start()
        await instance.sleep_model("vec")
        assert instance.get_model_status("vec").state == "sleeping"
        assert engines["vec"].closed
        results = await asyncio.gather(*(instance.embed(["a"]) for _ in range(3)))
        assert [len(result) for result in results] == [1, 1, 1]
        assert len(engines.made["vec"]) == 2
        assert instance.get_model_status("vec").state == "ready"

    run(main())


def test_closing_while_a_model_loads_frees_it(engines: Engines) -> None:
    async def main() -> None:
        gate = asyncio.Event()
        engines.changes["llm"] = {"gate": gate}
        instance = hybrid(LLM)
        starting = asyncio.ensure_future(instance.start())
        await until(lambda: instance.get_model_status("llm").state == "loading", "not loading")
        await instance.close()
        gate.set()
        with pytest.raises(EngineDead, match="closed"):
            await starting
        assert engines["llm"].closed
        assert (await instance.health()).status == "dead"

    run(main())


def test_models_that_do_not_fit_together_are_refused_before_any_is_loaded(engines: Engines) -> None:
    async def main() -> None:
        instance = hybrid(described("a", memory_gb=9), described("b", memory_gb=9))
        with pytest.raises(OutOfMemory, match="too little"):
            await instance.start()
        assert not engines.made

    run(main())


def test_kv_is_what_the_plan_gives_unless_the_user_says(engines: Engines) -> None:
    async def main() -> None:
        said = ModelConfig(model=LLM, options={"kv_cache_gb": 2.5})
        instance = hybrid(gigabytes=16, llm_config=said)
        await instance.start()
        assert engines["llm"].options["kv_cache_gb"] == 2.5
        (share,) = instance.memory_plan().shares
        assert share.kv == int(2.5 * 2**30)
        capability = instance.get_hybrid_capability()
        assert capability.total_memory_gb == 16
        assert capability.available_memory_gb < 16 * 0.95 - 3.4

    run(main())


# --- batch work beside streams


def test_texts_are_embedded_in_slices_beside_a_stream_and_whole_without(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_slice, "SLICE_S", 0.0)  # as short as it can be: a text

    async def main() -> None:
        instance = hybrid(LLM, ENCODER)
        await instance.start()
        texts = ["x" * (i % 30 + 1) for i in range(50)]
        alone = await instance.embed(texts)
        assert engines["vec"].batches == [50]
        await instance.generate("x", PARAMS)
        beside = await instance.embed(texts)
        assert len(engines["vec"].batches) > 2
        assert beside.vectors == alone.vectors == [[float(len(text))] for text in texts]
        assert beside.usage == alone.usage

    run(main())


def test_a_text_that_is_refused_keeps_its_number(engines: Engines) -> None:
    async def main() -> None:
        instance = hybrid(LLM, ENCODER)
        await instance.start()
        await instance.generate("x", PARAMS)
        with pytest.raises(InvalidRequest, match="input 7 is too long"):
            await instance.embed([*["short"] * 7, "x" * 60, "short"])

    run(main())


def test_documents_are_scored_in_slices(engines: Engines) -> None:
    async def main() -> None:
        instance = hybrid(LLM, RERANKER)
        await instance.start()
        await instance.generate("x", PARAMS)
        documents = ["x" * n for n in (3, 9, 1, 7, 5)]
        result = await instance.rerank("q", documents)
        assert [hit.index for hit in result.hits] == [1, 3, 4, 0, 2]
        assert [hit.index for hit in (await instance.rerank("q", documents, top_n=2)).hits] == [1, 3]
        assert (await instance.rerank("q", [])).hits == ()
        for bad in ({"top_n": 0}, {"documents": "text"}):
            with pytest.raises(InvalidRequest):
                await instance.rerank("q", **{"documents": documents, **bad})

    run(main())


def test_a_call_that_is_given_up_while_it_waits_lets_others_go_on(engines: Engines) -> None:
    async def main() -> None:
        instance = hybrid(LLM, ENCODER)
        await instance.start()
        await instance.generate("x", PARAMS)
        await instance.embed(["x"])
        engines["vec"].gate.clear()
        first = asyncio.ensure_future(instance.embed(["x"] * 30))
        await until(lambda: len(engines["vec"].batches) > 1, "no slice began")
        second = asyncio.ensure_future(instance.embed(["y"] * 3))
        await asyncio.sleep(0)
        first.cancel()
        engines["vec"].gate.set()
        assert len(await second) == 3
        with pytest.raises(asyncio.CancelledError):
            await first
        unloading = asyncio.ensure_future(instance.unload_model("vec"))
        await unloading

    run(main())


@pytest.mark.parametrize("mode", ["mps", "exclusive"])
def test_other_modes_do_not_slice(engines: Engines, mode: Any) -> None:
    async def main() -> None:
        models = (LLM, ENCODER) if mode == "mps" else (ENCODER,)
        instance = hybrid(*models, sharing_mode=mode)
        await instance.start()
        if mode == "mps":
            await instance.generate("x", PARAMS)
        await instance.embed(["x"] * 9)
        assert engines["vec"].batches == [9]
        assert instance.get_hybrid_capability().memory_isolation == (mode == "exclusive")

    run(main())


# --- what a caller may get wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sharing_mode": "turns"}, "sharing_mode must be one of exclusive, mps, time_slice"),
        ({"llm_config": {"modle": "x"}}, "llm_config has no key 'modle'; it takes model, backend"),
        ({"llm_config": {}}, "llm_config lacks the key model"),
        ({"llm_config": 7}, "llm_config must name a model or be a mapping"),
        ({"llm_config": ENCODER}, "'vec' is of type embedding, expected llm"),
        ({"llm_config": {"model": 7}}, "model must be a name, a path or a ModelDescriptor, got 7"),
        ({"llm_config": {"model": LLM, "weight": 0}}, "weight"),
    ],
)
def test_wrong_configurations_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SageInferError, match=message):
        HybridBackend(**options)


def test_nothing_answers_before_start_and_unknown_memory_is_said(engines: Engines) -> None:
    async def main() -> None:
        instance = hybrid()
        assert (await instance.health()).status == "starting"
        with pytest.raises(ModelNotFound, match="no model here can embed; there are no models"):
            await instance.embed(["x"])
        await instance.close()
        with pytest.raises(EngineDead):
            await instance.start()

    run(main())

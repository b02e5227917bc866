"""Failing engines, loading and unloading under traffic, cancelled calls."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hybrid_fakes import GIB, Engines, cards, described, hybrid
from sage_infer.contracts import MetricsReporting
from sage_infer.errors import (
    BackendUnavailable,
    EngineDead,
    InvalidRequest,
    ModelNotFound,
    OutOfMemory,
    Overloaded,
    RequestCancelled,
    SageInferError,
    UnsupportedFeature,
)
from sage_infer.schemas import DecodeState, RequestOptions, SamplingParams
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
    asyncio.run(asyncio.wait_for(coroutine, 300))


async def until(condition: Any, what: str) -> None:
    await eventually(condition, lambda: what, within_s=300)


def test_a_failed_load_is_reported_and_can_be_retried(engines: Engines) -> None:
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


def test_a_call_on_a_dead_engine_fails_its_model_immediately(engines: Engines) -> None:
    async def main() -> None:
        instance = hybrid(LLM, ENCODER)
        await instance.start()
        engines["llm"].dead = "out of memory"
        with pytest.raises(EngineDead, match=r"^out of memory"):
            await instance.generate("x", PARAMS)
        assert instance.get_model_status("llm").reason == "out of memory"
        assert [share.model_id for share in instance.memory_plan().shares] == ["vec"]
        await until(lambda: engines["llm"].closed, "the dead engine was not cleared away")
        assert len(await instance.embed(["a"])) == 1

    run(main())


def test_counters_outlive_their_models(engines: Engines) -> None:
    async def main() -> None:
        instance = hybrid(LLM)
        await instance.start()
        await instance.generate("x", PARAMS)
        engines["llm"].finish()
        assert (instance.stats().finished, instance.stats().output_tokens) == (1, 7)
        await instance.unload_model("llm")
        assert (instance.stats().finished, instance.stats().output_tokens) == (1, 7)

    run(main())


def test_engines_own_metrics_are_reported_by_model(engines: Engines) -> None:
    async def main() -> None:
        instance = hybrid(LLM)
        await instance.start()
        engines["llm"].extensions = {"kv_store_fetched": 5.0, "odd name": 1.0}
        assert isinstance(instance, MetricsReporting)
        found = [(metric.name, metric.value, metric.labels) for metric in instance.metrics()]
        assert found == [
            ("sage_infer_engine_kv_store_fetched", 5.0, {"model": "llm"}),
            ("sage_infer_engine_odd_name", 1.0, {"model": "llm"}),
        ]

    run(main())


def test_a_cancelled_caller_does_not_end_a_shared_load(engines: Engines) -> None:
    async def main() -> None:
        instance = hybrid(ENCODER)
        await instance.start()
        await instance.sleep_model("vec")
        gate = asyncio.Event()
        engines.changes["vec"] = {"gate": gate}
        first, second = (asyncio.ensure_future(instance.embed(["a"])) for _ in range(2))
        await until(lambda: instance.get_model_status("vec").state == "loading", "not loading")
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        gate.set()
        assert len(await second) == 1
        assert len(engines.made["vec"]) == 2

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
        with pytest.raises(InvalidRequest, match="only a ready model"):
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


def test_a_request_cancels_the_draining_before_sleep(engines: Engines) -> None:
    async def main() -> None:
        instance = hybrid(LLM)
        await instance.start()
        await instance.generate("x", PARAMS)
        going = asyncio.ensure_future(instance.sleep_model("llm"))
        await until(lambda: instance.get_model_status("llm").state == "draining", "not draining")
        await instance.generate("y", PARAMS)
        await going
        assert instance.get_model_status("llm").state == "ready"
        assert not engines["llm"].closed

    run(main())


def test_a_cancelled_unload_leaves_the_model_ready(engines: Engines) -> None:
    async def main() -> None:
        instance = hybrid(LLM)
        await instance.start()
        await instance.generate("x", PARAMS)
        going = asyncio.ensure_future(instance.unload_model("llm"))
        await until(lambda: instance.get_model_status("llm").state == "draining", "not draining")
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going
        await instance.generate("y", PARAMS)

    run(main())


def test_a_model_that_does_not_fit_when_it_wakes_sleeps_on(engines: Engines) -> None:
    async def main() -> None:
        instance = hybrid(described("llm", memory_gb=8))
        await instance.start()
        await instance.sleep_model("llm")
        await instance.load_model(described("other", "embedding", memory_gb=8))
        with pytest.raises(OutOfMemory, match="too little"):
            await instance.generate("x", PARAMS)
        status = instance.get_model_status("llm")
        assert status.state == "sleeping"
        assert "too little" in status.reason
        await instance.unload_model("other")
        await instance.generate("x", PARAMS)
        with pytest.raises(InvalidRequest, match="only a ready model"):
            await instance.unload_model("other")

    run(main())


def test_a_sleeping_model_can_be_unloaded_and_a_loaded_one_not_loaded_again(engines: Engines) -> None:
    async def main() -> None:
        instance = hybrid(ENCODER)
        await instance.start()
        with pytest.raises(InvalidRequest, match="'vec' is already ready; unload it first"):
            await instance.load_model(ENCODER)
        assert len(engines.made["vec"]) == 1
        await instance.sleep_model("vec")
        await instance.unload_model("vec")
        with pytest.raises(BackendUnavailable, match="registered, not loaded"):
            await instance.embed(["a"])

    run(main())


def test_models_are_put_on_the_cards_of_the_plan(engines: Engines) -> None:
    async def main() -> None:
        models = (
            {"model": described("large", memory_gb=60), "options": {"tensor_parallel": 2, "kv_cache_gb": 4}},
            described("small", "embedding", memory_gb=8),
        )
        instance = hybrid(models=models, profile=cards(40, 24, 40))
        await instance.start()
        assert engines["large"].model.device_ids == (0, 2)
        assert engines["large"].options["kv_cache_gb"] == 4
        assert engines["large"].options["memory_fraction"] == pytest.approx((30 + 4) / 40, abs=1e-3)
        assert engines["small"].model.device_ids == (1,)
        assert engines["small"].options == {"memory_fraction": pytest.approx(8 / 24, abs=1e-3)}
        capability = instance.get_hybrid_capability()
        assert (capability.hardware_backend, capability.total_memory_gb) == ("cuda", 104)
        assert instance.measured_devices() == {"cuda:0": None, "cuda:1": None, "cuda:2": None}

    run(main())


def test_a_share_of_the_card_that_the_user_set_is_planned_with(engines: Engines) -> None:
    async def main() -> None:
        half = {"model": described("llm", memory_gb=4), "options": {"memory_fraction": 0.5}}
        instance = hybrid(models=(half,), profile=cards(24))
        await instance.start()
        assert engines["llm"].options["memory_fraction"] == 0.5
        (share,) = instance.memory_plan().shares
        assert share.total == 12 * GIB
        assert not engines["llm"].model.device_ids  # there is no choice

    run(main())


def test_closing_while_a_model_loads_frees_it(engines: Engines) -> None:
    async def main() -> None:
        gate = asyncio.Event()
        engines.changes["llm"] = {"gate": gate}
        instance = hybrid(LLM)
        starting = asyncio.ensure_future(instance.start())
        await until(lambda: "llm" in engines.made, "not loading")
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


def test_kv_follows_the_plan_unless_set_by_the_user(engines: Engines) -> None:
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


def test_tokens_are_shown_where_the_backend_shows_them(engines: Engines) -> None:
    async def main() -> None:
        instance = hybrid(LLM)
        await instance.start()
        prompt = await instance.render_chat([{"role": "user", "content": "x"}], add_generation_prompt=False)
        assert prompt.text
        with pytest.raises(UnsupportedFeature, match="'llm' does not support tokenize"):
            await instance.tokenize("x")

        async def tokenize(prompt: str) -> list[int]:
            return [len(prompt)]

        async def detokenize(token_ids: list[int]) -> str:
            return str(token_ids)

        engines.changes["other"] = {"tokenize": tokenize, "detokenize": detokenize}
        await instance.load_model(described("other"))
        assert await instance.tokenize("abc", model="other") == [3]
        assert await instance.detokenize([1], model="other") == "[1]"

    run(main())


def test_requests_are_resumed_where_the_backend_claims_it(engines: Engines) -> None:
    async def main() -> None:
        instance = hybrid(LLM)
        await instance.start()
        state = DecodeState(
            request_id="r", model_id="llm", instance_id="i", prompt_token_ids=(1,), params=PARAMS, seed=0
        )
        with pytest.raises(UnsupportedFeature, match="'llm' does not claim resume"):
            await instance.resume([state], request_id="r")
        asked: list[Any] = []

        async def resume(states: Any, *, request_id: str, options: RequestOptions | None) -> str:
            asked.append((states, request_id, options))
            return "stream"

        engines.changes["other"] = {"resume": resume, "features": ("resume",)}
        await instance.load_model(described("other"))
        stream = await instance.resume(
            [state], model="other", request_id="r", options=RequestOptions(tenant="t")
        )
        assert stream == "stream"
        assert asked == [([state], "r", None)]  # the backend does not claim tenants

    run(main())


# --- batch work beside streams


def test_texts_are_embedded_in_slices_only_beside_streams(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_slice, "PART_S", 1e9)  # however long the first text takes
    monkeypatch.setattr(time_slice, "USUAL_SLICE_S", 0.0)  # as short as it can be: a text

    async def main() -> None:
        instance = hybrid(LLM, ENCODER)
        await instance.start()
        texts = ["x" * (i % 30 + 1) for i in range(50)]
        alone = await instance.embed(texts)
        assert engines["vec"].batches == [1, 49]  # one to see what it costs
        await instance.generate("x", PARAMS)
        beside = await instance.embed(texts)
        assert len(engines["vec"].batches) > 2
        assert beside.vectors == alone.vectors == [[float(len(text))] for text in texts]
        assert beside.usage == alone.usage

    run(main())


def test_errors_have_the_index_of_the_callers_text(engines: Engines) -> None:
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


def test_a_cancelled_waiting_call_does_not_block_others(engines: Engines) -> None:
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


@pytest.mark.parametrize("live", [True, False])
def test_a_late_call_is_cancelled_and_one_in_time_answered(engines: Engines, live: bool) -> None:
    async def main() -> None:
        instance = hybrid(LLM, ENCODER, RERANKER)
        await instance.start()
        if live:
            await instance.generate("x", PARAMS)
        assert len((await instance.embed(["x", "y"], options=RequestOptions(deadline=60))).vectors) == 2
        assert len((await instance.rerank("q", ["x", "y"], options=RequestOptions(deadline=60))).hits) == 2
        for name in ("vec", "rank"):
            engines[name].gate.clear()
        with pytest.raises(RequestCancelled, match=r"missed its deadline of 0\.02 s") as late:
            await instance.embed(["x"] * 3, options=RequestOptions(deadline=0.02))
        assert late.value.by == "deadline"
        with pytest.raises(RequestCancelled):
            await instance.rerank("q", ["x"], options=RequestOptions(deadline=0.02))
        for name in ("vec", "rank"):
            engines[name].gate.set()
        assert len((await instance.embed(["x"])).vectors) == 1
        await instance.unload_model("vec")  # which waits for whatever is still open

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
        ({"llm_config": {"modle": "x"}}, "llm_config has no key 'modle'; valid keys: model, model_id"),
        ({"llm_config": {}}, "llm_config lacks the key model or model_id"),
        ({"llm_config": 7}, "llm_config must be a model's name or a mapping"),
        ({"llm_config": ENCODER}, "'vec' has the type embedding, expected llm"),
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

"""Request options of a model's backend, aborts by id, and models registered early."""

from __future__ import annotations

import asyncio
from typing import Any

import attrs
import pytest
from hybrid_fakes import Engines, described, hybrid
from sage_infer.errors import InvalidRequest, RequestCancelled, UnsupportedFeature
from sage_infer.schemas import RequestOptions, SamplingParams
from sage_infer_hybrid import HybridBackend
from sage_infer_testing.waiting import eventually

PARAMS = SamplingParams(max_tokens=4)
LLM, ENCODER = described("llm"), described("vec", "embedding")
FRONT = RequestOptions(tenant="ann", session="s", cache_salt="ab", trace={"traceparent": "00-1"})


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    made = Engines()
    made.install(monkeypatch)
    return made


def run(coroutine: Any) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 300))


def test_a_backend_gets_the_advisory_options_that_it_claims(engines: Engines) -> None:
    async def main() -> None:
        engines.changes["vec"] = {"features": ("tenant", "priority")}
        instance = hybrid(LLM, ENCODER)
        await instance.start()
        await instance.generate("x", PARAMS, options=FRONT)
        assert engines["llm"].asked == [None]
        await instance.embed("x", options=attrs.evolve(FRONT, priority=3))
        assert engines["vec"].asked == [RequestOptions(tenant="ann", priority=3)]

    run(main())


def test_unsupported_options_of_callers_are_rejected_by_name(engines: Engines) -> None:
    @attrs.frozen(kw_only=True)
    class Tomorrow(RequestOptions):  # type: ignore[misc]
        gravity: float = 9.8

    async def main() -> None:
        instance = hybrid(LLM, ENCODER)
        await instance.start()
        with pytest.raises(UnsupportedFeature, match=r"options\.priority"):
            await instance.generate("x", PARAMS, options=attrs.evolve(FRONT, priority=1))
        with pytest.raises(UnsupportedFeature, match=r"options\.deadline"):
            await instance.chat(
                [{"role": "user", "content": "x"}], PARAMS, options=RequestOptions(deadline=1)
            )
        for call in (instance.generate("x", PARAMS, options=Tomorrow(gravity=1.6)),
                     instance.embed("x", options=Tomorrow(gravity=1.6))):  # fmt: skip
            with pytest.raises(UnsupportedFeature, match=r"options\.gravity"):
                await call

    run(main())


@pytest.mark.parametrize("live", [True, False])
def test_abort_ends_an_embedding_by_its_id(engines: Engines, live: bool) -> None:
    async def main() -> None:
        instance = hybrid(LLM, ENCODER)
        await instance.start()
        if live:
            await instance.generate("x", PARAMS)
        engines["vec"].gate.clear()
        call = asyncio.ensure_future(instance.embed(["x"] * 3, request_id="e1"))
        await eventually(lambda: engines["vec"].batches, lambda: "it did not begin", within_s=300)
        with pytest.raises(InvalidRequest, match="'e1' is in use"):
            await instance.embed(["y"], request_id="e1")
        await instance.abort("unknown")
        await instance.abort("e1")
        with pytest.raises(RequestCancelled, match="e1 was aborted") as ended:
            await call
        assert ended.value.by == "caller"
        engines["vec"].gate.set()
        assert len(await instance.embed(["x"], request_id="e1")) == 1

    run(main())


def test_models_named_before_the_start_are_loaded_by_it(engines: Engines) -> None:
    async def main() -> None:
        instance = hybrid()
        instance.load_model(LLM)
        await instance.load_model(ENCODER)
        assert not engines.made
        assert instance.get_model_status("llm").state == "registered"
        await instance.start()
        assert set(engines.made) == {"llm", "vec"}
        gate = asyncio.Event()
        engines.changes["rank"] = {"gate": gate}
        loading = instance.load_model(described("rank", "reranker"))
        await eventually(lambda: "rank" in engines.made, lambda: "it was not loaded", within_s=300)
        gate.set()
        await loading
        assert instance.get_model_status("rank").state == "ready"

    run(main())


def test_progress_of_a_load_is_in_the_models_status(engines: Engines) -> None:
    async def main() -> None:
        reports: list[Any] = []
        gate = asyncio.Event()
        engines.changes["llm"] = {"gate": gate, "on_progress": reports.append}
        instance: HybridBackend = hybrid(LLM)
        starting = asyncio.ensure_future(instance.start())
        await eventually(lambda: reports, lambda: "nobody asked for progress", within_s=300)
        reports[0]("reading weights", 0.25)
        status = instance.get_model_status("llm")
        assert (status.state, status.stage, status.share) == ("loading", "reading weights", 0.25)
        gate.set()
        await starting
        status = instance.get_model_status("llm")
        assert (status.state, status.stage, status.share) == ("ready", "", None)

    run(main())


def test_two_models_with_one_id_are_rejected(engines: Engines) -> None:
    """The id names one model: neither of two replaces the other. The same model given twice is one model."""
    with pytest.raises(InvalidRequest, match="'llm' is already that of llm_config; give one of them another"):
        HybridBackend(llm_config=LLM, embedding_config=described("llm", "embedding"))
    assert [status.model_id for status in HybridBackend(models=[LLM, LLM]).list_models()] == ["llm"]

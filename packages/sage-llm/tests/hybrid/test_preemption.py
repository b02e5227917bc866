"""A batch request that holds room is paused for an interactive one, and continues with exactly its tokens."""

from __future__ import annotations

import asyncio
from typing import Any

import attrs
import plane
from plane import read, until
from sage_infer.schemas import SLO, RequestOptions, SamplingParams
from toy_encoder import on_encoders, quick

BATCH, URGENT = RequestOptions(service_class="batch"), RequestOptions(slo=SLO(ttft_s=0.02))
LONG = SamplingParams(temperature=0.9, seed=7, max_tokens=200)


def test_a_paused_request_continues_exactly() -> None:
    async def test(manager: Any, executor: Any) -> None:
        (engine,) = executor.engines
        most = engine.max_batch_size

        async def batch(number: int) -> Any:
            params = attrs.evolve(LONG, seed=number)
            (stream,) = await manager.generate(f"batch {number}", params, "toy", options=BATCH)
            return await read(stream)

        expected = [await batch(number) for number in range(most)]
        reading = [asyncio.ensure_future(batch(number)) for number in range(most)]
        dispatcher = manager.dispatcher
        await until(lambda: len([r for r in dispatcher.open.values() if r.ledger.has_started]) == most)
        engine.gate.clear()
        running = list(dispatcher.open.values())
        assert len(running) == most, "a batch request ended before the urgent one arrived"
        urgent = asyncio.ensure_future(
            manager.generate("urgent", SamplingParams(temperature=0.0, max_tokens=4), "toy", options=URGENT)
        )
        await until(lambda: dispatcher.pauses)
        (stream,) = await urgent  # accepted by the engine, while the paused one waits
        assert dispatcher.pauses == 1
        (paused,) = [request for request in running if request.is_paused]
        assert paused.attempt is None
        assert paused.view is not None
        assert paused.view.band == 2
        engine.gate.set()
        assert len((await read(stream))[0]) == 4
        assert await asyncio.gather(*reading) == expected
        assert paused.pauses == 1
        assert dispatcher.ends == {"finished": 2 * most + 1, "cancelled": 0, "refused": 0, "failed": 0}
        assert {m.name: m.value for m in manager.metrics()}["sage_llm_pauses_total"] == 1

    on_encoders(test, settings=quick(), embedding=0, llm=1)


def test_requests_of_equal_bands_are_not_paused() -> None:
    async def test(manager: Any, executor: Any) -> None:
        (engine,) = executor.engines
        engine.gate.clear()
        most = engine.max_batch_size
        opened = [
            asyncio.ensure_future(manager.generate(f"plain {n}", LONG, "toy", options=URGENT))
            for n in range(most + 1)
        ]
        await until(lambda: len(manager.dispatcher.placement.waiting()) == 1)
        (waiting,) = manager.dispatcher.placement.waiting()
        now = waiting.arrived + plane.GUARD_S
        manager.dispatcher.preempt(now)
        assert manager.dispatcher.pauses == 0
        engine.gate.set()
        streams = [stream for found in await asyncio.gather(*opened) for stream in found]
        await asyncio.gather(*map(read, streams))

    on_encoders(test, settings=quick(), embedding=0, llm=1)

"""Slices of batch work beside streams, with a simulated clock."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import pytest
from sage_infer.contracts import EngineStats
from sage_infer_hybrid.streams import DeviceStreams
from sage_infer_hybrid.time_slice import BESIDE_STREAMS, PART_OF_STEP, PART_S, Batch, TimeSlicer

STEP_S = 0.04


class Machine:
    """A device on which a unit of batch work takes ``unit_s``, and longer while streams are live."""

    def __init__(self, unit_s: float, live: float = 3.0) -> None:
        self.unit_s, self.live = unit_s, live
        self.now = 0.0
        self.parts: list[tuple[str, int]] = []
        self.failure: Exception | None = None
        self.grown = asyncio.Condition()
        self.slicer = TimeSlicer(self, clock=lambda: self.now, sleep=self.sleep)

    # what the slicer sees of the streams

    def weight(self) -> float:
        return self.live

    def step_s(self) -> float:
        return STEP_S

    # the device

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)

    async def compute(self, name: str, items: Sequence[str]) -> list[str]:
        self.parts.append((name, len(items)))
        if self.failure is not None:
            raise self.failure
        self.now += sum(map(len, items)) * self.unit_s / (BESIDE_STREAMS if self.live else 1.0)
        async with self.grown:
            self.grown.notify_all()
        await asyncio.sleep(0)
        return list(items)

    async def has_run(self, parts: int) -> None:
        async with self.grown:
            await self.grown.wait_for(lambda: len(self.parts) >= parts)

    async def run(
        self, items: Sequence[str], name: str = "m", weight: float = 1.0, due: float = math.inf
    ) -> list[str]:
        async def compute(some: Sequence[str]) -> list[str]:
            return await self.compute(name, some)

        parts = await self.slicer.run(Batch(name, items, [len(item) for item in items], compute, weight, due))
        return [item for part in parts for item in part]

    def work(self, name: str) -> int:
        return sum(count for other, count in self.parts if other == name)


def test_without_streams_a_call_continues_in_large_parts() -> None:
    machine = Machine(0.001, live=0.0)
    items = ["abc"] * 100
    assert asyncio.run(machine.run(items)) == items
    assert max(count for _, count in machine.parts) == pytest.approx(PART_S / 0.003, abs=1)


def test_without_streams_calls_run_concurrently() -> None:
    machine = Machine(0.001, live=0.0)
    inside: list[int] = []
    gate = asyncio.Event()

    async def compute(items: Sequence[str]) -> int:
        inside.append(len(items))
        await gate.wait()
        return len(items)

    async def main() -> None:
        calls = [
            asyncio.ensure_future(machine.slicer.run(Batch("m", ["a"], [1], compute, 1.0))) for _ in range(8)
        ]
        await asyncio.sleep(0)
        assert len(inside) == 8
        gate.set()
        await asyncio.gather(*calls)

    asyncio.run(main())


def test_beside_streams_it_gets_its_share_in_parts_of_their_step() -> None:
    machine = Machine(0.001)
    items = ["ab"] * 500
    assert asyncio.run(machine.run(items)) == items
    assert max(count for _, count in machine.parts) * 0.002 <= PART_OF_STEP * STEP_S * 1.01
    assert 500 * 0.002 / machine.now == pytest.approx(0.25, abs=0.02)


def test_a_larger_weight_is_faster() -> None:
    times = []
    for weight in (0.3, 1.0, 3.0):
        machine = Machine(0.001)
        asyncio.run(machine.run(["ab"] * 200, weight=weight))
        times.append(machine.now)
    assert times[0] > 2 * times[1] > 3 * times[2]


def test_models_get_batch_time_by_weight_and_calls_of_one_take_turns() -> None:
    machine = Machine(0.001)

    async def main() -> None:
        heavy = asyncio.ensure_future(machine.run(["ab"] * 2000, "heavy", weight=3.0))
        light = [asyncio.ensure_future(machine.run(["ab"] * 2000, "light")) for _ in range(2)]
        await machine.has_run(200)
        assert machine.work("heavy") / machine.work("light") == pytest.approx(3, rel=0.1)
        for call in (heavy, *light):
            call.cancel()

    asyncio.run(main())


def test_a_small_call_does_not_wait_for_a_large_one() -> None:
    machine = Machine(0.001)

    async def main() -> None:
        large = asyncio.ensure_future(machine.run(["ab"] * 500))
        await machine.has_run(3)
        before = len(machine.parts)
        assert await machine.run(["x"]) == ["x"]
        assert len(machine.parts) - before <= 4
        large.cancel()

    asyncio.run(main())


def test_a_models_calls_run_in_order_of_deadline() -> None:
    machine = Machine(0.001)
    ended: list[str] = []

    async def call(name: str, due: float) -> None:
        await machine.run(["ab"] * 200, due=due)
        ended.append(name)

    async def main() -> None:
        await asyncio.gather(call("whenever", math.inf), call("later", 20.0), call("soon", 10.0))

    asyncio.run(main())
    assert ended == ["soon", "later", "whenever"]


def test_when_the_streams_end_the_rest_runs_in_large_parts() -> None:
    machine = Machine(0.001)

    async def main() -> list[str]:
        task = asyncio.ensure_future(machine.run(["ab"] * 500))
        await machine.has_run(5)
        machine.live = 0.0
        return await task

    assert len(asyncio.run(main())) == 500
    assert machine.parts[-2][1] == pytest.approx(PART_S / 0.002, abs=1)


def test_a_cancelled_call_lets_others_go_on() -> None:
    machine = Machine(0.001)

    async def main() -> list[str]:
        first = asyncio.ensure_future(machine.run(["ab"] * 500, "first"))
        second = asyncio.ensure_future(machine.run(["x", "y"] * 20))
        await machine.has_run(3)
        first.cancel()
        result = await second
        done = machine.work("first")
        assert await machine.run(["z"]) == ["z"]
        assert machine.work("first") == done < 100
        return result

    assert asyncio.run(main()) == ["x", "y"] * 20


def test_parts_of_a_cancelled_call_are_cancelled() -> None:
    machine = Machine(0.001)
    ended: list[str] = []

    async def compute(items: Sequence[str]) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(items[0])

    async def main() -> None:
        call = asyncio.ensure_future(machine.slicer.run(Batch("m", ["a"], [1], compute, 1.0)))
        while machine.slicer._jobs == [] or machine.slicer._jobs[0].part is None:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        call.cancel()
        assert await machine.run(["x"]) == ["x"]
        assert ended == ["a"]

    asyncio.run(main())


def test_an_error_is_its_own_calls() -> None:
    machine = Machine(0.001)

    async def broken(items: Sequence[str]) -> None:
        raise ValueError("no")

    async def main() -> None:
        good = asyncio.ensure_future(machine.run(["ab"] * 50))
        with pytest.raises(ValueError, match="no"):
            await machine.slicer.run(Batch("broken", ["a", "b"], [1, 1], broken, 1.0))
        assert len(await good) == 50

    asyncio.run(main())


def test_an_internal_error_ends_every_call() -> None:
    machine = Machine(0.001)

    async def main() -> None:
        machine.step_s = lambda: 1 / 0  # type: ignore[method-assign, return-value, assignment]
        with pytest.raises(ZeroDivisionError):
            await machine.run(["x"])
        del machine.step_s
        assert await machine.run(["x"]) == ["x"]

    asyncio.run(main())


# --- the streams of a device


class Counted:
    """A model that generates, by its counters."""

    weight, is_busy = 3.0, True

    def __init__(self) -> None:
        self.backend = self
        self.running, self.tokens = 4, 0

    def stats(self) -> EngineStats:
        return EngineStats(running=self.running, waiting=0, output_tokens=self.tokens)


def test_the_step_of_streams_is_read_from_counters() -> None:
    now = 0.0
    model = Counted()
    streams = DeviceStreams(lambda: [model], clock=lambda: now)  # type: ignore[list-item]
    assert streams.weight() == 3.0
    assert streams.step_s() is None
    now, model.tokens = 0.5, 40  # 10 tokens of each of the 4 streams
    assert streams.step_s() == pytest.approx(0.05)
    now = 0.8  # no token since then
    assert streams.step_s() == pytest.approx(0.05)
    now, model.tokens = 60.0, 41  # long ago
    assert streams.step_s() is None
    model.is_busy = False
    assert streams.weight() == 0

"""Slices of batch work beside streams, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sage_infer_hybrid.time_slice import SLICE_S, TimeSlicer


class Machine:
    """A device on which a unit of batch work takes ``unit_s``, and twice as long while streams are live."""

    def __init__(self, unit_s: float, live: bool) -> None:
        self.unit_s, self.live = unit_s, live
        self.now = 0.0
        self.busy = 0.0  # seconds in which batch work ran
        self.parts: list[int] = []
        self.grown = asyncio.Condition()
        self.slicer = TimeSlicer(lambda: self.live, clock=lambda: self.now, sleep=self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)

    async def compute(self, items: Sequence[str]) -> list[str]:
        self.parts.append(len(items))
        taken = sum(map(len, items)) * self.unit_s * (2 if self.live else 1)
        self.now += taken
        self.busy += taken
        async with self.grown:
            self.grown.notify_all()
        return list(items)

    async def has_run(self, parts: int) -> None:
        async with self.grown:
            await self.grown.wait_for(lambda: len(self.parts) >= parts)

    async def run(self, items: Sequence[str], share: float = 0.25) -> list[str]:
        parts = await self.slicer.run("m", items, self.compute, size=len, share=share)
        return [item for part in parts for item in part]


def test_alone_it_runs_whole() -> None:
    machine = Machine(0.001, live=False)
    items = ["abc"] * 100
    assert asyncio.run(machine.run(items)) == items
    assert machine.parts == [100]


def test_beside_streams_it_gets_its_share_in_short_slices() -> None:
    machine = Machine(0.001, live=True)
    items = ["ab"] * 500
    assert asyncio.run(machine.run(items)) == items
    assert max(machine.parts[2:]) * 2 * 0.002 <= SLICE_S * 1.01
    work = machine.busy / 2  # half of the device, while both ran
    assert 0.2 <= work / machine.now <= 0.27


def test_a_larger_share_is_faster() -> None:
    times = {}
    for share in (0.1, 0.25, 0.5):
        machine = Machine(0.001, live=True)
        asyncio.run(machine.run(["ab"] * 200, share))
        times[share] = machine.now
    assert times[0.1] > 2 * times[0.25] > 3 * times[0.5]


def test_when_the_streams_end_the_rest_runs_at_once() -> None:
    machine = Machine(0.001, live=True)

    async def main() -> list[str]:
        task = asyncio.ensure_future(machine.run(["ab"] * 500))
        await machine.has_run(5)
        machine.live = False
        return await task

    assert len(asyncio.run(main())) == 500
    assert machine.parts[-1] > 400


def test_calls_take_turns() -> None:
    machine = Machine(0.001, live=True)

    async def main() -> int:
        big = asyncio.ensure_future(machine.run(["ab"] * 500))
        await machine.has_run(3)
        before = len(machine.parts)
        await machine.run(["x"])
        took = len(machine.parts) - before
        big.cancel()
        return took

    assert asyncio.run(main()) <= 3


def test_a_cancelled_call_lets_others_go_on() -> None:
    machine = Machine(0.001, live=True)

    async def main() -> list[str]:
        first = asyncio.ensure_future(machine.run(["ab"] * 500))
        await machine.has_run(3)
        first.cancel()
        return await machine.run(["x", "y"])

    assert asyncio.run(main()) == ["x", "y"]

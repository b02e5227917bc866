"""Shares the compute of a device between models whose engines know nothing of each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

__all__ = ["TimeSlicer"]

SLICE_S = 0.02  # of batch work beside streams: what a reader may notice of it
_LEARNING = 0.3  # of the newest measurement in a running mean

Item = TypeVar("Item")
Result = TypeVar("Result")


class TimeSlicer:
    """Lets batch work (embedding, reranking) on a device go on in short slices while somebody reads a stream there.

    Streams are never held up: their engines run as they are. Batch work gets the share of the device's time that
    weights give it: after a slice it waits for as long as that takes. While no stream is live it runs at once and
    whole. Slices of several calls take turns in the order in which they asked.

    A slice that ran beside a stream's steps is taken to have had half of the device, since both engines had work.

    Args:
        is_live: whether a stream is live on the device at this moment.
        clock: seconds; ``sleep`` waits for as many.
    """

    def __init__(
        self,
        is_live: Callable[[], bool],
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._is_live, self._clock, self._sleep = is_live, clock, sleep
        self._turn = asyncio.Lock()  # its waiters are served in the order in which they came
        self._unit_s: dict[str, float] = {}
        self._free_at = 0.0

    async def run(
        self,
        name: str,
        items: Sequence[Item],
        compute: Callable[[Sequence[Item]], Awaitable[Result]],
        *,
        size: Callable[[Item], int],
        share: float,
    ) -> list[Result]:
        """``compute`` on all items of a call of the model ``name``, in parts that go as slices; their results.

        An item's cost is taken to grow with its ``size``. ``share`` of the device's time is the model's while streams
        are live, more than 0 and less than 1.
        """
        results, at = [], 0
        while at < len(items):
            async with self._slice(share):
                live = self._is_live()
                part = self._part(name, items[at:], size) if live else items[at:]
                started = self._clock()
                results.append(await compute(part))
                self._learn(name, sum(map(size, part)), self._clock() - started, live, share)
                at += len(part)
        return results

    @asynccontextmanager
    async def _slice(self, share: float) -> AsyncIterator[None]:
        async with self._turn:
            while self._is_live() and (wait := self._free_at - self._clock()) > 0:
                await self._sleep(min(wait, SLICE_S))  # in parts: the last stream may end meanwhile
            yield

    def _part(self, name: str, items: Sequence[Item], size: Callable[[Item], int]) -> Sequence[Item]:
        """Items of a slice from the front; one, until it is known what a unit of size costs."""
        cost = self._unit_s.get(name)
        left = 0.0 if cost is None else SLICE_S / cost
        count = 0
        for item in items:
            left -= size(item)
            if count and left < 0:
                break
            count += 1
        return items[:count]

    def _learn(self, name: str, size: int, seconds: float, live: bool, share: float) -> None:
        cost = seconds / max(size, 1)
        old = self._unit_s.get(name, cost)
        self._unit_s[name] = old + _LEARNING * (cost - old)
        work = seconds / 2
        self._free_at = self._clock() + (max(work / share - seconds, 0.0) if live else 0.0)

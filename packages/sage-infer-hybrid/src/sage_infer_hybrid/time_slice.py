"""Share a device's compute between models with independent engines."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from attrs import define, field, frozen

__all__ = ["Batch", "Streams", "TimeSlicer"]

PART_S = 0.1  # maximum seconds of a part without streams, which bounds the wait of a new stream
LONGEST_SLICE_S, USUAL_SLICE_S, SHORTEST_SLICE_S = (
    0.05,
    0.01,
    0.002,
)  # of work; the usual one applies while the step time is unknown
PART_OF_STEP = 0.3  # maximum slice length, as a share of the streams' step
BESIDE_STREAMS = 0.45  # share of the device that a slice gets beside streams, as measured on CPUs
LEARNING = 0.3  # weight of the newest measurement in a running mean

Item = TypeVar("Item")
Result = TypeVar("Result")


class Streams(Protocol):
    """The streams that are live on a device."""

    def weight(self) -> float:
        """Sum of the weights of models with streams; 0 without streams."""
        ...

    def step_s(self) -> float | None:
        """Recent seconds between tokens of a stream; None if not known yet."""
        ...


@frozen
class Batch(Generic[Item, Result]):
    """A call with several items.

    Attributes:
        model_id: the model; calls of one model alternate.
        items: the inputs, at least one.
        sizes: size of each item, in a unit of roughly constant cost.
        compute: returns the result for a subsequence of the items.
        weight: the model's relative share of the device.
        due: the caller's deadline in the time of the slicer's clock.
    """

    model_id: str
    items: Sequence[Item]
    sizes: Sequence[int]
    compute: Callable[[Sequence[Item]], Awaitable[Result]]
    weight: float
    due: float = math.inf


@define(eq=False)
class _Job:
    """A call that continues in slices."""

    batch: Batch[Any, Any]
    at: int
    done: asyncio.Future[None]
    part: asyncio.Future[Any] | None = None  # in progress
    results: list[Any] = field(factory=list)


class TimeSlicer:
    """Runs batch work (embedding, reranking) on a device, in slices while a stream is live there.

    Streams are not paused: their engines run unchanged. While any stream is live, items of all open calls go to their
    engines together as a *slice*, shorter than a step of the streams. The next slice starts when the time used by batch
    work does not exceed its share of the device by weight. Among waiting models, the one with the least time relative
    to its weight is next. Its calls run in order of deadline; calls without a deadline alternate item by item.

    Without live streams, calls go directly to their engines in parts of ``PART_S``.

    Cost is learned per model: device seconds per unit of item size.

    Args:
        streams: the streams on the device.
        clock: monotonic time in seconds; ``sleep`` uses the same unit.
    """

    def __init__(
        self,
        streams: Streams,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._streams, self._clock, self._sleep = streams, clock, sleep
        self._jobs: list[_Job] = []  # in the order of their turns
        self._serving: asyncio.Task[None] | None = None
        self._unit_s: dict[str, float] = {}
        self._served: dict[
            str, float
        ] = {}  # device seconds divided by weight, per model (start-time fair queueing)
        self._now_served = 0.0  # that of the model served last, the initial value of a new model
        self._open = self._begun = 0  # parts in progress without live streams, and parts ever begun

    async def run(self, batch: Batch[Item, Result]) -> list[Result]:
        """Compute all items in parts; returns the parts' results in order."""
        results: list[Result] = []
        at = 0
        while at < len(batch.items):
            if self._streams.weight():
                return results + await self._in_slices(batch, at)
            end = at + self._count(batch, at, PART_S)
            results.append(await self._alone(batch, at, end))
            at = end
        return results

    # --- without live streams

    async def _alone(self, batch: Batch[Item, Result], at: int, end: int) -> Result:
        self._open += 1
        self._begun += 1
        begun, was_alone = self._begun, self._open == 1
        started = self._clock()
        try:
            result = await batch.compute(batch.items[at:end])
        finally:
            self._open -= 1
        # Only parts that ran alone measure their own cost.
        if was_alone and begun == self._begun and not self._streams.weight():
            self._learn(batch.model_id, sum(batch.sizes[at:end]), self._clock() - started)
        return result

    def _count(self, batch: Batch[Any, Any], at: int, seconds: float) -> int:
        """Number of items from ``at`` on that take up to ``seconds``, at least one; one if the cost is unknown."""
        unit_s = self._unit_s.get(batch.model_id)
        left = 0.0 if unit_s is None else seconds / unit_s
        count = 0
        for size in batch.sizes[at:]:
            left -= size
            if count and left < 0:
                break
            count += 1
        return count

    def _learn(self, model_id: str, size: int, seconds: float) -> None:
        cost = seconds / max(size, 1)
        old = self._unit_s.get(model_id, cost)
        self._unit_s[model_id] = max(old + LEARNING * (cost - old), 1e-12)

    # --- while streams are live

    async def _in_slices(self, batch: Batch[Any, Any], at: int) -> list[Any]:
        job = _Job(batch, at, asyncio.get_running_loop().create_future())
        name = batch.model_id
        self._served[name] = max(self._served.get(name, 0.0), self._now_served)
        self._jobs.append(job)
        if self._serving is None or self._serving.done():
            self._serving = asyncio.ensure_future(self._serve())
        try:
            await job.done
        except asyncio.CancelledError:  # the caller no longer waits; cancel its part
            if job.part is not None:
                job.part.cancel()
            raise
        return job.results

    async def _serve(self) -> None:
        try:
            await self._serve_slices()
        except Exception as error:  # on any error, no caller may be left waiting
            for job in self._jobs:
                if not job.done.done():
                    job.done.set_exception(error)
            self._jobs = []

    async def _serve_slices(self) -> None:
        """Run slices until no call waits."""
        free_at = self._clock()
        while self._jobs:
            while (wait := free_at - self._clock()) > 0 and self._streams.weight():
                await self._sleep(min(wait, LONGEST_SLICE_S))  # limited, because the last stream may end
            live = self._streams.weight()
            self._jobs = [job for job in self._jobs if not job.done.done()]  # without cancelled calls
            parts = self._next_slice(self._slice_s() if live else PART_S)
            if not parts:
                return
            own = sum({job.batch.model_id: job.batch.weight for job in self._jobs}.values())
            started = self._clock()
            await self._run_slice(parts)
            seconds = self._clock() - started
            work = seconds * (BESIDE_STREAMS if live else 1.0)
            self._learn_slice(parts, work)
            free_at = self._clock() + max(work * (own + live) / own - seconds, 0.0)
            self._jobs = [job for job in self._jobs if not job.done.done()]

    def _slice_s(self) -> float:
        step_s = self._streams.step_s()
        if step_s is None:
            return USUAL_SLICE_S
        return min(max(PART_OF_STEP * step_s, SHORTEST_SLICE_S), LONGEST_SLICE_S)

    def _next_slice(self, seconds: float) -> dict[_Job, int]:
        """Number of items per call in the next slice: at least one in total, and only one if its cost is unknown."""
        # Calls of each model as a heap: by deadline, then by items in this slice, then by turn.
        waiting: dict[str, list[tuple[float, int, int, _Job]]] = {}
        for turn, job in enumerate(self._jobs):
            waiting.setdefault(job.batch.model_id, []).append((job.batch.due, 0, turn, job))
        for calls in waiting.values():
            heapq.heapify(calls)
        parts: dict[_Job, int] = {}
        while waiting:
            name = min(waiting, key=lambda model_id: (self._served[model_id], waiting[model_id][0]))
            calls = waiting[name]
            due, taken, turn, job = calls[0]
            unit_s = self._unit_s.get(name)
            cost = (unit_s or 0.0) * job.batch.sizes[job.at + taken]
            if parts and (unit_s is None or cost > seconds):
                break
            parts[job] = taken + 1
            self._now_served = self._served[name]
            self._served[name] += cost / job.batch.weight
            seconds -= cost
            if unit_s is None:
                break
            if job.at + taken + 1 < len(job.batch.items):
                heapq.heapreplace(calls, (due, taken + 1, turn, job))
            else:
                heapq.heappop(calls)
                if not calls:
                    del waiting[name]
        self._jobs.sort(
            key=lambda job: job in parts
        )  # calls without items in this slice are first in the next
        return parts

    async def _run_slice(self, parts: dict[_Job, int]) -> None:
        under_way = []
        for job, count in parts.items():
            part = job.batch.items[job.at : job.at + count]
            job.part = asyncio.ensure_future(job.batch.compute(part))
            under_way.append(job.part)
        results = await asyncio.gather(*under_way, return_exceptions=True)
        for (job, count), result in zip(parts.items(), results, strict=True):
            job.at += count
            if job.done.done():
                continue
            if isinstance(result, BaseException):
                job.done.set_exception(result)
                continue
            job.results.append(result)
            if job.at == len(job.batch.items):
                job.done.set_result(None)

    def _learn_slice(self, parts: dict[_Job, int], work: float) -> None:
        """Split the slice's measured time between models in proportion to their predicted cost."""
        sizes: dict[str, int] = {}
        for job, count in parts.items():
            size = sum(job.batch.sizes[job.at - count : job.at])
            sizes[job.batch.model_id] = sizes.get(job.batch.model_id, 0) + size
        predicted = sum(size * self._unit_s.get(name, 0.0) for name, size in sizes.items())
        for name, size in sizes.items():
            share = size * self._unit_s[name] / predicted if name in self._unit_s else 1.0
            self._learn(name, size, work * share)

"""Requests that wait for a place in the batch: their order, their gauges, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sage_infer.contracts import EngineStats
from sage_infer.errors import RequestCancelled
from sage_infer.schemas import RequestOptions

from sage_infer_testing.features import when_claimed
from sage_infer_testing.kits.generation.base import GenerationSuite
from sage_infer_testing.reading import generate_one, greedy, read

__all__ = ["QueueTests"]

_LARGEST_BATCH = 64  # that a test fills
_ATTEMPTS = 5  # to find all of the batch still running when the others were sent
_POLL_S = 0.001


class QueueTests(GenerationSuite, kit=True):
    """What happens beyond ``max_batch_size``; skipped where the batch is too large to fill in a test."""

    @contextlib.asynccontextmanager
    async def full_batch(self, backend: Any) -> AsyncIterator[list[Any]]:
        """Streams of as many running requests as the batch holds; they are cancelled in the end."""
        size = backend.get_capability().max_batch_size
        if size > _LARGEST_BATCH or (self.max_queue is not None and self.max_queue < size + 3):
            pytest.skip(f"max_batch_size is {size}: open the backend with a smaller one")
        first = backend.get_capability().supports("priority")
        options = RequestOptions(priority=-100) if first else None
        await self.idle(backend)
        streams: list[Any] = []
        try:
            for _ in range(size):
                streams += await backend.generate(self.prompts[0], self.endless(backend), options=options)
            yield streams
        finally:
            for stream in streams:
                stream.cancel()
            await self.idle(backend)

    @when_claimed("priority")
    async def test_smaller_priorities_start_first(self, backend: Any) -> None:
        """Of the requests that wait, those with the smallest ``priority`` start first, whenever they came.

        How to fix: order the queue by (priority, arrival); negative numbers are allowed. Where all of this is too much
        for the engine, do not claim ``priority``.
        """
        for _ in range(_ATTEMPTS):
            order: list[int] = []

            async def first_token(priority: int, order: list[int] = order) -> None:
                await generate_one(
                    backend, self.prompts[1], greedy(1), options=RequestOptions(priority=priority)
                )
                order.append(priority)

            async with self.full_batch(backend) as running:
                waiting = []
                for priority in (5, -1, 0):
                    waiting.append(asyncio.ensure_future(first_token(priority)))
                    await asyncio.sleep(0)
                stats = backend.stats()
                while stats.waiting < len(waiting) and not order and not _over(running):
                    await asyncio.sleep(_POLL_S)
                    stats = backend.stats()
                fair = stats.waiting == len(waiting) and not order and not _over(running)
                running[0].cancel()  # one place: who waits goes through it one by one
                await asyncio.gather(*waiting)
                fair = fair and not _over(running[1:])
            if fair:
                assert order == [-1, 0, 5], (
                    f"requests with the priorities 5, -1 and 0 waited, and started in the order {order}"
                )
                return
        pytest.skip("the batch emptied before three requests waited beside it")

    async def test_waiting_requests_can_be_ended(self, backend: Any) -> None:
        """``abort``, ``cancel`` and, where claimed, a deadline end a request that waits for a place in the batch.

        How to fix: look for the request in the queue as well as in the batch, and look at the deadlines of both in
        every step.
        """
        ways = ["abort", "cancel"]
        ways += ["deadline"] if backend.get_capability().supports("deadline") else []
        for way in ways:
            async with self.full_batch(backend) as running:
                options = RequestOptions(deadline=0.001) if way == "deadline" else None
                (stream,) = await backend.generate(
                    self.prompts[1], self.endless(backend), request_id=self.new_id(), options=options
                )
                if way == "abort":
                    await backend.abort(stream.request_id)
                elif way == "cancel":
                    stream.cancel()
                error: RequestCancelled | None = None
                try:
                    await read(stream)
                except RequestCancelled as raised:
                    error = raised
                assert error is not None, f"{way} did not end a request that waited beside a full batch"
                expected = "deadline" if way == "deadline" else "caller"
                assert error.by == expected, f"{way} ended it, and the error says {error.by!r}: {error}"
                assert _over(running) < len(running), (
                    f"{way} ended a waiting request only after all running ones had ended"
                )

    async def test_open_requests_are_counted(self, backend: Any) -> None:
        """While a request is open ``stats`` counts it as running or waiting, and once it runs its KV blocks as taken.

        How to fix: take the gauges from the scheduler's own queues; a gateway steers by them.
        """
        before = await self.idle(backend)
        (stream,) = await backend.generate(self.prompts[0], self.endless(backend))
        async with stream:
            shown, taken = False, not before.kv_blocks_total
            stats: EngineStats = backend.stats()
            while stats.finished == before.finished and stream.finish_reason is None:
                shown = shown or stats.running + stats.waiting > 0
                taken = taken or stats.kv_blocks_free < before.kv_blocks_free
                if shown and taken:
                    break
                await asyncio.sleep(_POLL_S)
                stats = backend.stats()
        assert shown, f"a request was open, and stats() never said running or waiting: {stats}"
        assert taken, f"a request ran, and stats() never said fewer free KV blocks: {stats}"
        await self.idle(backend, free_blocks=before.kv_blocks_free)


def _over(streams: list[Any]) -> int:
    """How many of the streams have ended."""
    return sum(stream.finish_reason is not None for stream in streams)

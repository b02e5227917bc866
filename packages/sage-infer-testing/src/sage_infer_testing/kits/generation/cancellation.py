"""Every way to cancel a request: its consumer receives an error, and the engine frees its resources."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from sage_infer.contracts import TokenStream
from sage_infer.errors import RequestCancelled
from sage_infer.schemas import RequestOptions, SamplingParams

from sage_infer_testing.features import when_claimed
from sage_infer_testing.kits.generation.base import GenerationSuite
from sage_infer_testing.reading import generate_one, greedy, read

__all__ = ["CancellationTests"]


async def first_delta(stream: TokenStream) -> None:
    """Read one delta and leave the loop."""
    async for _ in stream:
        break


async def rest(deltas: AsyncIterator[Any]) -> None:
    """Read to the end."""
    async for _ in deltas:
        pass


async def ended_by(what: str, reading: Awaitable[Any]) -> None:
    """Fail unless reading raises ``RequestCancelled`` with this cause."""
    __tracebackhide__ = True
    error: RequestCancelled | None = None
    try:
        await reading
    except RequestCancelled as raised:
        error = raised
    assert error is not None, f"ended by {what}, but the reader got a normal end instead of RequestCancelled"
    assert error.by == what, f"cancelled by {what}, but the error says {error.by!r}: {error}"


class CancellationTests(GenerationSuite, kit=True):
    """A cancelled request frees its capacity, regardless of how it was cancelled."""

    async def frees(
        self,
        backend: Any,
        give_up: Callable[[TokenStream], Awaitable[None]],
        params: SamplingParams | None = None,
    ) -> TokenStream:
        """Start a long request, cancel it, and fail unless all of its resources are freed."""
        __tracebackhide__ = True
        before = await self.idle(backend)
        (stream,) = await backend.generate(
            self.prompts[0], params or self.endless(backend), request_id=self.new_id()
        )
        await give_up(stream)
        after = await self.idle(backend, free_blocks=before.kv_blocks_free)
        full = backend.get_capability().max_sequence_length
        spent = after.output_tokens - before.output_tokens
        assert spent < full // 2, f"the request continued for {spent} tokens instead of being stopped"
        assert after.finished == before.finished + 1, (
            f"finished went from {before.finished} to {after.finished}"
        )
        return stream  # type: ignore[no-any-return]  # the backend's stream

    async def test_leaving_the_loop_frees_the_request(self, backend: Any) -> None:
        """``break`` out of ``async for`` stops the request and frees its KV.

        How to fix: use ``BufferedTokenStream``, whose iterator cancels the request when it is deleted. In
        ``on_cancel``, remove the sequence from the batch and free its blocks before the next step.
        """
        await self.frees(backend, first_delta)

    async def test_cancel_frees_the_request(self, backend: Any) -> None:
        """``cancel`` stops the request; further reads raise ``RequestCancelled``, ``finish_reason`` is ``cancelled``.

        How to fix: ``cancel`` must return immediately, end the stream with ``RequestCancelled`` and free the request.
        """

        async def cancel(stream: TokenStream) -> None:
            stream.cancel()
            stream.cancel()
            await ended_by("caller", read(stream))

        async def cancel_running(stream: TokenStream) -> None:
            deltas = aiter(stream)
            await anext(deltas)
            stream.cancel()
            await ended_by("caller", rest(deltas))

        await self.frees(backend, cancel_running)
        stream = await self.frees(backend, cancel)
        assert stream.finish_reason == "cancelled", f"finish_reason is {stream.finish_reason!r}"

    async def test_abort_frees_the_request(self, backend: Any) -> None:
        """``abort(request_id)`` from another task raises ``RequestCancelled`` in the consumer.

        How to fix: look up the request by its id, in the queue and in the batch, and end its stream with
        ``RequestCancelled``.
        """

        async def abort(stream: TokenStream) -> None:
            reading = asyncio.ensure_future(read(stream))
            await asyncio.sleep(0)
            await backend.abort(stream.request_id)
            await ended_by("caller", reading)

        async def abort_running(stream: TokenStream) -> None:
            deltas = aiter(stream)
            await anext(deltas)
            await backend.abort(stream.request_id)
            await ended_by("caller", rest(deltas))

        await self.frees(backend, abort_running)
        stream = await self.frees(backend, abort)
        assert stream.finish_reason == "cancelled", f"finish_reason is {stream.finish_reason!r}"

    async def test_leaving_async_with_frees_the_request(self, backend: Any) -> None:
        """``async with stream`` frees a request whose loop was never entered.

        How to fix: call ``cancel`` in ``__aexit__``.
        """

        async def enter_and_leave(stream: TokenStream) -> None:
            async with stream:
                pass

        await self.frees(backend, enter_and_leave)

    async def test_cancelling_the_reading_task_frees_the_request(self, backend: Any) -> None:
        """Cancelling the asyncio task that reads, as after a client's disconnect, stops the request.

        How to fix: let ``CancelledError`` pass through ``__anext__``, and free the request when the iterator is
        deleted.
        """

        async def hang_up(stream: TokenStream) -> None:
            entered = asyncio.Event()

            async def consume() -> None:
                async for _ in stream:
                    entered.set()

            task = asyncio.ensure_future(consume())
            await entered.wait()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, RequestCancelled):
                await task

        await self.frees(backend, hang_up)

    async def test_abort_reaches_every_part(self, backend: Any) -> None:
        """``abort(id)`` ends ``id/0``, ``id/1``, … ; a longer id with the same prefix continues.

        How to fix: match the id itself, and ids that start with the id and a slash.
        """
        before = await self.idle(backend)
        request_id = self.new_id()
        parts = await backend.generate(list(self.prompts[:2]), self.endless(backend), request_id=request_id)
        (other,) = await backend.generate(
            self.prompts[2], self.endless(backend), request_id=f"{request_id}-2"
        )
        async with other:
            await backend.abort(request_id)
            for stream in parts:
                await ended_by("caller", read(stream))
            assert other.finish_reason is None, f"{other.request_id} was ended too"
        await self.idle(backend, free_blocks=before.kv_blocks_free)

    async def test_abort_of_an_unknown_request_does_nothing(self, backend: Any) -> None:
        """``abort`` with an unknown id, or the id of a finished request, is not an error.

        How to fix: ignore unknown ids; the request may just have finished.
        """
        await backend.abort("kit-never-was")
        output = await self.greedy_output(backend, max_tokens=1)
        await backend.abort(output.request_id)

    async def test_others_go_on_when_one_is_cancelled(self, backend: Any) -> None:
        """Cancellation of a request does not affect other requests in the batch.

        How to fix: remove only the cancelled sequence's rows and blocks.
        """
        expected = await self.greedy_output(backend, self.prompts[1])
        (leaver,) = await backend.generate(self.prompts[0], self.endless(backend))
        staying = asyncio.ensure_future(self.greedy_output(backend, self.prompts[1]))
        await first_delta(leaver)
        self.same(await staying, expected, "beside a cancelled request and alone")

    @when_claimed("parallel_sampling")
    async def test_cancel_ends_all_completions(self, backend: Any) -> None:
        """Cancelling a request with ``n=2`` frees both completions.

        How to fix: free all sequences of a request.
        """
        await self.frees(backend, first_delta, SamplingParams(temperature=1.0, ignore_eos=True, n=2))

    @when_claimed("deadline")
    async def test_deadline_ends_the_request(self, backend: Any) -> None:
        """A request past its deadline ends with ``RequestCancelled`` by ``deadline``; a request in time finishes.

        How to fix: check the deadlines of waiting and running requests in every step, and set ``by="deadline"``.
        """
        before = await self.idle(backend)
        late = RequestOptions(deadline=0.001)
        await ended_by(
            "deadline", generate_one(backend, self.prompts[0], self.endless(backend), options=late)
        )
        await self.idle(backend, free_blocks=before.kv_blocks_free)
        patient = RequestOptions(deadline=10 * self.timeout_s)
        await generate_one(backend, self.prompts[0], greedy(2), options=patient)

    async def test_close_ends_open_requests(self) -> None:
        """``close`` ends open streams with ``RequestCancelled`` by ``close``; no reader waits forever.

        How to fix: stop the scheduler in ``close``, then end every open stream with ``by="close"``. Clients retry such
        requests on another instance.
        """
        backend = await self._started()
        try:
            (stream,) = await backend.generate(self.prompts[0], self.endless(backend))
            reading = asyncio.ensure_future(read(stream))
            await asyncio.sleep(0)
        finally:
            await backend.close()
        await ended_by("close", reading)

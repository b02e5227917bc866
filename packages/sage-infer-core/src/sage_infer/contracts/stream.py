"""Token streams: the consumer's interface, and the implementation shared by in-process engines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from types import TracebackType
from typing import Protocol, runtime_checkable

from sage_infer.compat import Self
from sage_infer.errors import RequestCancelled, SageInferError
from sage_infer.schemas import FinishReason, Timing, TokenDelta, Usage

__all__ = ["BufferedTokenStream", "TokenStream", "collect_text"]


@runtime_checkable
class TokenStream(Protocol):
    """The streamed output of one prompt, for a single consumer.

    ``async for delta in stream`` yields deltas until every completion has finished. The loop raises engine
    failures and external cancellations. Leaving the loop early cancels the request and frees the engine's
    resources; ``async with stream`` guarantees this even if the loop is never entered.

    ``finish_reason``, ``usage`` and ``timing`` are ``None`` until the stream has ended.
    """

    @property
    def request_id(self) -> str: ...
    @property
    def finish_reason(self) -> FinishReason | None:
        """Why completion 0 ended; the deltas carry the reason of each completion."""
        ...

    @property
    def usage(self) -> Usage | None: ...
    @property
    def timing(self) -> Timing | None: ...
    def __aiter__(self) -> AsyncIterator[TokenDelta]: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def cancel(self) -> None:
        """Stop generation and return immediately. Further reads raise ``RequestCancelled``.

        Safe to call at any time and more than once. It has no effect after the end of the stream.
        """
        ...


async def collect_text(stream: TokenStream) -> str:
    """Return the whole text of completion 0."""
    return "".join([delta.text async for delta in stream if delta.index == 0])


class BufferedTokenStream:
    """A ``TokenStream`` that an engine feeds from the event loop's thread.

    The engine calls ``push`` for each delta, then ``finish`` or ``fail`` exactly once. An engine in another
    thread submits all calls of a step with one ``loop.call_soon_threadsafe``. ``on_cancel`` is called once, from
    the event loop's thread, if the consumer stops reading before the end.
    """

    def __init__(self, request_id: str, on_cancel: Callable[[], None]) -> None:
        self._request_id = request_id
        self._on_cancel: Callable[[], None] | None = on_cancel
        self._ready: list[TokenDelta] = []
        self._loop: asyncio.AbstractEventLoop | None = None  # the reader's loop, set by its first read
        self._thread = 0  # the reader's thread; getting the running loop instead would need a system call
        self._waiter: asyncio.Future[None] | None = None
        self._take: Callable[[TokenDelta], bool] | None = None
        self._error: SageInferError | None = None
        self._ended = False
        self._finish_reason: FinishReason | None = None
        self._usage: Usage | None = None
        self._timing: Timing | None = None

    @property
    def request_id(self) -> str:
        return self._request_id

    @property
    def finish_reason(self) -> FinishReason | None:
        return self._finish_reason

    @property
    def usage(self) -> Usage | None:
        return self._usage

    @property
    def timing(self) -> Timing | None:
        return self._timing

    # --- the engine's side

    def push(self, delta: TokenDelta) -> None:
        if self._ended:
            return
        take, waiter = self._take, self._waiter
        # With nobody waiting, the reader has earlier deltas to read.
        if take is not None and waiter is not None and not waiter.done():
            try:
                if take(delta):
                    return
            except Exception:  # of the consumer, not the engine: it recurs when the loop reads this delta
                self._take = None
        self._ready.append(delta)
        self._wake()

    def finish(self, reason: FinishReason, usage: Usage, timing: Timing) -> None:
        """End the stream normally; ``reason`` is the finish reason of completion 0."""
        self._end(reason, None, usage, timing)

    def fail(self, error: SageInferError, usage: Usage | None = None, timing: Timing | None = None) -> None:
        """End the stream with an error, which is raised after all earlier deltas have been read."""
        self._end("cancelled" if isinstance(error, RequestCancelled) else "error", error, usage, timing)

    def _end(
        self, reason: FinishReason, error: SageInferError | None, usage: Usage | None, timing: Timing | None
    ) -> None:
        if self._ended:
            return
        self._ended = True
        self._on_cancel = None
        self._finish_reason, self._error, self._usage, self._timing = reason, error, usage, timing
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- the consumer's side

    def on_delta(self, take: Callable[[TokenDelta], bool]) -> None:
        """Pass deltas to ``take`` as they are pushed, without waking the reader's task for each.

        ``take`` is called while the reader waits in its ``async for``, and returns True for each delta that it has
        handled. The loop receives the rest in order: deltas for which ``take`` returned False, deltas pushed while
        the reader was busy, and the end.
        """
        self._take = take

    def cancel(self) -> None:
        on_cancel, self._on_cancel = self._on_cancel, None
        if on_cancel is not None:
            on_cancel()
            self.fail(RequestCancelled(f"request {self._request_id} was cancelled by its caller"))

    def __aiter__(self) -> AsyncIterator[TokenDelta]:
        return _Iteration(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    async def _next(self, taken: list[TokenDelta]) -> bool:
        """Move all pending deltas into ``taken``; return False at the end of the stream."""
        if self._loop is None:
            self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        while not self._ready:
            if self._ended:
                if self._error is not None:
                    raise self._error
                return False
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                # Do not rely on ``_Iteration.__del__``: the task keeps the exception, and with it the iteration,
                # alive until the next garbage collection.
                self.cancel()
                raise
            finally:
                self._waiter = None
        taken.extend(reversed(self._ready))
        self._ready.clear()
        return True


class _Iteration:
    """One ``async for`` loop. Only the loop refers to it, so its deletion shows that the consumer left."""

    def __init__(self, stream: BufferedTokenStream) -> None:
        self._stream = stream
        self._taken: list[TokenDelta] = []  # newest first, so that pop() is cheap

    def __aiter__(self) -> AsyncIterator[TokenDelta]:
        return self

    async def __anext__(self) -> TokenDelta:
        if not self._taken and not await self._stream._next(self._taken):
            raise StopAsyncIteration
        return self._taken.pop()

    def __del__(self) -> None:
        # Usually this runs in the reader's thread, but a garbage collection may run in any thread.
        loop = self._stream._loop
        if loop is None or self._stream._thread == threading.get_ident():
            self._stream.cancel()
        else:
            with suppress(RuntimeError):  # a closed loop has no readers
                loop.call_soon_threadsafe(self._stream.cancel)

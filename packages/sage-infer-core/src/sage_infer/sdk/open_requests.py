"""The open requests of one backend: unique ids, admission, abort, deadlines and close."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Literal, TypeVar

from sage_infer.compat import is_cancelling
from sage_infer.contracts import request_ids
from sage_infer.errors import InvalidRequest, Overloaded, RequestCancelled
from sage_infer.schemas import RequestOptions
from sage_infer.sdk.admission import RetryEstimate

__all__ = ["OpenRequest", "OpenRequests"]

T = TypeVar("T")
CancelledBy = Literal["caller", "deadline", "close"]

_CAUSES = {
    "caller": "was aborted",
    "deadline": "missed its deadline",
    "close": "ended with the backend's close",
}


class OpenRequest:
    """One request, or one prompt of a request with several, from acceptance to its end.

    Attributes:
        request_id: id of the request.
        size: number that the request adds to the count limited by ``OpenRequests.max_open``.
    """

    def __init__(self, request_id: str, size: int = 1) -> None:
        self.request_id, self.size = request_id, size
        self._error: RequestCancelled | None = None
        self._callbacks: list[Callable[[RequestCancelled], object]] = []
        self._timer: asyncio.TimerHandle | None = None

    def on_cancel(self, callback: Callable[[RequestCancelled], object]) -> None:
        """Call ``callback`` with the error when the request is cancelled, or immediately if it already was.

        The callback runs in the thread that cancels the request; for deadlines this is the event loop's thread.
        """
        if self._error is not None:
            callback(self._error)
        else:
            self._callbacks.append(callback)

    def cancel(self, by: CancelledBy = "caller") -> None:
        """End the request with ``RequestCancelled``, unless it was already cancelled."""
        if self._error is None:
            self._error = RequestCancelled(f"request {self.request_id} {_CAUSES[by]}", by=by)
            callbacks, self._callbacks = self._callbacks, []
            for callback in callbacks:
                callback(self._error)

    def check(self) -> None:
        """Raise ``RequestCancelled`` if the request was cancelled."""
        if self._error is not None:
            raise self._error

    async def wait(self, future: Future[T]) -> T:
        """Wait for the result of another thread's future. Cancellation of the request cancels the future.

        Raises:
            RequestCancelled: the request was cancelled.
        """
        self.on_cancel(lambda _: future.cancel())
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not is_cancelling():
                self.check()
            raise


class OpenRequests:
    """Table of open requests by id, for one event loop. ``abort`` and ``cancel_all`` are thread-safe.

    Attributes:
        max_open: maximum sum of the sizes of open requests; None for no limit.
        finished: number of requests that have ended, for any reason.
    """

    def __init__(self, max_open: int | None = None) -> None:
        self.max_open, self.finished = max_open, 0
        self._calls: dict[str, dict[str, OpenRequest]] = {}  # parts by id, by the id of their call
        self._size = 0
        self._retry = RetryEstimate()

    def __len__(self) -> int:
        """Return the sum of the sizes of open requests."""
        return self._size

    def accept(
        self,
        request_id: str | None = None,
        count: int = 1,
        *,
        options: RequestOptions | None = None,
        size: int = 1,
    ) -> list[OpenRequest]:
        """Open ``count`` requests of one call, either all or none. Close each with ``finish``.

        Without an id, a unique one is generated. The requests are cancelled at the deadline of ``options``.

        Raises:
            InvalidRequest: the id is not a non-empty string or belongs to an open request, or the call exceeds
                ``max_open``.
            Overloaded: there is no capacity now.
        """
        request_id = uuid.uuid4().hex if request_id is None else _checked(request_id)
        ids = request_ids(request_id, count)
        if request_id in self._calls or any(name in self._calls or self._part(name) for name in ids):
            raise InvalidRequest(
                f"request id {request_id!r} is in use; wait for its end, or choose another id"
            )
        self._admit(count * size)
        parts = {name: OpenRequest(name, size) for name in ids}
        self._calls[request_id] = parts
        self._size += count * size
        if options is not None and options.deadline is not None:
            for part in parts.values():
                self._limit(part, options.deadline)
        return list(parts.values())

    def finish(self, request: OpenRequest) -> None:
        """Close a request and release its id. Safe to call twice."""
        if self._part(request.request_id) is not request:
            return
        call = self._call_of(request.request_id)
        del self._calls[call][request.request_id]
        if not self._calls[call]:
            del self._calls[call]
        if request._timer is not None:
            request._timer.cancel()
        self._size -= request.size
        self.finished += 1
        self._retry.ended()

    @contextmanager
    def call(
        self, request_id: str | None = None, *, options: RequestOptions | None = None, size: int = 1
    ) -> Iterator[OpenRequest]:
        """Open a request for the duration of the block, with ``accept`` and ``finish``."""
        (request,) = self.accept(request_id, options=options, size=size)
        try:
            yield request
        finally:
            self.finish(request)

    def abort(self, request_id: str) -> None:
        """Cancel a request and its parts (``id/0``, …); unknown ids are ignored."""
        parts = list(self._calls.get(request_id, {}).values())
        if not parts and (part := self._part(request_id)):
            parts = [part]
        for request in parts:
            request.cancel("caller")

    def cancel_all(self, by: CancelledBy = "close") -> None:
        """Cancel every open request."""
        for parts in list(self._calls.values()):
            for request in list(parts.values()):
                request.cancel(by)

    def _admit(self, size: int) -> None:
        if self.max_open is None or self._size + size <= self.max_open:
            return
        if size > self.max_open:
            raise InvalidRequest(
                f"one call of {size} exceeds the limit of {self.max_open} open requests; split it"
            )
        raise Overloaded(
            f"{self._size} requests are open, the limit is {self.max_open}; retry later",
            retry_after=self._retry.retry_after,
        )

    def _limit(self, request: OpenRequest, deadline_s: float) -> None:
        if deadline_s <= 0:
            request.cancel("deadline")
        else:
            loop = asyncio.get_running_loop()
            request._timer = loop.call_later(deadline_s, request.cancel, "deadline")

    def _call_of(self, request_id: str) -> str:
        """Return the id of the call of a request: ``a`` for ``a``, and for ``a/0`` if ``a`` has several parts."""
        return request_id if request_id in self._calls else request_id.rpartition("/")[0]

    def _part(self, request_id: str) -> OpenRequest | None:
        return self._calls.get(self._call_of(request_id), {}).get(request_id)


def _checked(request_id: object) -> str:
    if not isinstance(request_id, str) or not request_id:
        raise InvalidRequest(f"request_id must be a non-empty string, got {request_id!r}")
    return request_id

"""The open requests of one backend: unique ids, admission, abort, deadlines and close."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Literal, TypeVar

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
    """One request, or one prompt of a request with several, from its acceptance to its end.

    Attributes:
        request_id: its id.
        size: how much of ``OpenRequests.max_open`` it takes.
    """

    def __init__(self, request_id: str, size: int = 1) -> None:
        self.request_id, self.size = request_id, size
        self._error: RequestCancelled | None = None
        self._callbacks: list[Callable[[RequestCancelled], object]] = []
        self._timer: asyncio.TimerHandle | None = None

    def on_cancel(self, callback: Callable[[RequestCancelled], object]) -> None:
        """Call ``callback`` with the error when the request is cancelled; immediately if it was already.

        It runs in the thread that cancels: the event loop's for deadlines.
        """
        if self._error is not None:
            callback(self._error)
        else:
            self._callbacks.append(callback)

    def cancel(self, by: CancelledBy = "caller") -> None:
        """End the request with ``RequestCancelled``, unless that has already happened."""
        if self._error is None:
            self._error = RequestCancelled(f"request {self.request_id} {_CAUSES[by]}", by=by)
            callbacks, self._callbacks = self._callbacks, []
            for callback in callbacks:
                callback(self._error)

    def check(self) -> None:
        """Raise the error of a request that was cancelled."""
        if self._error is not None:
            raise self._error

    async def wait(self, future: Future[T]) -> T:
        """The result of a future of another thread. Cancelling the request cancels the future.

        Raises:
            RequestCancelled: the request was cancelled.
        """
        self.on_cancel(lambda _: future.cancel())
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or not task.cancelling():
                self.check()
            raise


class OpenRequests:
    """A table by id, for one event loop. ``abort`` and ``cancel_all`` may be called in any thread.

    Attributes:
        max_open: sizes of open requests that are accepted together; None for no limit.
        finished: requests that have ended, however they did.
    """

    def __init__(self, max_open: int | None = None) -> None:
        self.max_open, self.finished = max_open, 0
        self._calls: dict[str, dict[str, OpenRequest]] = {}  # parts by id, by the id of their call
        self._size = 0
        self._retry = RetryEstimate()

    def __len__(self) -> int:
        """Sizes of the open requests."""
        return self._size

    def accept(
        self,
        request_id: str | None = None,
        count: int = 1,
        *,
        options: RequestOptions | None = None,
        size: int = 1,
    ) -> list[OpenRequest]:
        """Open ``count`` requests of one call: all, or none. Each is to be closed with ``finish``.

        Without an id, a unique one is drawn. The deadline of ``options`` cancels them.

        Raises:
            InvalidRequest: the id is not a text, or belongs to an open request; or the call is larger than
                ``max_open``.
            Overloaded: there is no room now.
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
        """Close a request: its id is free again. Closing it a second time does nothing."""
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
        """A request that is open in this block; ``accept`` and ``finish`` in one."""
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
        """Id of the call that a request is of: ``a`` for ``a``, and for ``a/0`` where ``a`` has several parts."""
        return request_id if request_id in self._calls else request_id.rpartition("/")[0]

    def _part(self, request_id: str) -> OpenRequest | None:
        return self._calls.get(self._call_of(request_id), {}).get(request_id)


def _checked(request_id: object) -> str:
    if not isinstance(request_id, str) or not request_id:
        raise InvalidRequest(f"request_id must be a non-empty string, got {request_id!r}")
    return request_id

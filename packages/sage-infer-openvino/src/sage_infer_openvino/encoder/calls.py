"""Open calls of an encoder by id, for ``abort`` and deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

from attrs import define, field
from sage_infer.errors import InvalidRequest, RequestCancelled
from sage_infer.schemas import RequestOptions

__all__ = ["OpenCall", "OpenCalls"]

T = TypeVar("T")


@define(eq=False)
class OpenCall:
    """One call, from its arrival to its result."""

    request_id: str | None
    _error: RequestCancelled | None = field(default=None, init=False)
    _future: Future[object] | None = field(default=None, init=False)

    def end(self, error: RequestCancelled) -> None:
        """End the call with ``error``, unless it has already ended."""
        if self._error is None:
            self._error = error
            if self._future is not None:
                self._future.cancel()

    def check(self) -> None:
        """Raise the error that ended the call."""
        if self._error is not None:
            raise self._error

    async def wait(self, future: Future[T]) -> T:
        """The future's result; raises the error that ended the call."""
        self._future = future  # type: ignore[assignment]  # only to cancel it
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or not task.cancelling():
                self.check()
            raise


def check_request_id(request_id: object) -> None:
    if request_id is not None and (not isinstance(request_id, str) or not request_id):
        raise InvalidRequest(f"request_id must be a non-empty string, got {request_id!r}")


class OpenCalls:
    """Calls of one backend. ``abort`` may come from any thread."""

    def __init__(self) -> None:
        self._calls: dict[str, OpenCall] = {}

    @contextmanager
    def open(self, request_id: str | None, options: RequestOptions | None) -> Iterator[OpenCall]:
        """A call that ends at the deadline of ``options``.

        Raises:
            InvalidRequest: a call with this id is open, or the id is invalid.
        """
        check_request_id(request_id)
        if request_id in self._calls:
            raise InvalidRequest(f"request id {request_id!r} is in use; ids must be unique")
        call = OpenCall(request_id)
        if request_id is not None:
            self._calls[request_id] = call
        timer, deadline = None, None if options is None else options.deadline
        if deadline is not None:
            late = RequestCancelled(f"request {request_id or '(no id)'} missed its deadline", by="deadline")
            if deadline <= 0:
                call.end(late)
            else:
                timer = asyncio.get_running_loop().call_later(deadline, call.end, late)
        try:
            yield call
        finally:
            if timer is not None:
                timer.cancel()
            if request_id is not None:
                del self._calls[request_id]

    def abort(self, request_id: str) -> None:
        """End the call of this id; unknown ids are ignored."""
        call = self._calls.get(request_id)
        if call is not None:
            call.end(RequestCancelled(f"request {request_id} was aborted", by="caller"))

"""Open requests: their ids, their limit, and their end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sage_infer.errors import InvalidRequest, Overloaded, RequestCancelled, SageInferError
from sage_infer.sdk.admission import RetryEstimate

from sage_infer_vllm.requests.delivery import Delivery
from sage_infer_vllm.requests.pooling import PoolingCall

__all__ = ["OpenRequests"]

_SHORTEST_RETRY_S = 0.1


class OpenRequests:
    """The open requests of one engine, used in one event loop.

    ``abort`` returns an awaitable that removes a collector's request from the engine.
    """

    def __init__(self, max_open: int, abort: Callable[[Any], Any]) -> None:
        self.finished = 0
        self._max_open = max_open
        self._abort = abort
        self._open: dict[str, Delivery | None] = {}
        self._tasks: set[asyncio.Future[Any]] = set()
        self._calls: dict[str, PoolingCall] = {}
        self._waiters: list[asyncio.Future[None]] = []
        self._failed: Callable[[str], SageInferError] | None = None
        self._retry = RetryEstimate(shortest_s=_SHORTEST_RETRY_S)

    def __len__(self) -> int:
        return len(self._open) + sum(call.texts for call in self._calls.values())

    def deliveries(self) -> list[Delivery]:
        """The open requests with a stream."""
        return [delivery for delivery in self._open.values() if delivery is not None]

    def calls(self) -> list[PoolingCall]:
        """The open calls of the pooling runner."""
        return list(self._calls.values())

    def reserve(self, ids: Sequence[str]) -> None:
        """Reserve these ids, all or none.

        Raises:
            InvalidRequest: an id is in use, or there are more ids than the limit.
            Overloaded: too many are open.
            SageInferError: all have failed already.
        """
        for request_id in ids:
            self._check(request_id)
            self._check_unique(request_id)
        if len(ids) > self._max_open:
            raise InvalidRequest(
                f"{len(ids)} prompts in one call exceed the limit of {self._max_open} (max_queue)"
            )
        if len(self) + len(ids) > self._max_open:
            raise self._overloaded()
        self._open.update(dict.fromkeys(ids))

    def release(self, ids: Sequence[str]) -> None:
        """Release reserved ids whose requests have not begun."""
        for request_id in ids:
            if self._open.get(request_id, self) is None:
                del self._open[request_id]

    @contextmanager
    def call(self, request_id: str, *, texts: int, deadline: float | None) -> Iterator[PoolingCall]:
        """Context of an open call of the pooling runner; ``abort``, the deadline and ``fail_all`` stop it.

        Raises:
            InvalidRequest: the id is in use.
            Overloaded: too many texts are open.
            SageInferError: all have failed already.
        """
        self._check(request_id)
        self._check_unique(request_id)
        if len(self) and len(self) + texts > self._max_open:
            raise self._overloaded()
        call, timer = PoolingCall(request_id, texts), None
        if deadline is not None:
            late = RequestCancelled(
                f"request {request_id} did not end within its {deadline:g} s", by="deadline"
            )
            timer = asyncio.get_running_loop().call_later(deadline, call.stop, late)
        self._calls[request_id] = call
        try:
            yield call
        finally:
            if timer is not None:
                timer.cancel()
            del self._calls[request_id]
            self._count_end(texts if call.begun else 0)

    def add(
        self, request_id: str, *, prompt_tokens: int, logprobs: int | None, deadline: float | None
    ) -> Delivery:
        """Create the delivery for a reserved id; it ends with ``RequestCancelled`` after ``deadline`` seconds."""
        timer: asyncio.TimerHandle | None = None

        def ended(delivery: Delivery) -> None:
            if timer is not None:
                timer.cancel()
            self._ended(delivery)

        delivery = Delivery(
            request_id, prompt_tokens=prompt_tokens, logprobs=logprobs, cancel=self._cancelled, ended=ended
        )
        if deadline is not None:
            late = RequestCancelled(
                f"request {request_id} did not end within its {deadline:g} s", by="deadline"
            )
            timer = asyncio.get_running_loop().call_later(deadline, self._stop, delivery, late)
        self._open[request_id] = delivery
        return delivery

    def abort(self, request_id: str) -> None:
        """End a request and its parts with ``RequestCancelled``; unknown ids are ignored."""
        parts = f"{request_id}/"
        for delivery in self.deliveries():
            if delivery.request_id == request_id or delivery.request_id.startswith(parts):
                self._stop(delivery, RequestCancelled(f"request {delivery.request_id} was aborted"))
        if request_id in self._calls:
            self._calls[request_id].stop(RequestCancelled(f"request {request_id} was aborted"))

    def fail_all(self, error: Callable[[str], SageInferError]) -> None:
        """End every request with ``error(request id)``, and reject later ones with it.

        This includes requests that are still being tokenized: a stopped engine would never respond to them.
        """
        self._failed = error
        for delivery in self.deliveries():
            self._stop(delivery, error(delivery.request_id))
        for call in self.calls():
            call.stop(error(call.request_id))

    def run(self, message: Awaitable[Any]) -> None:
        """Send a message to the engine; ``settled`` waits for it."""
        task = asyncio.ensure_future(message)
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    async def settled(self) -> None:
        """Wait until every request that ended early is aborted in the engine."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def one_ended(self) -> None:
        """Wait until a request ends."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _check(self, request_id: str) -> None:
        if self._failed is not None:
            raise self._failed(request_id)

    def _check_unique(self, request_id: str) -> None:
        if request_id in self._open or request_id in self._calls:
            raise InvalidRequest(f"request id {request_id!r} is in use; ids must be unique")

    def _overloaded(self) -> Overloaded:
        return Overloaded(
            f"{len(self)} requests are open, the limit is {self._max_open}; retry later",
            retry_after=self._retry.retry_after,
        )

    def _cancelled(self, delivery: Delivery) -> None:
        """The stream's reader has cancelled it."""
        self._stop(delivery, RequestCancelled(f"request {delivery.request_id} was cancelled by its caller"))

    def _stop(self, delivery: Delivery, error: SageInferError) -> None:
        collector = delivery.collector
        delivery.fail(error)
        if collector is not None:
            self.run(self._abort(collector))

    def _forget(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved and ignored: a dead engine cannot abort

    def _ended(self, delivery: Delivery) -> None:
        del self._open[delivery.request_id]
        self._count_end(1)

    def _count_end(self, requests: int) -> None:
        self.finished += requests
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._retry.ended()

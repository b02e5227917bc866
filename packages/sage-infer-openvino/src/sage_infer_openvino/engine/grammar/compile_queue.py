"""The thread that compiles constraints, shared by tenants in turn."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition
from typing import Generic, TypeVar

from sage_infer.call_thread import run_into
from sage_infer.errors import Overloaded

__all__ = ["CompileQueue"]

T = TypeVar("T")

_MOST_WAITING = 32  # constraints of one tenant
_REST_S = 1.0  # of a tenant whose constraint took all of its time, which is half of this


class CompileQueue(Generic[T]):
    """Runs one function at a time. Safe to use from several threads.

    Tenants are served in turn, so that many constraints of one do not delay another's. After a constraint that was too
    expensive (``rest``), those of its tenant wait for a moment, in which others are served and the engine is not
    disturbed. A local caller, the empty tenant, does not wait.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        # A separate thread: a slow constraint must not occupy one that others need.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sage-grammar")
        self._clock = clock
        self._changed = Condition()
        self._lines: OrderedDict[str, deque[tuple[Future[T], Callable[[], T]]]] = OrderedDict()
        self._resting: dict[str, float] = {}

    def submit(self, tenant: str, function: Callable[[], T]) -> Future[T]:
        """Run ``function`` when it is the tenant's turn.

        Raises:
            Overloaded: too many functions of the tenant wait.
        """
        future: Future[T] = Future()
        with self._changed:
            line = self._lines.setdefault(tenant, deque())
            if len(line) >= _MOST_WAITING:
                message = f"{len(line)} constraints of this client wait to be compiled; retry later"
                raise Overloaded(message, retry_after=1.0)
            line.append((future, function))
            self._executor.submit(self._run_next)
            self._changed.notify()
        return future

    def rest(self, tenant: str) -> None:
        """The tenant's constraint was too expensive."""
        if not tenant:
            return
        now = self._clock()
        with self._changed:
            self._resting = {name: until for name, until in self._resting.items() if until > now}
            self._resting[tenant] = now + _REST_S

    def close(self) -> None:
        """Cancel what waits. Safe to call twice."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        with self._changed:
            waiting = [future for line in self._lines.values() for future, _ in line]
            self._lines.clear()
            self._changed.notify()
        for future in waiting:
            future.cancel()

    def _run_next(self) -> None:
        with self._changed:
            while self._lines and (wait := self._next_in()) > 0:
                self._changed.wait(wait)
            if not self._lines:
                return  # closed
            tenant = next(name for name in self._lines if self._rest_of(name) <= 0)
            line = self._lines.pop(tenant)
            future, function = line.popleft()
            if line:
                self._lines[tenant] = line
        run_into(future, function)

    def _next_in(self) -> float:
        """Seconds until a tenant that waits need not rest."""
        return min(map(self._rest_of, self._lines))

    def _rest_of(self, tenant: str) -> float:
        return self._resting.get(tenant, 0.0) - self._clock()

"""The thread that calls the lower store."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from sage_infer_kvstore.breaker import Breaker

__all__ = ["LowerThread"]

T = TypeVar("T")


class LowerThread:
    """Runs calls one after the other, in a daemon thread: a call that hangs keeps no process alive.

    Args:
        wait_s: how long ``call`` waits. A call that runs longer than that counts as a failure, and nothing more is
            accepted until it returns.
    """

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._busy_since: float | None = None
        self._breaker = Breaker()
        threading.Thread(target=self._run, name="sage-kv-lower", daemon=True).start()

    @property
    def failures(self) -> int:
        """Calls that raised, or did not return in time."""
        return self._breaker.failures

    @property
    def is_available(self) -> bool:
        """Whether the lower store answers, as far as is known."""
        since = self._busy_since
        is_stuck = since is not None and time.monotonic() - since > self._wait_s
        return not is_stuck and not self._breaker.is_open

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Run ``function`` after the calls before it; one that raises counts as a failure."""
        future: Future[T] = Future()

        def task() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = function()
            except BaseException as error:
                self._breaker.failed()
                future.set_exception(error)
            else:
                self._breaker.succeeded()
                future.set_result(result)

        self._tasks.put(task)
        return future

    def call(self, function: Callable[[], T], otherwise: T, wait_s: float | None = None) -> T:
        """The result of ``function``; ``otherwise`` where it raises or takes too long."""
        if not self.is_available:
            return otherwise
        future = self.submit(function)
        try:
            return future.result(self._wait_s if wait_s is None else wait_s)
        except TimeoutError:
            if not future.cancel():
                self._breaker.failed()
            return otherwise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and not future.done():
                raise
            return otherwise

    def stop(self) -> None:
        self._tasks.put(None)

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            self._busy_since = time.monotonic()
            task()
            self._busy_since = None

"""Calls of functions in other threads, with futures of their results."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TypeVar

__all__ = ["CallThread", "run_into"]

T = TypeVar("T")


def run_into(future: Future[T], function: Callable[[], T]) -> None:
    """Call ``function``, and set the result or the exception of ``future``; a cancelled future prevents the call."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)


class CallThread:
    """One daemon thread that calls functions in order. A call that hangs in it keeps no process alive."""

    def __init__(self, name: str) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._busy_since: float | None = None
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, function: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()

        self._tasks.put(lambda: run_into(future, function))
        return future

    def busy_s(self) -> float:
        """Seconds that the current task has been running."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def drain(self, timeout_s: float) -> bool:
        try:
            self.submit(lambda: None).result(timeout_s)
        except FutureTimeoutError:
            return False
        return True

    def stop(self) -> None:
        self._tasks.put(None)

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            self._busy_since = time.monotonic()
            task()
            self._busy_since = None
            task = None  # its result may be all that is left of a request

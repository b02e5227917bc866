"""The thread that calls the lower store."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TypeVar

from sage_infer.call_thread import CallThread

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
        self._thread, self._breaker = CallThread("sage-kv-lower"), Breaker()

    @property
    def failures(self) -> int:
        """Calls that raised, or did not return in time."""
        return self._breaker.failures

    @property
    def is_available(self) -> bool:
        """Whether the lower store answers, as far as is known."""
        return self._thread.busy_s() <= self._wait_s and not self._breaker.is_open

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Run ``function`` after the calls before it; one that raises counts as a failure."""

        def counted() -> T:
            try:
                result = function()
            except BaseException:
                self._breaker.failed()
                raise
            self._breaker.succeeded()
            return result

        return self._thread.submit(counted)

    def call(self, function: Callable[[], T], otherwise: T, wait_s: float | None = None) -> T:
        """The result of ``function``; ``otherwise`` where it raises or takes too long."""
        if not self.is_available:
            return otherwise
        future = self.submit(function)
        try:
            return future.result(self._wait_s if wait_s is None else wait_s)
        except FutureTimeoutError:
            if not future.cancel():
                self._breaker.failed()
            return otherwise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and not future.done():
                raise
            return otherwise

    def stop(self) -> None:
        self._thread.stop()

"""An event loop in its own thread, which runs one instance and all of its tests.

The background tasks of the instance continue between tests, pytest needs no asyncio plug-in, and a backend that hangs
or blocks the loop fails its test instead of hanging the whole run.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

__all__ = ["LoopThread"]

T = TypeVar("T")

_GRACE_S = 5.0  # for a cancelled coroutine to end, and for the loop to answer at all


class LoopThread:
    """Runs coroutines for a synchronous caller, one event loop for all of them."""

    def __init__(self, name: str = "contract-kit") -> None:
        self._loop = asyncio.new_event_loop()
        self._blocked = ""
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T], *, timeout_s: float) -> T:
        """Run the coroutine and return its result; its exceptions are re-raised.

        If it takes longer than ``timeout_s`` seconds, the test fails and the message says where the coroutine waits. If
        the loop no longer responds, all later calls fail immediately.
        """
        __tracebackhide__ = True
        if self._blocked:
            coroutine.close()
            pytest.fail(f"not run: {self._blocked}")
        ended = threading.Event()

        async def supervised() -> T:
            try:
                return await coroutine
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(supervised(), self._loop)
        try:
            error = future.exception(timeout=timeout_s)
        except concurrent.futures.CancelledError:
            pytest.fail("the test was cancelled: something cancelled the task that it ran in, or awaited")
        except concurrent.futures.TimeoutError:
            where = self._where(coroutine)
            future.cancel()
            if not self._blocked:
                ended.wait(_GRACE_S)
            pytest.fail(f"did not end within {timeout_s:g} s; {where}")
        if error is not None:
            raise error
        return future.result()

    def _where(self, coroutine: Coroutine[Any, Any, Any]) -> str:
        """Return where the unfinished coroutine waits, innermost call last."""
        if not self._answers():
            self._blocked = "the event loop is blocked: the backend runs synchronous work on it for too long"
            return self._blocked
        calls, awaited = [], coroutine
        while (frame := getattr(awaited, "cr_frame", None)) is not None:
            name = awaited.__qualname__  # type: ignore[attr-defined]  # coroutines of "async def" have both
            calls.append(f"{name} ({frame.f_code.co_filename}:{frame.f_lineno})")
            awaited = awaited.cr_await  # type: ignore[attr-defined]
        return "it waits in " + ", in ".join(calls)

    def _answers(self) -> bool:
        answered = threading.Event()
        self._loop.call_soon_threadsafe(answered.set)
        return answered.wait(_GRACE_S)

    def close(self) -> None:
        """Cancel running tasks and end the thread."""
        if self._blocked or self._loop.is_closed():
            return  # a blocked thread is a daemon: it ends with the process
        ending = asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop)
        concurrent.futures.wait([ending], timeout=_GRACE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_GRACE_S)
        if not self._thread.is_alive():
            self._loop.close()


async def _cancel_all() -> None:
    rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in rest:
        task.cancel()
    await asyncio.wait([*rest, asyncio.ensure_future(asyncio.sleep(0))], timeout=_GRACE_S)
    await asyncio.get_running_loop().shutdown_asyncgens()

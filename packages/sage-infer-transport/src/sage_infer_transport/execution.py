"""Execution of steps in threads, in which blocking copies and sockets need no event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from attrs import define, field
from sage_infer.contracts import StepCallback
from sage_infer.errors import SageInferError
from sage_infer.schemas import TransportSettings, TransportStep
from sage_infer.sdk import BaseTransport, PlanRun

__all__ = ["Cancelled", "Failed", "Move", "ThreadedTransport"]

_SLICE_S = 0.05


class Failed(OSError):
    """A step failed; the text is its message in the report."""


class Cancelled(Exception):
    """The plan was cancelled."""


@define
class Move:
    """One step while it runs. ``check`` is called between blocks."""

    step: TransportStep
    stop: threading.Event = field(factory=threading.Event)
    retries: int = 0

    def check(self) -> None:
        """Raises:
        Cancelled: the plan was cancelled.
        """
        if self.stop.is_set():
            raise Cancelled


class ThreadedTransport(BaseTransport):
    """Base of transports that move chunks in threads, up to ``threads`` of them simultaneously.

    A thread moves one chunk after another without the event loop between them. It returns to the loop after 50 ms, so
    that several plans share the threads.
    """

    def __init__(self, settings: TransportSettings, *, threads: int) -> None:
        super().__init__(settings)
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None

    def _move(self, move: Move) -> None:
        """Move one chunk; runs in a thread."""
        raise NotImplementedError

    async def work(self, run: PlanRun, on_step: StepCallback | None) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="sage-kv-transport")
        loop, stop = asyncio.get_running_loop(), threading.Event()
        raised: list[BaseException] = []

        def report(index: int, callback: StepCallback) -> None:
            try:
                callback(index, run.status(index))
            except BaseException as error:
                raised.append(error)
                stop.set()

        def ended(index: int) -> None:
            if on_step is not None:
                loop.call_soon_threadsafe(report, index, on_step)

        more = True
        while more:
            running = loop.run_in_executor(self._pool, self._drain, run, stop, ended)
            try:
                more = await asyncio.shield(running)
            except asyncio.CancelledError:
                stop.set()  # the target is as if never written once the thread has stopped
                await asyncio.wait([running])
                if not running.cancelled():
                    running.exception()  # retrieved: Cancelled, or the chunk had arrived
                raise
            except Cancelled:  # by an exception of on_step
                more = False
            if raised:
                raise raised[0]

    def _drain(self, run: PlanRun, stop: threading.Event, ended: Callable[[int], None]) -> bool:
        """Move chunks for a while; returns whether there may be more."""
        until = time.monotonic() + _SLICE_S
        while not stop.is_set() and (index := run.take()) is not None:
            begun = time.monotonic()
            if not run.late(index):
                move, error = Move(run.plan.steps[index], stop), None
                try:
                    self._move(move)
                except (OSError, SageInferError) as failed:
                    error = failed
                run.ended(index, seconds=time.monotonic() - begun, retries=move.retries, error=error)
            ended(index)
            if time.monotonic() > until:
                return True
        return False

    async def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

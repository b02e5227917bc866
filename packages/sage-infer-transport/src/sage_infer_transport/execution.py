"""Execution of steps in threads, in which blocking copies and sockets need no event loop."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from attrs import define, field
from sage_infer.schemas import TransportSettings, TransportStep
from sage_infer.sdk import BaseTransport

__all__ = ["Cancelled", "Failed", "Move", "ThreadedTransport"]


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
    """Base of transports that move a chunk in a thread, up to ``threads`` of them simultaneously."""

    def __init__(self, settings: TransportSettings, *, threads: int) -> None:
        super().__init__(settings)
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None

    def _move(self, move: Move) -> None:
        """Move one chunk; runs in a thread."""
        raise NotImplementedError

    async def move(self, step: TransportStep) -> int:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="sage-kv-transport")
        move = Move(step)
        running = asyncio.get_running_loop().run_in_executor(self._pool, self._move, move)
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            move.stop.set()  # the target is as if never written once the thread has stopped
            await asyncio.wait([running])
            if not running.cancelled():
                running.exception()  # retrieved: Cancelled, or the chunk had arrived
            raise
        return move.retries

    async def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

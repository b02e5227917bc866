"""Background tasks of one owner."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

__all__ = ["Tasks"]


class Tasks:
    """Keeps tasks alive until they end, as the event loop does not."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run ``work`` in the background."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def wait(self) -> None:
        """Wait until those that run now have ended, except the caller's own."""
        await asyncio.gather(*self._others(), return_exceptions=True)

    async def cancel(self) -> None:
        """Cancel all, except the caller's own, and wait until they have ended."""
        for task in self._others():
            task.cancel()
        await self.wait()

    def _others(self) -> list[asyncio.Task[Any]]:
        current = asyncio.current_task()
        return [task for task in self._running if task is not current]

"""Work of many connections in turns, so that it does not delay the rest of the event loop.

The event loop handles everything that is ready in one iteration, and reads no socket before its end. Where each of a
thousand connections or streams has a millisecond of work, other clients would wait for a second.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from attrs import define, field

__all__ = ["LoopTime", "Turns"]


@define(eq=False)
class Turns:
    """Calls functions in order, one in each iteration of the event loop."""

    _waiting: deque[Callable[[], object]] = field(factory=deque, init=False)

    def add(self, call: Callable[[], object]) -> None:
        self._waiting.append(call)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        call = self._waiting.popleft()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._next)
        call()


@define(eq=False)
class LoopTime:
    """Lets coroutines work in each iteration of the event loop until they have used ``most_s`` together."""

    most_s: float = 0.005
    _began: float | None = field(default=None, init=False)  # their work in this iteration

    async def turn(self) -> None:
        """Wait until this iteration has time for the caller's next piece of work."""
        while self._began is not None and time.perf_counter() - self._began > self.most_s:  # noqa: ASYNC110
            await asyncio.sleep(0)
        if self._began is None:
            self._began = time.perf_counter()
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._began = None

"""Bounds on bodies that are being received, all together: their memory, and the rate at which they are taken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from attrs import define, field

from sage_infer_serve.http.errors import HTTPError, unavailable

__all__ = ["FREE", "Intake"]

FREE = 64 * 1024
"""Bytes of each body that do not count: the number of connections bounds them."""


@define(eq=False)
class Intake:
    """Without it, clients that send large bodies would share the server's memory and its event loop among them.

    Attributes:
        most: bytes that may be held.
        rate: bytes per second that are taken, after a burst of ``burst``: reading, joining and decoding a megabyte
            costs the event loop some milliseconds.
        held: bytes of bodies in memory.
    """

    most: int
    rate: float = 64e6
    burst: float = 32e6
    clock: Callable[[], float] = time.monotonic
    held: int = field(default=0, init=False)
    _level: float = field(default=0.0, init=False)
    _at: float = field(default=0.0, init=False)

    def check(self, size: int) -> None:
        """Refuse ``size`` bytes for which there is no memory.

        Raises:
            HTTPError: there is none (503).
        """
        if self.held + size > self.most:
            raise self._full()

    async def take(self, size: int) -> None:
        """Hold ``size`` bytes more, after a pause if many were taken lately.

        Raises:
            HTTPError: there is no memory for them (503).
        """
        self.check(size)
        self.held += size
        now = self.clock()
        self._level = max(0.0, self._level - (now - self._at) * self.rate) + size
        self._at = now
        if self._level > self.burst:
            await asyncio.sleep((self._level - self.burst) / self.rate)

    def give_back(self, size: int) -> None:
        self.held -= size

    def _full(self) -> HTTPError:
        return unavailable("too many large requests are being received; retry later", 1.0, code="overloaded")

"""The line of requests that wait for room in the buffers of a ``KVBroker``."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from attrs import define, field

__all__ = ["RequestLine", "Turn"]


@define(eq=False)
class Turn:
    """A request in the line, and the pages that it waits for. ``event`` belongs to ``loop``."""

    keys: Sequence[bytes]
    loop: asyncio.AbstractEventLoop = field(factory=asyncio.get_running_loop)
    event: asyncio.Event = field(factory=asyncio.Event)
    is_announced: bool = False

    async def wait(self) -> None:
        """Wait until the line may have moved on."""
        await self.event.wait()
        self.event.clear()


class RequestLine:
    """Requests by arrival. ``wake`` may be called from any thread, also by the garbage collector."""

    def __init__(self) -> None:
        self._turns: deque[Turn] = deque()

    def __bool__(self) -> bool:
        return bool(self._turns)

    @contextmanager
    def joined(self, keys: Sequence[bytes]) -> Iterator[Turn]:
        """A place at the end of the line, until the request leaves it."""
        turn = Turn(keys)
        self._turns.append(turn)
        try:
            yield turn
        finally:
            self._remove(turn)
            self.wake()

    def is_first(self, turn: Turn) -> bool:
        return bool(self._turns) and self._turns[0] is turn

    def announced(self, limit: int) -> Iterator[Sequence[bytes]]:
        """The pages of the first requests that have at most ``limit`` pages together, once for each request."""
        pages = 0
        for turn in list(self._turns):
            pages += len(turn.keys)
            if pages > limit:
                return
            if not turn.is_announced:
                turn.is_announced = True
                yield turn.keys

    def wake(self) -> None:
        """Let the first request look for room."""
        for turn in list(self._turns):
            if self._woke(turn):
                return

    def wake_all(self) -> None:
        """Let all requests see that the broker was closed."""
        for turn in list(self._turns):
            self._woke(turn)

    def _woke(self, turn: Turn) -> bool:
        try:
            turn.loop.call_soon_threadsafe(turn.event.set)
        except RuntimeError:  # its loop was closed
            self._remove(turn)
            return False
        return True

    def _remove(self, turn: Turn) -> None:
        with suppress(ValueError):
            self._turns.remove(turn)

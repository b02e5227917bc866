"""How long streams stand still while they move from one instance to another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from attrs import frozen
from sage_infer.compat import timeout
from sage_infer.contracts import Metric

from sage_llm.manager.live_instance import LiveInstance
from sage_llm.manager.request import ManagedRequest
from sage_llm.receipts import Move, Receipts

__all__ = ["Interruptions"]


@frozen
class _Open:
    request: ManagedRequest
    since: float
    instance: str
    why: str


class Interruptions:
    """Moves of requests that have output, from the loss of their instance to their next token.

    Args:
        receipts: keep each move, for ``sage llm explain``.

    Attributes:
        count: number of moves after which output continued.
        wait_s: sum of their times until they were sent to an instance.
        restore_s: sum of the times from then to the next token, in which prompt and output are computed again.
    """

    def __init__(self, receipts: Receipts) -> None:
        self._receipts = receipts
        self._open: dict[str, _Open] = {}
        self._changed = asyncio.Event()
        self.count, self.wait_s, self.restore_s = 0, 0.0, 0.0

    def begin(self, request: ManagedRequest, instance: str, why: str) -> None:
        """A request has lost its instance; another loss before its next token belongs to the same interruption.

        Pauses are no interruptions: their requests wait for others on purpose.
        """
        if request.is_paused:
            return
        self._open.setdefault(request.request_id, _Open(request, time.monotonic(), instance, why))
        self._changed.set()  # it may have been computed again on an instance that is lost now

    def continued(self, request: ManagedRequest) -> None:
        """A request has its first token from an instance."""
        found = self._open.pop(request.request_id, None)
        if found is None:
            return
        now = time.monotonic()
        move = Move(
            found.instance,
            found.why,
            request.last_dispatched_at - found.since,
            now - request.last_dispatched_at,
        )
        self.count, self.wait_s = self.count + 1, self.wait_s + move.wait_s
        self.restore_s += move.restore_s
        self._receipts.moved(request.request_id, move)
        self._changed.set()

    def ended(self, request_id: str) -> None:
        """A request has ended."""
        self._open.pop(request_id, None)
        self._changed.set()

    async def until_restored(self, model_id: str, within_s: float) -> None:
        """Wait until no instance computes a moved request of a model again, for at most ``within_s`` seconds."""
        await self._while(lambda: any(r.attempt is not None for r in self._moving(model_id)), within_s)

    async def until_fewer(self, count: int, instance: LiveInstance, within_s: float) -> None:
        """Wait until fewer than ``count`` requests of an instance's model move, or none is left on it."""
        await self._while(
            lambda: bool(instance.attempts) and len(self._moving(instance.model_id)) >= count, within_s
        )

    def _moving(self, model_id: str) -> list[ManagedRequest]:
        return [one.request for one in self._open.values() if one.request.model_id == model_id]

    async def _while(self, condition: Callable[[], bool], within_s: float) -> None:
        with suppress(TimeoutError):
            async with timeout(within_s):
                while condition():
                    self._changed.clear()
                    await self._changed.wait()

    def metrics(self) -> Iterator[Metric]:
        for name, text, value in (
            ("interruptions", "Moves of requests with output, after which it continued.", self.count),
            ("interruption_wait_seconds", "Time until they were sent to an instance.", self.wait_s),
            ("interruption_restore_seconds", "Time from then to their next token.", self.restore_s),
        ):
            yield Metric(name=f"sage_llm_{name}_total", kind="counter", help=text, value=value)

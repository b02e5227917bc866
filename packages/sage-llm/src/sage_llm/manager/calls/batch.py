"""A batch of embedding or reranking requests that are sent to an instance together."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

from attrs import define, field

from sage_llm.manager.calls.call import ManagedCall
from sage_llm.manager.live_instance import LiveInstance

__all__ = ["Batch", "BatchLimits"]


@define(kw_only=True)
class BatchLimits:
    """Limits of batches.

    Attributes:
        tokens: tokens above which a batch gets no further request; a larger request is a batch of its own.
        window_s: time for which a batch waits for further requests while its instance computes another one.
    """

    tokens: int = 2048
    window_s: float = 0.005


@define(eq=False)
class Batch:
    """Requests for one instance.

    Attributes:
        calls: the requests, some of which may have ended.
        tokens: estimated number of their tokens.
        closed: set when it gets no further request, and is computed.
    """

    instance: LiveInstance
    key: Hashable
    calls: list[ManagedCall] = field(factory=list)
    tokens: int = 0
    closed: asyncio.Event = field(factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    tasks: dict[ManagedCall, asyncio.Task[None]] = field(factory=dict)

    def add(self, call: ManagedCall) -> None:
        self.calls.append(call)
        self.tokens += call.prompt_tokens
        call.leave = lambda: self._left(call)

    def close(self) -> None:
        """Compute it now."""
        self.closed.set()
        if self.instance.forming.get(self.key) is self:
            del self.instance.forming[self.key]

    @property
    def open(self) -> list[ManagedCall]:
        return [call for call in self.calls if call.is_open]

    def _left(self, call: ManagedCall) -> None:
        """A request has ended. If it was cancelled, nothing is computed for it alone any more."""
        if call.outcome != "cancelled":
            return
        alone = self.tasks.get(call)
        if alone is not None:
            alone.cancel()
        if self.task is not None and not self.open:
            self.task.cancel()

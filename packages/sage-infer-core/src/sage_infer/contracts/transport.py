"""The contract of what moves KV between places."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from sage_infer.schemas import KVLocation, TransportPlan, TransportReport

__all__ = ["Transport"]


@runtime_checkable
class Transport(Protocol):
    """Executes plans. Chunks are verified on arrival: a chunk is whole at its target, or its step has failed."""

    def can_reach(self, source: KVLocation, target: KVLocation) -> bool:
        """Whether this transport can move bytes from ``source`` to ``target``."""
        ...

    async def execute(self, plan: TransportPlan) -> TransportReport:
        """Carry out a plan. A failed step is reported with one message, and does not stop the others.

        Carrying out a plan again is harmless.

        Cancelling the awaiting task stops the plan; targets that were not complete are as if never written.

        Raises:
            InvalidRequest: a step's source or target is not of a kind that this transport reaches; nothing moved.
        """
        ...

    async def close(self) -> None:
        """Free connections and buffers. Safe to call twice."""
        ...

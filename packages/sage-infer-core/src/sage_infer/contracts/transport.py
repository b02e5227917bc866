"""Contract of transports, which move KV between locations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from sage_infer.schemas import KVLocation, TransportPlan, TransportReport
from sage_infer.schemas.transport import StepStatus

__all__ = ["StepCallback", "Transport"]

StepCallback = Callable[[int, StepStatus], None]
"""``on_step(index, status)`` with the step's index in its plan."""


@runtime_checkable
class Transport(Protocol):
    """Executes transfer plans.

    Each chunk is verified on arrival. A step is done only if the whole chunk is at its target.
    """

    def can_reach(self, source: KVLocation, target: KVLocation) -> bool:
        """Return whether this transport can move data from ``source`` to ``target``."""
        ...

    def register(self, region: memoryview) -> None:
        """Register a memory region for reading or writing chunks, as RDMA requires.

        A transport that needs no registration returns immediately. A region can be registered repeatedly.
        """
        ...

    async def execute(self, plan: TransportPlan, *, on_step: StepCallback | None = None) -> TransportReport:
        """Execute a plan. A failed step is reported with one message and does not stop the other steps.

        ``on_step(index, status)`` is called in the event loop as each step ends, so that decoding can start with
        the chunks that have arrived. A plan can be executed repeatedly.

        Cancelling the awaiting task stops the plan; incomplete targets are left as if they were never written.

        Raises:
            InvalidRequest: this transport cannot reach the source or target of a step, or a chunk has no
                checksum; nothing was moved.
            UnsupportedFeature: the transport does not support the algorithm of a checksum (all support
                ``xxh3-64``).
        """
        ...

    async def close(self) -> None:
        """Close connections and free buffers. Safe to call twice."""
        ...

"""The contract of what moves KV between places."""

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
    """Executes plans. Chunks are verified on arrival: a chunk is whole at its target, or its step has
    failed.
    """

    def can_reach(self, source: KVLocation, target: KVLocation) -> bool:
        """Whether this transport can move bytes from ``source`` to ``target``."""
        ...

    def register(self, region: memoryview) -> None:
        """Prepare a region of memory (as RDMA needs it) that chunks will be read from or written to.

        A transport that needs no registration returns immediately. Registering a region twice is harmless.
        """
        ...

    async def execute(self, plan: TransportPlan, *, on_step: StepCallback | None = None) -> TransportReport:
        """Carry out a plan. A failed step is reported with one message, and does not stop the others.

        ``on_step(index, status)`` is called in the event loop as each step ends, so that a decode can begin
        with what has arrived. Carrying out a plan again is harmless.

        Cancelling the awaiting task stops the plan; targets that were not complete are as if never written.

        Raises:
            InvalidRequest: a step's source or target is not of a kind that this transport reaches, or its
                chunk has no checksum; nothing was moved.
            UnsupportedFeature: a checksum is not ``xxh3-64``, and the transport does not know its algorithm.
        """
        ...

    async def close(self) -> None:
        """Free connections and buffers. Safe to call twice."""
        ...

"""Limits how much calls with many sequences slow down other tenants."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sage_infer_openvino.engine.sequence import EngineRequest, SequenceState

__all__ = ["ExcessLimit", "StepShares"]

ExcessLimit = Callable[[int, int], int]
"""``(sequences, more)`` returns how many of ``more`` sequences may run in a step beside ``sequences``."""


class StepShares:
    """Which sequences run in one step while there are several tenants.

    Calls of one sequence always run. Of calls with several, one sequence per tenant always runs, and the other ones run
    as far as ``limit`` allows. ``requests`` are all those that run or wait, ``most`` is the size of the batch.
    """

    def __init__(self, requests: Iterable[EngineRequest], most: int, limit: ExcessLimit | None) -> None:
        self._started: set[str] = set()  # tenants with a sequence of a large call in the step
        self._left: int | None = None
        if limit is None:
            return
        tenants: set[str] = set()
        large: set[str] = set()  # tenants with large calls
        single: set[object] = set()
        for request in requests:
            tenants.add(request.tenant)
            if _is_large(request):
                large.add(request.tenant)
            else:
                single.add(request.call)
        if large and len(tenants) > 1:
            self._left = limit(min(most, len(single) + len(large)), most)

    def allows(self, sequence: SequenceState) -> bool:
        """Whether it may run in this step."""
        request = sequence.request
        return self._left != 0 or not _is_large(request) or request.tenant not in self._started

    def take(self, sequence: SequenceState) -> bool:
        """Whether it may run in this step; if so, it is counted."""
        if self._left is None or not _is_large(sequence.request):
            return True
        tenant = sequence.request.tenant
        if tenant not in self._started:
            self._started.add(tenant)
            return True
        if not self._left:
            return False
        self._left -= 1
        return True


def _is_large(request: EngineRequest) -> bool:
    return len(request.sequences) > 1 or len(request.siblings) > 1

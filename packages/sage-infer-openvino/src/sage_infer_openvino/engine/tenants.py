"""Limits how much tenants slow each other down: the work of each one lately, and its part of a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence, Set
from typing import Protocol

from sage_infer_openvino.engine.sequence import EngineRequest, SequenceState
from sage_infer_openvino.engine.waiting import turn

__all__ = ["BatchShares", "StepShares", "TenantLimits", "TenantWork"]

_KEPT = 0.99  # of a tenant's work after each step
_LEAST = 0.5  # tokens, below which a tenant is forgotten
_CREDIT = 100.0  # tokens of which a regular tenant that returns comes first, such as a short chat
_FIRST = 1.0  # the same for one that is not regular: it comes first for one step
_REGULAR = 100  # steps, after which a tenant without requests is no regular one
_DECODED = 4.0  # tokens of a prompt that cost about as much as a new token, which needs a step of its own


class TenantLimits(Protocol):
    """Limits of a step while there are several tenants."""

    def excess(self, sequences: int, more: int) -> int:
        """How many of ``more`` sequences of large calls may decode beside ``sequences``."""
        ...

    def prompt_beside(self, sequences: int, prompt_tokens: int) -> int:
        """Prompt tokens of other tenants beside the decoding sequences and prompt tokens of a step."""
        ...

    def prompt_alone(self) -> int:
        """Prompt tokens of a step, for which requests of other tenants may have to wait."""
        ...


class TenantWork:
    """Work per tenant lately, in tokens of prompts; older steps count less.

    A tenant whose requests arrive after a pause starts with about as much as the others (as in start-time fair
    queueing). Otherwise it would come first until it had caught up with all that the others did meanwhile.
    """

    def __init__(self) -> None:
        self._tokens: dict[str, float] = {}
        self._active: set[str] = set()
        self._steps = 0
        self._left: dict[str, int] = {}  # the step in which the last request of a tenant ended

    def ran(self, step: Iterable[tuple[SequenceState, int]]) -> None:
        """Record a step."""
        self._steps += 1
        tokens = {name: kept for name, old in self._tokens.items() if (kept := old * _KEPT) > _LEAST}
        for sequence, count in step:
            tenant = sequence.request.tenant
            tokens[tenant] = tokens.get(tenant, 0.0) + (count if count > 1 else _DECODED)
        self._tokens = tokens

    def is_shared(self) -> bool:
        """Whether there were several tenants lately."""
        return len(self._tokens) > 1

    def first(self, requests: Iterable[EngineRequest]) -> str | None:
        """The tenant that comes first: one without large calls, and of these the one with the least work.

        None unless there are several. ``requests`` are all those that run or wait.
        """
        large: dict[str, bool] = {}
        for request in requests:
            large[request.tenant] = large.get(request.tenant, False) or _is_large(request)
        self._activate(large.keys())
        if len(large) < 2:
            return None
        return min(sorted(large), key=lambda tenant: (large[tenant], self._tokens.get(tenant, 0.0)))

    def _activate(self, active: Set[str]) -> None:
        """Raise the work of tenants that return to that of the others, less some credit.

        A regular tenant keeps a part of the lead that it has because it used less. One that arrives has no such lead:
        with credit, a client with many small requests would come before the others for seconds.
        """
        since = self._steps - _REGULAR
        self._left = {tenant: step for tenant, step in self._left.items() if step >= since}
        self._left |= dict.fromkeys(self._active - active, self._steps)
        others = [self._tokens.get(tenant, 0.0) for tenant in active & self._active]
        usual = min(others) if others else max(self._tokens.values(), default=0.0)
        for tenant in active - self._active:
            credit = _CREDIT if self._left.pop(tenant, None) is not None else _FIRST
            if (least := usual - credit) > self._tokens.get(tenant, 0.0):
                self._tokens[tenant] = least
        self._active = set(active)


class StepShares:
    """Which sequences run in one step while there are several tenants.

    Calls of one sequence always run. Of calls with several, one sequence per tenant always runs, and the other ones run
    as far as ``limits`` allow. ``requests`` are all those that run or wait, ``most`` is the size of the batch.
    """

    def __init__(self, requests: Iterable[EngineRequest], most: int, limits: TenantLimits | None) -> None:
        self._started: set[str] = set()  # tenants with a sequence of a large call in the step
        self._left: int | None = None
        if limits is None:
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
            self._left = limits.excess(min(most, len(single) + len(large)), most)

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


class BatchShares:
    """Who gives way to ``own``, which waits: it is compared with other tenants by tenant, with its own one by call."""

    def __init__(self, own: EngineRequest, running: Sequence[SequenceState]) -> None:
        self._own, self._running = own, running
        self._calls = Counter(sequence.request.call for sequence in running)
        self._tenants = Counter(sequence.request.tenant for sequence in running)

    def givers(self) -> list[SequenceState]:
        """Running sequences of shares with at least two more than its own, the next one to give way last."""
        return sorted(filter(self.may_give, self._running), key=self._order)

    def spare(self, givers: Sequence[SequenceState]) -> list[SequenceState]:
        """Those of ``givers`` that may lose their blocks: each share keeps as many as the other one gets."""
        kept = Counter[object]()
        spare = []
        for giver in sorted(givers, key=turn):
            kept[self._share(giver)] += 1
            if kept[self._share(giver)] >= self._least(giver):
                spare.append(giver)
        return sorted(spare, key=self._order)

    def may_give(self, other: SequenceState) -> bool:
        request, own = other.request, self._own
        size = self._calls[request.call] if request.tenant == own.tenant else self._tenants[request.tenant]
        may = request.tenant != own.tenant or request.priority >= own.priority
        return may and size >= self._least(other)

    def _share(self, other: SequenceState) -> object:
        request = other.request
        return request.call if request.tenant == self._own.tenant else request.tenant

    def _least(self, other: SequenceState) -> int:
        own = self._own
        return 2 + (
            self._calls[own.call] if other.request.tenant == own.tenant else self._tenants[own.tenant]
        )

    def _order(self, other: SequenceState) -> tuple[int, int, tuple[int, float, int]]:
        return self._tenants[other.request.tenant], self._calls[other.request.call], turn(other)


def _is_large(request: EngineRequest) -> bool:
    return len(request.sequences) > 1 or len(request.siblings) > 1

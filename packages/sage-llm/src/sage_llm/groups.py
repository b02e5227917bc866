"""Instances of one model, sorted by their queues: what a ``Group`` of a snapshot is made of."""

from __future__ import annotations

import bisect
import math
from collections import deque

from sage_llm.types import Group, InstanceView

__all__ = ["Members"]

_WINDOW_S = 20.0  # over which the load ρ is measured
_SOON_S = 2.0  # after a queue has formed, in which its speed is unknown
_LEAST = 8  # slots per class of speed in ``Group.least``
_SMALL = 16  # instances of a group up to which ``Group.least`` has all of them


class Members:
    """Instances of one model, sorted by their queues within classes of speed."""

    def __init__(self) -> None:
        self.classes: dict[int, list[tuple[float, int]]] = {}
        self.at: dict[int, tuple[int, tuple[float, int]]] = {}
        self.views: dict[int, InstanceView] = {}
        self.waiting: dict[str, float] = {}  # prompt tokens of waiting requests, by request
        self.waiting_tokens = 0.0
        self.in_chains: dict[str, float] = {}  # those of ``waiting`` in chains with a deadline
        self.chain_tokens = 0.0
        self._drained: deque[tuple[float, float]] = deque()  # time and tokens of requests that left the queue
        self._drained_tokens = 0.0
        self._queue_since = 0.0
        self._has_returned = False  # the first instance since the model had none, while requests waited
        self.work = 0.0  # least work of recent requests in tokens, decayed
        self.work_at = 0.0
        self._fixed: Group | None = None  # what does not change with the load
        self._free = 0
        # The least loaded slots, and the shortest queue.
        self._least: tuple[tuple[int, ...], float] | None = None

    def put(self, slot: int, view: InstanceView | None) -> None:
        """Add, replace or remove (None) an instance."""
        before = self.views.pop(slot, None)
        if before is None and not self.views and self.waiting:
            self._has_returned = True
        speed = 0
        if before is not None:
            speed, entry = self.at.pop(slot)
            queue = self.classes[speed]
            del queue[bisect.bisect_left(queue, entry)]
        if view is not None:
            if before is None or before.rate != view.rate:
                speed = round(math.log2(view.rate))
            entry = view.queue_s, slot
            bisect.insort(self.classes.setdefault(speed, []), entry)
            self.at[slot] = speed, entry
            self.views[slot] = view
        self._least = None
        if before is None or view is None or _differ(before, view):
            self._fixed = None
        elif self._fixed is not None and self._fixed.mask >> slot & 1:
            self._free += max(view.kv_total - view.kv_reserved, 0) - max(
                before.kv_total - before.kv_reserved, 0
            )

    def group(self, now: float) -> Group:
        """The group of the model; ρ and waiting tokens are those of ``now``."""
        if self._has_returned:  # a time without instances says nothing about the speed of the queue
            self._has_returned, self._queue_since = False, now
            self._drained.clear()
            self._drained_tokens = 0.0
        if self._fixed is None:
            self._fixed = self._build()
            self._least = None
        fixed = self._fixed
        if self._least is None:
            slots = self._least_loaded(fixed)
            self._least = slots, min([self.at[slot][1][0] for slot in slots], default=0.0)
        least, shortest = self._least
        rho = 0.0
        if self.work and fixed.rate:
            rho = self.work * math.exp((self.work_at - now) / _WINDOW_S) / (fixed.rate * _WINDOW_S)
        return Group(
            fixed.mask,
            least,
            fixed.size,
            fixed.fastest,
            fixed.rate,
            shortest,
            self.waiting_tokens,
            len(self.waiting),
            self._drain(now) if self.waiting else 0.0,
            rho,
            fixed.adapters,
            self._free if fixed.kv_free >= 0 else -1,
            fixed.prefill,
            self.chain_tokens,
        )

    def _least_loaded(self, fixed: Group) -> tuple[int, ...]:
        least: list[int] = []
        for speed in sorted(self.classes):
            taken = 0
            for _, slot in self.classes[speed]:
                if fixed.mask >> slot & 1:
                    least.append(slot)
                    taken += 1
                    if taken == _LEAST and fixed.size > _SMALL:
                        break
        return tuple(least)

    def _build(self) -> Group:
        views = self.views
        whole = {slot: view for slot, view in views.items() if view.role != "prefill"} or views
        adapters: dict[str, int] = {}
        mask = 0
        for slot, view in whole.items():
            mask |= 1 << slot
            for adapter in view.adapters:
                adapters[adapter] = adapters.get(adapter, 0) | 1 << slot
        known = any(view.kv_total for view in whole.values())
        self._free = sum(max(view.kv_total - view.kv_reserved, 0) for view in whole.values())
        return Group(
            mask,
            size=len(whole),
            fastest=max((view.rate for view in views.values()), default=1.0),
            rate=sum(view.rate for view in whole.values()),
            adapters=adapters,
            kv_free=self._free if known else -1,
            prefill=sum(1 << slot for slot in views if slot not in whole),
        )

    def waits(self, request_id: str, tokens: float, now: float, *, in_chain: bool = False) -> None:
        """A request waits in the control plane, or waits with other tokens."""
        if in_chain:
            self.chain_tokens += tokens - self.in_chains.get(request_id, 0.0)
            self.in_chains[request_id] = tokens
        if not self.waiting:
            self._queue_since = now
            self._drained.clear()
            self._drained_tokens = 0.0
        self.waiting_tokens += tokens - self.waiting.get(request_id, 0.0)
        self.waiting[request_id] = tokens

    def leaves(self, request_id: str, now: float | None) -> None:
        """A request no longer waits: it is dispatched at ``now``, or has ended (None)."""
        tokens = self.waiting.pop(request_id, None)
        if tokens is None:
            return
        self.waiting_tokens = self.waiting_tokens - tokens if self.waiting else 0.0
        of_chain = self.in_chains.pop(request_id, 0.0)
        self.chain_tokens = self.chain_tokens - of_chain if self.in_chains else 0.0
        if now is not None:
            if self._drained and now - self._drained[-1][0] < 0.1:
                self._drained[-1] = self._drained[-1][0], self._drained[-1][1] + tokens
            else:
                self._drained.append((now, tokens))
            self._drained_tokens += tokens

    def _drain(self, now: float) -> float:
        elapsed = min(now - self._queue_since, _WINDOW_S)
        if not self.waiting or elapsed < _SOON_S:
            return 0.0
        while self._drained and self._drained[0][0] < now - _WINDOW_S:
            self._drained_tokens -= self._drained.popleft()[1]
        return max(self._drained_tokens, 0.0) / elapsed

    def worked(self, tokens: float, now: float) -> None:
        """Count the least work that a placed request needed."""
        self.work = self.work * math.exp((self.work_at - now) / _WINDOW_S) + tokens
        self.work_at = now


def _differ(before: InstanceView, after: InstanceView) -> bool:
    """Whether two views of a slot differ in what ``Members._build`` reads, except for its free KV blocks."""
    return (
        before.rate != after.rate
        or before.role != after.role
        or before.adapters != after.adapters
        or bool(before.kv_total) != bool(after.kv_total)
    )

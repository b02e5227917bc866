"""Instances of one model, sorted by their queues: what a ``Group`` of a snapshot is made of."""

from __future__ import annotations

import bisect
import math

from sage_llm.types import Group, InstanceView

__all__ = ["Members"]

_WINDOW_S = 20.0  # over which the load ρ is measured
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
        self.work = 0.0  # least work of recent requests in tokens, decayed
        self.work_at = 0.0
        self._fixed: Group | None = None  # what does not change with the load
        self._free = 0
        self._group: Group | None = None

    def put(self, slot: int, view: InstanceView | None) -> None:
        """Add, replace or remove (None) an instance."""
        before = self.views.pop(slot, None)
        if before is not None:
            speed, entry = self.at.pop(slot)
            queue = self.classes[speed]
            del queue[bisect.bisect_left(queue, entry)]
        if view is not None:
            speed, entry = round(math.log2(view.rate)), (view.queue_s, slot)
            bisect.insort(self.classes.setdefault(speed, []), entry)
            self.at[slot] = speed, entry
            self.views[slot] = view
        self._group = None
        if before is None or view is None or _differ(before, view):
            self._fixed = None
        elif self._fixed is not None and self._fixed.mask >> slot & 1:
            self._free += max(view.kv_total - view.kv_reserved, 0) - max(
                before.kv_total - before.kv_reserved, 0
            )

    def group(self, now: float) -> Group:
        """The group of the model; ρ and waiting tokens are those of ``now``."""
        if self._fixed is None:
            self._fixed = self._build()
            self._group = None
        fixed = self._fixed
        if self._group is None:
            least = self._least(fixed)
            shortest = min((self.at[slot][1][0] for slot in least), default=0.0)
            self._group = self._with(fixed, least, shortest, 0.0, 0.0)
        group = self._group
        if not self.work and not self.waiting_tokens:
            return group
        work = self.work * math.exp((self.work_at - now) / _WINDOW_S)
        rho = work / (fixed.rate * _WINDOW_S) if fixed.rate else 0.0
        return self._with(fixed, group.least, group.shortest_s, self.waiting_tokens, rho)

    def _with(
        self, fixed: Group, least: tuple[int, ...], shortest: float, waiting: float, rho: float
    ) -> Group:
        return Group(
            fixed.mask,
            fixed.prefill,
            least,
            fixed.size,
            fixed.fastest,
            fixed.rate,
            shortest,
            waiting,
            rho,
            fixed.adapters,
            self._free if fixed.kv_free >= 0 else -1,
        )

    def _least(self, fixed: Group) -> tuple[int, ...]:
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
        prefill = sum(1 << slot for slot, view in views.items() if view.role == "prefill")
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
            prefill,
            size=len(whole),
            fastest=max((view.rate for view in whole.values()), default=1.0),
            rate=sum(view.rate for view in whole.values()),
            adapters=adapters,
            kv_free=self._free if known else -1,
        )

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

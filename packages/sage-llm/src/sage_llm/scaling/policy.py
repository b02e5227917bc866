"""Scaling by load, with prediction and hysteresis."""

from __future__ import annotations

import math
from typing import ClassVar

import attrs
from attrs import field, frozen, validators

from sage_llm.scaling.types import PoolMemory, PoolView, ScaleMemory, ScalePlan, ScaleView

__all__ = ["TargetLoad"]

_POSITIVE = validators.gt(0.0)
_SLOWER = 3.0  # times of smoothing of the trend, relative to that of the level
_MOVE = 0.75  # replicas by which a capped division must be off before it changes
# Part of a wait to which it has to fall during ``up_s``, so that no replica is added because of it.
_SHRINKS = 0.9
_TINY = 1e-9


@frozen(kw_only=True)
class TargetLoad:
    """Keeps the load of each replica near ``target``.

    The load is the arriving work, smoothed over ``smooth_s`` and extrapolated over the time that a start takes, per
    replica. Replicas are added if it exceeds ``high`` during ``up_s``, or if requests wait for their first token longer
    than ``ttft_s`` and the queue does not get shorter; as many as bring the load to ``target``, one at least. Replicas
    are stopped if the load is below ``low`` during ``down_s``, and all that the minimum allows after ``idle_s`` without
    a request. A replica whose start takes longer than these times is kept for as long as its start takes. Without a
    replica, a request starts one immediately.

    The extrapolation decides when replicas are added, and the present work how many. The load after a change is at most
    ``target``, which lies between ``low`` and ``high``, so that constant work does not lead to a change and back.

    Attributes:
        target: load of a replica after a change.
        high: load above which replicas are added.
        low: load below which replicas are stopped.
        ttft_s: wait for the first token above which replicas are added.
        up_s: how long that must last.
        down_s: how long the load must be low.
        idle_s: time without a request after which the minimum of replicas remains.
        smooth_s: time constant of the smoothed work.
    """

    name: ClassVar[str] = "target-load"

    target: float = field(default=0.7, validator=[_POSITIVE, validators.le(1)])
    high: float = field(default=0.85, validator=_POSITIVE)
    low: float = field(default=0.45, validator=_POSITIVE)
    ttft_s: float = field(default=2.0, validator=_POSITIVE)
    up_s: float = field(default=5.0, validator=validators.ge(0))
    down_s: float = field(default=300.0, validator=validators.ge(0))
    idle_s: float = field(default=300.0, validator=validators.ge(0))
    smooth_s: float = field(default=10.0, validator=_POSITIVE)

    def __attrs_post_init__(self) -> None:
        if not self.low < self.target < self.high:
            raise ValueError(
                f"low, target and high must rise, got {self.low:g}, {self.target:g} and {self.high:g}"
            )

    def plan(self, view: ScaleView, memory: ScaleMemory) -> ScalePlan:
        whole, why = self._pool(view, view.whole, memory.whole, is_first=True)
        prefill, why_prefill = memory.prefill, ""
        if view.prefill is not None:
            prefill, why_prefill = self._pool(view, view.prefill, memory.prefill, is_first=False)
        wanted = self._bounded(view, whole, prefill, memory)
        before = memory.whole.target, memory.prefill.target
        whole = _settled(whole, wanted[0], before[0])
        prefill = _settled(prefill, wanted[1], before[1])
        reason = ""
        if wanted != before:
            reason = why or why_prefill or f"at least {view.least} and at most {view.most} are allowed"
        return ScalePlan(*wanted, reason, ScaleMemory(whole, prefill))

    def _pool(
        self, view: ScaleView, seen: PoolView, before: PoolMemory, *, is_first: bool
    ) -> tuple[PoolMemory, str]:
        """The memory of one role with its wanted number before bounds, and the reason of a change."""
        now = view.now
        memory, predicted = self._smoothed(view, seen, before)
        count, need = before.target, max(memory.level, 0.0)
        wake = is_first and not count and seen.open > 0
        if wake and view.may_start:
            return attrs.evolve(memory, target=1), "a request waits and no replica runs"
        memory, why = self._more(view, seen, memory, predicted, is_first=is_first)
        if why:
            return memory, why
        idle_for = now - (now if memory.busy_at is None else memory.busy_at)
        idle_s, down_s = max(self.idle_s, view.start_s), max(self.down_s, view.start_s)
        if count and not seen.open and idle_for >= idle_s:
            return attrs.evolve(memory, target=0), f"no request for {idle_for:.3g} s"
        is_low = count > 0 and need < self.low * count and seen.wait_s <= self.ttft_s
        if not is_low:
            return attrs.evolve(memory, low_since=None), ""
        since = now if memory.low_since is None else memory.low_since
        most = need if memory.low_since is None else max(memory.most_level, need)
        if now - since < down_s:
            return attrs.evolve(memory, low_since=since, most_level=most), ""
        fitting = max(math.ceil(most / self.target - _TINY), 1)
        memory = attrs.evolve(memory, low_since=None)
        if fitting >= count:
            return memory, ""
        return attrs.evolve(memory, target=fitting), (
            f"load {most / count:.2f} of {_replicas(count)} below {self.low:g} for {now - since:.3g} s"
        )

    def _smoothed(self, view: ScaleView, seen: PoolView, before: PoolMemory) -> tuple[PoolMemory, float]:
        """The memory with the new level and trend, and the work predicted for the time when a new replica is ready."""
        elapsed = 0.0 if before.at is None else view.now - before.at
        level, trend = before.level, before.trend
        if elapsed > 0:
            level += (1.0 - math.exp(-elapsed / self.smooth_s)) * (seen.work - level)
            change = (level - before.level) / elapsed
            trend += (1.0 - math.exp(-elapsed / (_SLOWER * self.smooth_s))) * (change - trend)
        need = max(level, 0.0)
        # More than this, and constant work could seem to exceed ``high`` where it fits below ``target``.
        limit = (self.high / self.target - 1.0) * need
        gain = min(max(trend, 0.0) * (view.start_s + self.smooth_s), limit)
        busy = view.now if seen.open or before.busy_at is None else before.busy_at
        return attrs.evolve(before, level=level, trend=trend, at=view.now, busy_at=busy), need + gain

    def _more(
        self, view: ScaleView, seen: PoolView, memory: PoolMemory, predicted: float, *, is_first: bool
    ) -> tuple[PoolMemory, str]:
        """Whether replicas are missing, and since when."""
        count, now = memory.target, view.now
        is_late = is_first and seen.ready >= count > 0 and seen.wait_s > self.ttft_s
        # Without a prefill replica, the others compute the prompts themselves.
        is_high = predicted > self.high * count if count else not is_first and predicted > self.low
        if not (is_high or is_late):
            return attrs.evolve(memory, high_since=None), ""
        since, wait_s = memory.high_since, memory.wait_s
        if since is None or (not is_high and now - since >= self.up_s and seen.wait_s < _SHRINKS * wait_s):
            since, wait_s = now, seen.wait_s  # it begins, or the queue is getting shorter anyway
        memory = attrs.evolve(memory, high_since=since, wait_s=wait_s, low_since=None)
        if now - since < self.up_s or not view.may_start:
            return memory, ""
        fitting = math.ceil(memory.level / self.target - _TINY)
        what = (
            f"load {predicted / max(count, 1):.2f} of {_replicas(count)}, above {self.high:g}"
            if is_high
            else f"requests wait {seen.wait_s:.3g} s for their first token, more than {self.ttft_s:g} s,"
        )
        return attrs.evolve(memory, target=max(count + 1, fitting)), f"{what} for {now - since:.3g} s"

    def _bounded(
        self, view: ScaleView, whole: PoolMemory, prefill: PoolMemory, before: ScaleMemory
    ) -> tuple[int, int]:
        """The wanted numbers within the bounds of their sum."""
        if view.prefill is None:
            return min(max(whole.target, view.least), view.most), 0
        first, second = whole.target, prefill.target
        if view.least > 1:
            first, second = max(first, 1), max(second, 1)
        elif not first:
            second = 0  # nothing to compute prompts for
        first = max(first, view.least - second)
        if first + second <= view.most:
            return first, second
        if view.most == 1:
            return 1, 0
        needs = max(whole.level, 0.0), max(prefill.level, 0.0)
        present, other = before.whole.target, before.prefill.target
        says_little = sum(needs) < self.low * view.most
        share = needs[0] / sum(needs) if not says_little else first / (first + second)
        is_full = present > 0 and present + other == view.most
        if is_full and (says_little or abs(view.most * share - present) < _MOVE):
            return present, other
        first = min(max(round(view.most * share), 1), view.most - (1 if second else 0))
        return first, view.most - first


def _settled(memory: PoolMemory, target: int, before: int) -> PoolMemory:
    """The memory after a decision: after a change, the times begin anew."""
    if target == before:
        return attrs.evolve(memory, target=target)
    return attrs.evolve(memory, target=target, high_since=None, low_since=None)


def _replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"

"""What a scaling policy sees and returns. Nothing here does I/O or reads a clock.

Units: times in seconds on one monotonic clock; work in replicas that it would keep busy.
"""

from __future__ import annotations

from typing import Protocol

from attrs import field, frozen

__all__ = ["PoolMemory", "PoolView", "ScaleMemory", "ScalePlan", "ScalePolicy", "ScaleView"]


@frozen
class PoolView:
    """The replicas of one role of a model.

    Attributes:
        ready: replicas that accept requests.
        work: work that arrives per second, in replicas that it would keep busy.
        open: requests that run or wait.
        wait_s: how long the oldest request without output has waited; 0 without one.
    """

    ready: int = 0
    work: float = 0.0
    open: int = 0
    wait_s: float = 0.0


@frozen
class ScaleView:
    """A model at one moment.

    Attributes:
        now: time of the view.
        whole: replicas that take whole requests or decode.
        prefill: replicas that compute prompts for them; None if the model has none.
        least: smallest number of replicas, both roles together.
        most: largest number of replicas, both roles together.
        start_s: expected time to start a replica; 0 if unknown.
        may_start: whether replicas may be started now; not during a pause after a failed start.
    """

    now: float
    whole: PoolView
    prefill: PoolView | None = None
    least: int = 1
    most: int = 1
    start_s: float = 0.0
    may_start: bool = True


@frozen
class PoolMemory:
    """What a policy remembers of one role.

    Attributes:
        target: number of replicas that it wants.
        level: smoothed work.
        trend: smoothed change of the level per second.
        at: time of the last view; None before the first one.
        high_since: since when there have been too few replicas; None if there are enough.
        wait_s: how long the oldest request without output had waited then.
        low_since: since when there have been too many; None if there are not.
        most_level: largest level since then.
        busy_at: when a request was last open.
    """

    target: int = 0
    level: float = 0.0
    trend: float = 0.0
    at: float | None = None
    high_since: float | None = None
    wait_s: float = 0.0
    low_since: float | None = None
    most_level: float = 0.0
    busy_at: float | None = None


@frozen
class ScaleMemory:
    """What a policy remembers of a model between two decisions."""

    whole: PoolMemory = field(factory=PoolMemory)
    prefill: PoolMemory = field(factory=PoolMemory)


@frozen
class ScalePlan:
    """Decision of a scaling policy.

    Attributes:
        whole: number of replicas that take whole requests or decode.
        prefill: number of replicas that compute prompts for them.
        reason: why the numbers change; empty if they do not.
        memory: to be passed to the next call.
    """

    whole: int
    prefill: int
    reason: str
    memory: ScaleMemory

    @property
    def total(self) -> int:
        return self.whole + self.prefill


class ScalePolicy(Protocol):
    """Choice of the number of replicas: a function of the view and of what it returned before."""

    def plan(self, view: ScaleView, memory: ScaleMemory) -> ScalePlan:
        """Return the wanted numbers of replicas, and the memory for the next call."""
        ...

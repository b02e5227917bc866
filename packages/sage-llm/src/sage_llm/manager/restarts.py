"""When a replica that ended is started again."""

from __future__ import annotations

from collections import deque

from attrs import define, field, frozen

__all__ = ["RestartLimits", "Restarts"]


@frozen(kw_only=True)
class RestartLimits:
    """Limits of restarts.

    Attributes:
        first_s: pause before the first restart; it doubles with each early failure.
        longest_s: longest pause.
        early_s: a replica that ended sooner than this after it was ready has failed early.
        most: this many early failures within ``window_s`` end the restarts.
        window_s: period in which early failures are counted.
    """

    first_s: float = 1.0
    longest_s: float = 60.0
    early_s: float = 10.0
    most: int = 5
    window_s: float = 600.0


@define
class Restarts:
    """The restarts of one replica.

    Attributes:
        ends: whether early failures end the restarts; a server that somebody else runs is tried for ever.
    """

    limits: RestartLimits
    ends: bool = True
    total: int = 0
    _early: deque[float] = field(factory=deque)
    _row: int = 0

    def pause(self, now: float, ready_s: float) -> float | None:
        """The pause before the next restart in seconds; None if it should not be restarted.

        Args:
            now: current time in seconds.
            ready_s: how long the replica was ready; 0 if it failed to start.
        """
        limits = self.limits
        if ready_s < limits.early_s:
            self._early.append(now)
            self._row += 1
        else:
            self._row = 1
        while self._early and now - self._early[0] > limits.window_s:
            self._early.popleft()
        if self.ends and len(self._early) >= limits.most:
            return None
        self.total += 1
        return min(limits.first_s * 2.0 ** (self._row - 1), limits.longest_s)

    def reset(self) -> None:
        """Forget the failures, when an operator restarts the replica."""
        self._early.clear()
        self._row = 0

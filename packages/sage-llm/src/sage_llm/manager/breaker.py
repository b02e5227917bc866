"""Circuit breaker of one instance."""

from __future__ import annotations

from collections import deque

from attrs import define, field

__all__ = ["Breaker"]

_SEEN, _FAILED = 10, 5
_FIRST_S, _LONGEST_S = 1.0, 30.0


@define
class Breaker:
    """Opens when 5 of the last 10 requests have failed; allows one trial after 1, 2, 4 … 30 seconds.

    Refusals for lack of capacity and faults of the request are not failures.
    """

    _outcomes: deque[bool] = field(factory=lambda: deque(maxlen=_SEEN))
    _opened_at: float | None = None
    _pause_s: float = _FIRST_S
    _on_trial: bool = False

    @property
    def is_open(self) -> bool:
        return self._opened_at is not None

    def allows(self, now: float) -> bool:
        """Whether a request may be sent: always if closed, else one trial after the pause."""
        return self._opened_at is None or (not self._on_trial and now - self._opened_at >= self._pause_s)

    def sent(self, now: float) -> None:
        """Record that a request was sent; while the breaker is open, it is the trial."""
        if self._opened_at is not None and now - self._opened_at >= self._pause_s:
            self._on_trial = True

    def succeeded(self) -> None:
        self._outcomes.append(True)
        if self._opened_at is not None:
            self._opened_at, self._pause_s, self._on_trial = None, _FIRST_S, False
            self._outcomes.clear()

    def failed(self, now: float) -> None:
        self._outcomes.append(False)
        if self._opened_at is not None:
            self._opened_at, self._on_trial = now, False
            self._pause_s = min(self._pause_s * 2, _LONGEST_S)
        elif self._outcomes.count(False) >= _FAILED:
            self._opened_at = now

"""Prefill rates that policies see: measured ones, shared by instances of about the same speed.

Measurements of equal instances differ by chance. To a policy that compares costs, the smallest difference would be a
reason: of the idle instances it would always choose the same one. Therefore instances whose measured rates are alike
form a class and show its mean. Instances that are not measured yet show the rate of the largest class.
"""

from __future__ import annotations

from attrs import define, field

__all__ = ["Speeds"]

_JOINS, _LEAVES = 1.15, 1.3  # factors to the rate of a class within which an instance joins or stays
_KNOWN = 5  # measurements before which an instance does not leave its class
_NOTICEABLE = 0.1  # relative change of a class's mean below which it shows its old one


@define(eq=False)
class _Class:
    shown: float
    rates: dict[int, float] = field(factory=dict)
    total: float = 0.0

    def put(self, slot: int, rate: float) -> None:
        self.total += rate - self.rates.get(slot, 0.0)
        self.rates[slot] = rate

    def drop(self, slot: int) -> None:
        self.total -= self.rates.pop(slot)

    def is_near(self, rate: float, factor: float) -> bool:
        return self.shown / factor <= rate <= self.shown * factor


class Speeds:
    """Rates of the instances of one model, by slot.

    Args:
        rate: prefill rate in tokens per second of instances before any is measured.
    """

    def __init__(self, rate: float) -> None:
        self._unmeasured: set[int] = set()
        self._classes = [_Class(rate)]
        self._of: dict[int, _Class] = {}
        self.changed: set[int] = set()  # slots that show another rate; the reader clears it

    def add(self, slot: int) -> None:
        """An instance appears, or its next generation, which is not measured yet."""
        self.remove(slot)
        self._unmeasured.add(slot)

    def remove(self, slot: int) -> None:
        """Forget an instance."""
        self._unmeasured.discard(slot)
        joined = self._of.pop(slot, None)
        if joined is not None:
            self._leave(slot, joined)

    def shown(self, slot: int) -> float:
        """Return the rate that an instance shows."""
        joined = self._of.get(slot)
        return self._largest().shown if joined is None else joined.shown

    def measured(self, slot: int, rate: float, count: int) -> None:
        """Take over the mean of ``count`` measured rates of an instance."""
        joined = self._of.get(slot)
        if joined is None:
            self._unmeasured.discard(slot)
            joined = self._of[slot] = self._largest()
        elif count >= _KNOWN and not joined.is_near(rate, _LEAVES):
            self._leave(slot, joined)
            joined = self._nearest(rate)
            self._of[slot] = joined
            self.changed.add(slot)
        joined.put(slot, rate)
        self._show(joined)

    def _show(self, joined: _Class) -> None:
        """Show the mean of a class if it has changed noticeably."""
        mean = joined.total / len(joined.rates)
        if abs(mean - joined.shown) > _NOTICEABLE * joined.shown:
            joined.shown = mean
            self.changed.update(joined.rates)
            self.changed.update(self._unmeasured)

    def _largest(self) -> _Class:
        return max(self._classes, key=lambda one: len(one.rates))

    def _nearest(self, rate: float) -> _Class:
        near = [one for one in self._classes if one.is_near(rate, _JOINS)]
        if near:
            return min(near, key=lambda one: abs(one.shown - rate))
        made = _Class(rate)
        self._classes.append(made)
        return made

    def _leave(self, slot: int, joined: _Class) -> None:
        joined.drop(slot)
        if joined.rates:
            self._show(joined)
        elif len(self._classes) > 1:
            self._classes.remove(joined)
            self.changed.update(self._unmeasured)

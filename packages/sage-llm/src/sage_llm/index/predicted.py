"""Blocks that an instance without events is assumed to hold: those of the prompts that were dispatched to it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

__all__ = ["Predicted"]

_WEIGHT = 0.1  # of a request in the mean agreement
_DISTRUST, _TRUST = 0.7, 0.8
_MAX_BLOCKS = 131_072


class Predicted:
    """Least-recently-used blocks of one instance, and how well they agree with what it reports."""

    def __init__(self) -> None:
        self._held: OrderedDict[int, None] = OrderedDict()
        self.agreement = 1.0
        self.trusted = True

    def hold(self, keys: Sequence[int], capacity: int) -> list[int]:
        """Add blocks as the most recent ones. Returns those that are assumed to be evicted for them."""
        held = self._held
        for key in reversed(keys):
            held[key] = None
            held.move_to_end(key)
        bound = min(max(capacity, 0), _MAX_BLOCKS)
        return [held.popitem(last=False)[0] for _ in range(len(held) - bound)]

    def observe(self, expected: int, cached: int) -> None:
        """Compare the expected and the reported number of cached tokens of a prompt."""
        larger = max(expected, cached)
        if larger <= 0:
            return
        self.agreement += _WEIGHT * (min(expected, cached) / larger - self.agreement)
        self.trusted = self.agreement >= (_DISTRUST if self.trusted else _TRUST)

"""Machines whose instances slow each other: those without a processor, or memory, of their own."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Host"]


class _Instance(Protocol):
    def stretch(self, now: float, ratio: float) -> None:
        """Let the rest of the present step take ``ratio`` times as long."""
        ...


class Host:
    """The busy instances of one machine.

    Args:
        contention: by which share each further busy instance lengthens the steps of all: with ``n`` busy ones they
            take ``1 + contention·(n − 1)`` times as long.
    """

    def __init__(self, contention: float) -> None:
        self._contention = contention
        self._busy: dict[_Instance, None] = {}

    @property
    def slowdown(self) -> float:
        """The present duration of a step relative to that of an instance alone."""
        return 1.0 + self._contention * max(len(self._busy) - 1, 0)

    def begins(self, instance: _Instance, now: float) -> float:
        """An instance computes from now on. Returns the slowdown of its step."""
        if instance not in self._busy:
            before = self.slowdown
            others = list(self._busy)
            self._busy[instance] = None
            self._change(others, now, before)
        return self.slowdown

    def rests(self, instance: _Instance, now: float) -> None:
        """An instance computes nothing from now on."""
        if instance in self._busy:
            before = self.slowdown
            del self._busy[instance]
            self._change(list(self._busy), now, before)

    def _change(self, others: list[_Instance], now: float, before: float) -> None:
        ratio = self.slowdown / before
        for other in others:
            other.stretch(now, ratio)

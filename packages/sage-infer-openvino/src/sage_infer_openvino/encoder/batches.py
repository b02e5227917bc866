"""Batch selection: texts of similar lengths, with calls served in turn."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Iterable
from itertools import count
from typing import Generic, TypeVar

from attrs import define

__all__ = ["BatchLine"]

CallT = TypeVar("CallT")
_Key = tuple[int, int, int]  # length, ticket of the call, index in the call

_PADDING_SHARE = 16  # maximum padding: 1/16 of the budget, about the cost of a separate inference
_LONGER_SHARE = 8  # maximum excess over the selected text: 1/8 of its length


@define(eq=False)
class _Waiting(Generic[CallT]):
    call: CallT
    keys: list[_Key]  # ascending; those at the end may already be removed
    left: int
    limit: int | None = None


class BatchLine(Generic[CallT]):
    """Waiting texts of large and small calls. Not thread-safe.

    Calls are served in turn. The next call puts its longest text into the batch, which is then filled with texts of
    similar length from any call. So a call with one text waits for one batch of each earlier call, never for an entire
    call. A batch has at most ``budget`` tokens, including padding, or a single text.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._tickets = count()
        self._turns: deque[int] = deque()
        self._waiting: dict[int, _Waiting[CallT]] = {}
        self._texts: list[_Key] = []  # ascending

    def __bool__(self) -> bool:
        return bool(self._texts)

    @property
    def tokens(self) -> int:
        """Tokens of all waiting texts."""
        return sum(length for length, _, _ in self._texts)

    def add(self, call: CallT, lengths: Iterable[int], *, limit: int | None = None) -> None:
        """Add a call with texts of these lengths; :meth:`next_batch` returns ``(call, index)`` once for each.

        A batch has at most ``limit`` texts of the call.
        """
        ticket = next(self._tickets)
        keys = sorted((length, ticket, index) for index, length in enumerate(lengths))
        if keys:
            self._texts = sorted(self._texts + keys)
            self._waiting[ticket] = _Waiting(call, keys, len(keys), limit)
            self._turns.append(ticket)

    def discard(self, call: CallT) -> None:
        """Remove the remaining texts of a call."""
        for ticket in [ticket for ticket, waiting in self._waiting.items() if waiting.call is call]:
            self._texts = [key for key in self._texts if key[1] != ticket]
            self._remove(ticket)

    def next_batch(self) -> list[tuple[CallT, int]]:
        """Remove and return the next texts, at least one. Raises ``IndexError`` if none is waiting."""
        lead = self._lead()
        batch = [lead]
        end = bisect_right(self._texts, (lead[0] + lead[0] // _LONGER_SHARE, math.inf, math.inf))
        start = end
        width = max(lead[0], self._texts[end - 1][0]) if end else lead[0]
        padding = width - lead[0]
        taken = Counter([lead[1]])
        while start and (len(batch) + 1) * width <= self._budget:
            padding += width - self._texts[start - 1][0]
            if padding > self._budget // _PADDING_SHARE:
                break
            ticket = self._texts[start - 1][1]
            if taken[ticket] == self._waiting[ticket].limit:
                break
            taken[ticket] += 1
            start -= 1
            batch.append(self._texts[start])
        del self._texts[start:end]
        found = [(self._waiting[ticket].call, index) for _, ticket, index in batch]
        for _, ticket, _ in batch:
            self._waiting[ticket].left -= 1
            if not self._waiting[ticket].left:
                self._remove(ticket)
        return found

    def _lead(self) -> _Key:
        """Remove the longest text of the next call, which moves to the end of the queue."""
        ticket = self._turns[0]
        self._turns.rotate(-1)
        keys = self._waiting[ticket].keys
        while True:
            key = keys.pop()
            place = bisect_left(self._texts, key)
            if place < len(self._texts) and self._texts[place] == key:
                del self._texts[place]
                return key

    def _remove(self, ticket: int) -> None:
        del self._waiting[ticket]
        self._turns.remove(ticket)

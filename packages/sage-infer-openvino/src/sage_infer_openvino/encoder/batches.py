"""Which texts of which calls are computed together next: batches of similar length, and a turn for every call."""

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

_PADDING_SHARE = 16  # a batch may hold padding of this part of the budget: what an inference of its own costs
_LONGER_SHARE = 8  # and may be longer than the text whose turn it is by this part of the text


@define(eq=False)
class _Waiting(Generic[CallT]):
    call: CallT
    keys: list[_Key]  # rising; those at the end may be gone already
    left: int
    limit: int | None = None


class BatchLine(Generic[CallT]):
    """Texts that wait, of calls with many and calls with few of them. Not thread-safe.

    Calls take turns. The call whose turn it is gets its longest text into the next batch, and the batch is filled
    with texts of about that length, whosever they are: so a call with one text waits for one batch of each call
    before it, and never for the whole of one. A batch has at most ``budget`` tokens, padding included, or one text.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._tickets = count()
        self._turns: deque[int] = deque()
        self._waiting: dict[int, _Waiting[CallT]] = {}
        self._texts: list[_Key] = []  # rising

    def __bool__(self) -> bool:
        return bool(self._texts)

    @property
    def tokens(self) -> int:
        """Tokens of all that waits."""
        return sum(length for length, _, _ in self._texts)

    def add(self, call: CallT, lengths: Iterable[int], *, limit: int | None = None) -> None:
        """A call with texts of these lengths; :meth:`next_batch` gives ``(call, index)`` for each, once.

        A batch has at most ``limit`` texts of the call.
        """
        ticket = next(self._tickets)
        keys = sorted((length, ticket, index) for index, length in enumerate(lengths))
        if keys:
            self._texts = sorted(self._texts + keys)
            self._waiting[ticket] = _Waiting(call, keys, len(keys), limit)
            self._turns.append(ticket)

    def discard(self, call: CallT) -> None:
        """Take a call out, as far as it is still here."""
        for ticket in [ticket for ticket, waiting in self._waiting.items() if waiting.call is call]:
            self._texts = [key for key in self._texts if key[1] != ticket]
            self._remove(ticket)

    def next_batch(self) -> list[tuple[CallT, int]]:
        """Takes the next texts out, at least one. Raises ``IndexError`` when none waits."""
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
        """Takes out the longest text of the call whose turn it is; the call goes to the end of the line."""
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

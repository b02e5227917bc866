"""Fields of the index of an arena, as arrays in one buffer of fixed size.

A buffer of zeros is an empty index. Slots are counted from 1 here, so that 0 means none.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

__all__ = ["FREE", "HELD", "RESERVED", "Head", "IndexFields", "index_bytes"]

FREE, RESERVED, HELD = 0, 1, 2
"""States of a slot."""

_HEADER = 4096
_PIN_SPARE = 1024


class Head(IntEnum):
    """Numbers of the header. Each list has its first and its last slot side by side."""

    VERSION = 0
    CAPACITY = 1
    BLOCK_BYTES = 2
    DIRTY = 3  # a change has begun and not ended
    FRESH = 4  # slots that were ever used
    FREE = 5  # first of the slots that are free again
    LOOSE = 6  # held and unpinned, least recently used first
    LOOSE_LAST = 7
    PINNED = 8
    PINNED_LAST = 9
    RESERVED = 10
    RESERVED_LAST = 11
    BLOCKS = 12
    PINNED_COUNT = 13
    TICK = 14
    PIN_FRESH = 15
    PIN_FREE = 16
    LEASE_END = 17  # no lease ends before; 0: there is none
    HITS = 18
    MISSES = 19
    EVICTIONS = 20
    DROPPED = 21
    REPAIRS = 22
    READY = 23  # written last when the index is made


class IndexFields:
    """Arrays over a buffer of ``index_bytes(capacity)`` bytes.

    Attributes:
        head: the numbers of ``Head``.
        table: open-addressing hash table of slots.
        low, high: halves of each slot's key.
        state, owner: of each slot; the owner is who reserved it.
        previous, next: neighbours in the slot's list.
        used: tick of the last use.
        pins: first pin of each slot.
        pin_slot, pin_owner, pin_count, pin_end, pin_next: the pins. ``pin_slot`` 0 is a pin that is not in use.
    """

    def __init__(self, buffer: memoryview, capacity: int) -> None:
        self.capacity = capacity
        self.mask = _table_size(capacity) - 1
        self.pin_capacity = _pins(capacity)
        at = 0

        def take(count: int, kind: Literal["B", "i", "q", "Q"], width: int, least: int = 0) -> memoryview:
            nonlocal at
            size = max(count * width, least)
            view = buffer[at : at + count * width].cast(kind)
            at += -(-size // 8) * 8
            return view

        slots, pins = capacity + 1, self.pin_capacity + 1
        self.head = take(len(Head), "q", 8, _HEADER)
        self.table = take(self.mask + 1, "i", 4)
        self.low = take(slots, "Q", 8)
        self.high = take(slots, "Q", 8)
        self.used = take(slots, "q", 8)
        self.previous = take(slots, "i", 4)
        self.next = take(slots, "i", 4)
        self.pins = take(slots, "i", 4)
        self.owner = take(slots, "B", 1)
        self.state = take(slots, "B", 1)
        self.pin_end = take(pins, "q", 8)
        self.pin_slot = take(pins, "i", 4)
        self.pin_next = take(pins, "i", 4)
        self.pin_count = take(pins, "i", 4)
        self.pin_owner = take(pins, "B", 1)
        self.nbytes = at

    def release(self) -> None:
        """Let go of the buffer."""
        for value in list(vars(self).values()):
            if isinstance(value, memoryview):
                value.release()


def index_bytes(capacity: int) -> int:
    """Size of the index of so many slots."""
    slots, pins = capacity + 1, _pins(capacity) + 1
    widths = [(_table_size(capacity), 4), *((slots, width) for width in (8, 8, 8, 4, 4, 4, 1, 1))]
    widths += [(pins, width) for width in (8, 4, 4, 4, 1)]
    return _HEADER + sum(-(-count * width // 8) * 8 for count, width in widths)


def _table_size(capacity: int) -> int:
    """At most a quarter full: half full, a look-up compares twice as many keys."""
    return 1 << (4 * capacity + 1).bit_length()


def _pins(capacity: int) -> int:
    return capacity + _PIN_SPARE

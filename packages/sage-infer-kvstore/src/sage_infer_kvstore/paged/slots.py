"""Slots of an arena in a hash table and in lists."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from sage_infer_kvstore.paged.layout import HELD, Head, IndexFields

__all__ = ["SlotLists", "halves"]

halves = struct.Struct("<QQ").unpack
"""The two numbers that a key is kept as."""


class SlotLists:
    """Look-up by key, and lists in the order of use. A slot that is not free is in the table and in one list."""

    def __init__(self, fields: IndexFields) -> None:
        self.fields = fields

    # --- look-up

    def find(self, key: bytes) -> int:
        """Slot of a key, held or reserved; 0 where there is none."""
        f = self.fields
        low, high = halves(key)
        table, mask, lows, highs = f.table, f.mask, f.low, f.high
        i = low & mask
        while slot := table[i]:
            if lows[slot] == low and highs[slot] == high:
                return int(slot)
            i = (i + 1) & mask
        return 0

    def held(self, key: bytes) -> int:
        """Slot of a block that is held; 0 where it is not."""
        slot = self.find(key)
        return slot if slot and self.fields.state[slot] == HELD else 0

    def held_prefix(self, keys: Sequence[bytes]) -> int:
        """How many keys at the start of ``keys`` are held: ``held`` without a call per key."""
        f = self.fields
        table, mask, lows, highs, state = f.table, f.mask, f.low, f.high, f.state
        numbers = iter(struct.unpack(f"<{2 * len(keys)}Q", b"".join(keys)))
        count = 0
        for low, high in zip(numbers, numbers, strict=True):
            i = low & mask
            while (slot := table[i]) and (lows[slot] != low or highs[slot] != high):
                i = (i + 1) & mask
            if not slot or state[slot] != HELD:
                break
            count += 1
        return count

    # --- the table

    def _enter(self, slot: int) -> None:
        f = self.fields
        i = f.low[slot] & f.mask
        while f.table[i]:
            i = (i + 1) & f.mask
        f.table[i] = slot

    def _leave(self, slot: int) -> None:
        """Remove a slot, and move those behind it that could not be found otherwise."""
        f = self.fields
        table, mask = f.table, f.mask
        i = f.low[slot] & mask
        while table[i] != slot:
            i = (i + 1) & mask
        j = i
        while other := table[j := (j + 1) & mask]:
            if (j - (f.low[other] & mask)) & mask >= (j - i) & mask:
                table[i], i = other, j
        table[i] = 0

    # --- lists

    def _walk(self, where: Head) -> Iterator[int]:
        slot = self.fields.head[where]
        while slot:
            yield slot
            slot = self.fields.next[slot]

    def _append(self, where: Head, slot: int) -> None:
        f, last = self.fields, self.fields.head[where + 1]
        f.previous[slot], f.next[slot] = last, 0
        if last:
            f.next[last] = slot
        else:
            f.head[where] = slot
        f.head[where + 1] = slot

    def _append_loose(self, slot: int) -> None:
        f = self.fields
        f.head[Head.TICK] += 1
        f.used[slot] = f.head[Head.TICK]
        self._append(Head.LOOSE, slot)

    def _unlink(self, where: Head, slot: int) -> None:
        f = self.fields
        before, after = f.previous[slot], f.next[slot]
        if before:
            f.next[before] = after
        else:
            f.head[where] = after
        if after:
            f.previous[after] = before
        else:
            f.head[where + 1] = before

    def _push_free(self, slot: int) -> None:
        self.fields.next[slot] = self.fields.head[Head.FREE]
        self.fields.head[Head.FREE] = slot

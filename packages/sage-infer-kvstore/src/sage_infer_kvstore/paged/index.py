"""Index of an arena: which slot holds which block, the order of use, and pins.

All of it lies in one buffer that processes may share. A change that a dying process leaves half made is seen by the
next one (``Head.DIRTY``) and repaired from the slots' own fields, each of which is written in an order that is valid
at every instant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from sage_infer.errors import InvalidRequest

from sage_infer_kvstore.paged.layout import FREE, HELD, RESERVED, Head, IndexFields
from sage_infer_kvstore.paged.slots import SlotLists, halves

__all__ = ["BlockIndex"]

_OWNERS = 256


class BlockIndex(SlotLists):
    """Every call needs the lock of the buffer. ``owner`` is this process's number, ``clock`` counts nanoseconds.

    ``is_alive(owner)`` says whether another process that uses the buffer still runs; what a dead one had reserved or
    pinned is free again when room is needed.
    """

    def __init__(
        self, fields: IndexFields, *, owner: int, clock: Callable[[], int], is_alive: Callable[[int], bool]
    ) -> None:
        super().__init__(fields)
        self.owner = owner
        self._clock = clock
        self._is_alive = is_alive
        self.choose: Callable[[], int] | None = None  # the slot of the unpinned block to drop next

    # --- writing blocks

    def reserve(self, keys: Sequence[bytes]) -> list[int]:
        """A slot for each key that is neither held nor reserved; 0 for the others, and where there is no room."""
        with self._change():
            return [self._reserve(key) for key in keys]

    def commit(self, keys: Sequence[bytes]) -> None:
        """Reserved blocks are whole.

        Raises:
            InvalidRequest: a key is not reserved by this process, or given twice; nothing was committed.
        """
        slots = [self.find(key) for key in keys]
        for key, slot in zip(keys, slots, strict=True):
            if not self._is_reserved(slot):
                raise InvalidRequest(f"block {key.hex()} is not reserved here; reserve it first")
        if len(set(slots)) < len(slots):
            raise InvalidRequest("a block is given twice; commit each reserved key once")
        with self._change():
            for slot in slots:
                self.fields.state[slot] = HELD
                self._unlink(Head.RESERVED, slot)
                self._append_loose(slot)
                self.fields.head[Head.BLOCKS] += 1

    def discard(self, keys: Sequence[bytes]) -> None:
        """Free the reserved ones of these blocks."""
        with self._change():
            for slot in map(self.find, keys):
                if self._is_reserved(slot):
                    self._drop(Head.RESERVED, slot)

    def touch(self, keys: Sequence[bytes]) -> int:
        """A use of the held ones of these blocks; returns how many there are."""
        with self._change():
            count = 0
            for slot in map(self.held, keys):
                if slot:
                    count += 1
                    if not self.fields.pins[slot]:
                        self._unlink(Head.LOOSE, slot)
                        self._append_loose(slot)
            return count

    def evict(self, count: int) -> int:
        """Drop unpinned blocks, least recently used first; returns how many."""
        with self._change():
            done = 0
            while done < count and (slot := self._oldest()):
                self._drop(Head.LOOSE, slot)
                done += 1
            self.fields.head[Head.EVICTIONS] += done
            return done

    def drop(self, keys: Sequence[bytes]) -> int:
        """Drop the unpinned ones of these blocks; returns how many."""
        with self._change():
            slots = [slot for key in keys if (slot := self.held(key)) and not self.fields.pins[slot]]
            for slot in slots:
                self._drop(Head.LOOSE, slot)
            return len(slots)

    # --- pins

    def pin(self, keys: Sequence[bytes], lease_ns: int | None = None) -> list[int]:
        """Slots of the held ones of these blocks, each pinned once more; 0 for the others."""
        end = 0 if lease_ns is None else max(1, self._clock() + lease_ns)
        with self._change():
            return [slot if (slot := self.held(key)) and self._pin(slot, end) else 0 for key in keys]

    def unpin(self, keys: Sequence[bytes]) -> None:
        """Take back one of this process's pins of each block, the one that would end last."""
        with self._change():
            for slot in map(self.held, keys):
                if slot:
                    self._unpin(slot)

    def count_pinned(self) -> int:
        """Blocks that are pinned now."""
        with self._change():
            self._end_leases()
            return int(self.fields.head[Head.PINNED_COUNT])

    # --- processes that have died

    def forget(self, gone: Callable[[int], bool]) -> None:
        """Take back pins and reserved slots of owners that are gone."""
        f = self.fields
        with self._change():
            for slot in list(self._walk(Head.RESERVED)):
                if gone(f.owner[slot]):
                    self._drop(Head.RESERVED, slot)
            for slot in list(self._walk(Head.PINNED)):
                self._prune(slot, lambda pin: gone(f.pin_owner[pin]))

    def repair(self) -> None:
        """Make table, lists and counts anew, from slots and pins that are complete in themselves."""
        f, head = self.fields, self.fields.head
        head[Head.DIRTY] = 1
        alive = {owner: owner == self.owner or self._is_alive(owner) for owner in range(_OWNERS)}
        f.table[:] = memoryview(bytes(4 * (f.mask + 1))).cast("i")
        for number in (Head.FREE, Head.LOOSE, Head.PINNED, Head.RESERVED):
            head[number] = 0
        for number in (Head.LOOSE_LAST, Head.PINNED_LAST, Head.RESERVED_LAST, Head.BLOCKS, Head.PINNED_COUNT):
            head[number] = 0
        head[Head.FRESH] = min(head[Head.FRESH], f.capacity)
        used = range(1, head[Head.FRESH] + 1)
        for slot in used:
            f.pins[slot] = 0
            if f.state[slot] == RESERVED and not alive[f.owner[slot]]:
                f.state[slot] = FREE
            if f.state[slot] == FREE:
                self._push_free(slot)
            else:
                self._enter(slot)
        head[Head.PIN_FREE] = 0
        for pin in range(1, head[Head.PIN_FRESH] + 1):
            slot = f.pin_slot[pin]
            if slot and f.state[slot] == HELD and alive[f.pin_owner[pin]]:
                f.pin_next[pin], f.pins[slot] = f.pins[slot], pin
            else:
                self._free_pin(pin)
        for slot in sorted((s for s in used if f.state[s] != FREE), key=f.used.__getitem__):
            if f.state[slot] == RESERVED:
                self._append(Head.RESERVED, slot)
                continue
            head[Head.BLOCKS] += 1
            head[Head.PINNED_COUNT] += bool(f.pins[slot])
            self._append(Head.PINNED if f.pins[slot] else Head.LOOSE, slot)
        head[Head.LEASE_END] = 1  # look at the next opportunity
        head[Head.REPAIRS] += 1
        head[Head.DIRTY] = 0

    # --- changes of one slot

    @contextmanager
    def _change(self) -> Iterator[None]:
        head = self.fields.head
        if head[Head.DIRTY]:
            self.repair()
        head[Head.DIRTY] = 1
        yield
        head[Head.DIRTY] = 0  # not after an exception, which may have left anything

    def _reserve(self, key: bytes) -> int:
        f = self.fields
        slot = self.find(key)
        if slot and f.state[slot] == RESERVED and not self._is_alive(f.owner[slot]):
            self._drop(Head.RESERVED, slot)
        elif slot:
            return 0
        slot = self._room()
        if not slot:
            return 0
        f.low[slot], f.high[slot] = halves(key)
        f.owner[slot] = self.owner
        f.state[slot] = RESERVED
        self._enter(slot)
        self._append(Head.RESERVED, slot)
        return slot

    def _is_reserved(self, slot: int) -> bool:
        return bool(slot) and self.fields.state[slot] == RESERVED and self.fields.owner[slot] == self.owner

    def _room(self) -> int:
        """A free slot, by eviction if need be; 0 where everything is pinned or reserved."""
        f, head = self.fields, self.fields.head
        if not head[Head.FREE] and head[Head.FRESH] < f.capacity:
            head[Head.FRESH] += 1
            return int(head[Head.FRESH])
        if not head[Head.FREE]:
            slot = self._oldest()
            if slot:
                self._drop(Head.LOOSE, slot)
                head[Head.EVICTIONS] += 1
        slot = int(head[Head.FREE])
        if slot:
            head[Head.FREE] = f.next[slot]
        return slot

    def _oldest(self) -> int:
        """The unpinned block to be dropped next; looks for pins that have ended where there is none."""
        head = self.fields.head
        if not head[Head.LOOSE]:
            self._end_leases()
        if not head[Head.LOOSE]:
            self._forget_dead()
        chosen = self.choose() if self.choose is not None and head[Head.LOOSE] else 0
        return chosen or int(head[Head.LOOSE])

    def _forget_dead(self) -> None:
        f = self.fields
        owners = {f.pin_owner[pin] for slot in self._walk(Head.PINNED) for pin in self._pins_of(slot)}
        owners.update(f.owner[slot] for slot in self._walk(Head.RESERVED))
        dead = {owner for owner in owners if owner != self.owner and not self._is_alive(owner)}
        if not dead:
            return
        for slot in list(self._walk(Head.RESERVED)):
            if f.owner[slot] in dead:
                self._drop(Head.RESERVED, slot)
        for slot in list(self._walk(Head.PINNED)):
            self._prune(slot, lambda pin: f.pin_owner[pin] in dead)

    def _drop(self, where: Head, slot: int) -> None:
        f = self.fields
        if f.state[slot] == HELD:
            f.head[Head.BLOCKS] -= 1
        f.state[slot] = FREE
        self._leave(slot)
        self._unlink(where, slot)
        self._push_free(slot)

    # --- pins of one slot

    def _pins_of(self, slot: int) -> Iterator[int]:
        pin = self.fields.pins[slot]
        while pin:
            yield pin
            pin = self.fields.pin_next[pin]

    def _pin(self, slot: int, end: int) -> bool:
        f, head = self.fields, self.fields.head
        for pin in self._pins_of(slot):
            if f.pin_owner[pin] == self.owner and f.pin_end[pin] == end:
                f.pin_count[pin] += 1
                return True
        pin = self._new_pin()
        if not pin:
            return False
        f.pin_owner[pin], f.pin_count[pin], f.pin_end[pin] = self.owner, 1, end
        f.pin_next[pin] = f.pins[slot]
        f.pin_slot[pin] = slot
        if not f.pins[slot]:
            self._unlink(Head.LOOSE, slot)
            self._append(Head.PINNED, slot)
            head[Head.PINNED_COUNT] += 1
        f.pins[slot] = pin
        if end and not 0 < head[Head.LEASE_END] <= end:
            head[Head.LEASE_END] = end
        return True

    def _new_pin(self) -> int:
        f, head = self.fields, self.fields.head
        if not head[Head.PIN_FREE] and head[Head.PIN_FRESH] < f.pin_capacity:
            head[Head.PIN_FRESH] += 1
            return int(head[Head.PIN_FRESH])
        if not head[Head.PIN_FREE]:
            self._end_leases()
        if not head[Head.PIN_FREE]:
            self._forget_dead()
        pin = int(head[Head.PIN_FREE])
        if pin:
            head[Head.PIN_FREE] = f.pin_next[pin]
        return pin

    def _unpin(self, slot: int) -> None:
        f = self.fields
        now = self._clock()
        self._prune(slot, lambda pin: 0 < f.pin_end[pin] <= now)
        own = [pin for pin in self._pins_of(slot) if f.pin_owner[pin] == self.owner]
        if own:
            last = min(own, key=lambda pin: (f.pin_end[pin] != 0, -f.pin_end[pin]))
            f.pin_count[last] -= 1
            if not f.pin_count[last]:
                self._prune(slot, lambda pin: pin == last)

    def _end_leases(self) -> None:
        f = self.fields
        now, end = self._clock(), f.head[Head.LEASE_END]
        if not 0 < end <= now:
            return
        for slot in list(self._walk(Head.PINNED)):
            self._prune(slot, lambda pin: 0 < f.pin_end[pin] <= now)
        ends = [f.pin_end[p] for slot in self._walk(Head.PINNED) for p in self._pins_of(slot) if f.pin_end[p]]
        f.head[Head.LEASE_END] = min(ends, default=0)

    def _prune(self, slot: int, has_ended: Callable[[int], bool]) -> None:
        f = self.fields
        if not f.pins[slot]:
            return
        kept = 0
        for pin in list(self._pins_of(slot)):
            if has_ended(pin):
                self._free_pin(pin)
            else:
                f.pin_next[pin], kept = kept, pin
        f.pins[slot] = kept
        if not kept:
            f.head[Head.PINNED_COUNT] -= 1
            self._unlink(Head.PINNED, slot)
            self._append_loose(slot)

    def _free_pin(self, pin: int) -> None:
        f = self.fields
        f.pin_slot[pin] = 0
        f.pin_next[pin], f.head[Head.PIN_FREE] = f.head[Head.PIN_FREE], pin

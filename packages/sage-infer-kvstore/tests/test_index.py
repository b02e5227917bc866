"""The index of an arena: it agrees with a model, and survives a death at every single write."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sage_infer_kvstore.paged.index import BlockIndex
from sage_infer_kvstore.paged.layout import FREE, HELD, RESERVED, Head, IndexFields, index_bytes

CAPACITY = 5
KEYS = [hashlib.blake2b(bytes([i]), digest_size=16).digest() for i in range(9)]
ARRAYS = (
    "head", "table", "low", "high", "state", "owner", "previous", "next", "used", "pins",
    "pin_slot", "pin_owner", "pin_count", "pin_end", "pin_next",
)  # fmt: skip

OPERATIONS = st.tuples(
    st.sampled_from(
        ["reserve", "commit", "discard", "touch", "evict", "pin", "lease", "unpin", "put", "tick"]
    ),
    st.lists(st.integers(0, 8), min_size=1, max_size=4, unique=True),
)


class Died(Exception):
    """The process was killed here."""


class Fuse:
    """Counts writes of one process, and ends it before a given one."""

    def __init__(self, writes: int | None) -> None:
        self.left = writes

    def burn(self) -> None:
        if self.left is not None:
            if not self.left:
                raise Died
            self.left -= 1


class Fused:
    """An array whose writes burn the fuse."""

    def __init__(self, array: Any, fuse: Fuse) -> None:
        self.array, self.fuse = array, fuse

    def __getitem__(self, index: Any) -> Any:
        return self.array[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self.fuse.burn()
        self.array[index] = value


class Memory:
    """One buffer, a clock, and the processes that use it."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.buffer = bytearray(index_bytes(capacity))
        self.now = 1
        self.alive = {1, 2}

    def process(self, owner: int, writes: int | None = None) -> BlockIndex:
        fields = IndexFields(memoryview(self.buffer), self.capacity)
        assert fields.nbytes == len(self.buffer)
        fuse = Fuse(writes)
        for name in ARRAYS:
            setattr(fields, name, Fused(getattr(fields, name), fuse))
        return BlockIndex(
            fields, owner=owner, clock=lambda: self.now, is_alive=lambda other: other in self.alive
        )


def act(memory: Memory, index: BlockIndex, operation: tuple[str, list[int]]) -> None:
    name, numbers = operation
    keys = [KEYS[i] for i in numbers]
    reserved = [k for k in keys if index._is_reserved(index.find(k))]
    if name == "reserve":
        index.reserve(keys)
    elif name == "commit":
        index.commit(reserved)
    elif name == "discard":
        index.discard(keys)
    elif name == "touch":
        index.touch(keys)
    elif name == "evict":
        index.evict(numbers[0])
    elif name == "pin":
        index.pin(keys)
    elif name == "lease":
        index.pin(keys, 10 * numbers[0])
    elif name == "unpin":
        index.unpin(keys)
    elif name == "put":
        index.commit([k for k, slot in zip(keys, index.reserve(keys), strict=True) if slot])
    else:
        memory.now += 25


def check(index: BlockIndex) -> None:
    """Table, lists, states and counts say the same."""
    f = index.fields
    head = f.head
    used = range(1, head[Head.FRESH] + 1)
    lists = {where: list(index._walk(where)) for where in (Head.LOOSE, Head.PINNED, Head.RESERVED)}
    free = list(index._walk(Head.FREE))
    assert sorted([*free, *(slot for slots in lists.values() for slot in slots)]) == list(used)
    for where, slots in lists.items():
        assert head[where + 1] == (slots[-1] if slots else 0)
        assert all(f.state[slot] == (RESERVED if where is Head.RESERVED else HELD) for slot in slots)
        assert [f.previous[slot] for slot in slots] == [0, *slots[:-1]][: len(slots)]
    assert all(f.state[slot] == FREE for slot in free)
    assert head[Head.BLOCKS] == len(lists[Head.LOOSE]) + len(lists[Head.PINNED])
    assert head[Head.PINNED_COUNT] == len(lists[Head.PINNED])
    assert all(bool(f.pins[slot]) == (slot in lists[Head.PINNED]) for slot in used)
    taken = [slot for slot in used if f.state[slot] != FREE]
    assert sorted(f.table[i] for i in range(f.mask + 1) if f.table[i]) == taken
    names = {(f.low[slot], f.high[slot]) for slot in taken}
    assert len(names) == len(taken), "two slots hold one block"
    for slot in taken:
        key = f.low[slot].to_bytes(8, "little") + f.high[slot].to_bytes(8, "little")
        assert index.find(key) == slot
    assert [f.used[s] for s in lists[Head.LOOSE]] == sorted(f.used[s] for s in lists[Head.LOOSE])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(OPERATIONS, max_size=40))
def test_lists_and_table_always_agree(operations: list[tuple[str, list[int]]]) -> None:
    memory = Memory()
    processes = [memory.process(1), memory.process(2)]
    for turn, operation in enumerate(operations):
        act(memory, processes[turn % 2], operation)
        check(processes[0])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(OPERATIONS, min_size=1, max_size=15),
    st.lists(OPERATIONS, max_size=10),
    st.integers(0, 400),
    st.lists(st.integers(0, 8), max_size=2, unique=True),
)
def test_a_death_at_any_write_is_repaired(
    before: list[tuple[str, list[int]]], after: list[tuple[str, list[int]]], writes: int, pinned: list[int]
) -> None:
    """What a living process has pinned stays pinned in its slot, whatever instant the other one dies at."""
    memory = Memory()
    survivor, victim = memory.process(1), memory.process(2, writes)
    mine = [KEYS[i] for i in pinned]
    survivor.commit([k for k, slot in zip(mine, survivor.reserve(mine), strict=True) if slot])
    slots = survivor.pin(mine)
    assert all(slots)
    try:
        for operation in before:
            act(memory, victim, operation)
    except Died:
        pass
    memory.alive.discard(2)
    for operation in after:
        if operation[0] in ("unpin", "discard"):
            continue  # it takes back none of its own pins here
        act(memory, survivor, operation)
        check(survivor)
    survivor.touch(mine)
    check(survivor)
    assert [survivor.held(key) for key in mine] == slots
    survivor.unpin(mine)
    survivor.forget(lambda owner: True)
    survivor.evict(CAPACITY)
    check(survivor)
    assert survivor.fields.head[Head.BLOCKS] == 0, "a slot is lost"


def test_a_block_reserved_by_a_dead_process_can_be_reserved() -> None:
    memory = Memory()
    first, second = memory.process(1), memory.process(2)
    assert all(first.reserve(KEYS[:2]))
    assert second.reserve(KEYS[:2]) == [0, 0]
    memory.alive = {2}
    assert all(second.reserve(KEYS[:2]))
    second.commit(KEYS[:2])
    check(second)


def test_pins_of_a_dead_process_end_when_room_is_needed() -> None:
    memory = Memory()
    first, second = memory.process(1), memory.process(2)
    first.commit([k for k, s in zip(KEYS[:5], first.reserve(KEYS[:5]), strict=True) if s])
    assert all(first.pin(KEYS[:5]))
    assert second.reserve(KEYS[5:6]) == [0]
    memory.alive = {2}
    assert all(second.reserve(KEYS[5:6]))
    check(second)


def test_more_pins_than_fit_are_refused_like_blocks_that_are_not_held() -> None:
    memory = Memory(1)
    index = memory.process(1)
    index.commit([k for k, s in zip(KEYS[:1], index.reserve(KEYS[:1]), strict=True) if s])
    count = 0
    while index.pin(KEYS[:1], 1000 + count) != [0]:
        count += 1
    assert count == index.fields.pin_capacity
    memory.now += 10_000
    assert index.pin(KEYS[:1], 5) != [0], "ended leases make room for pins"
    check(index)


@pytest.mark.parametrize("capacity", [1, 1000, 1_000_000])
def test_a_block_needs_few_bytes_of_index(capacity: int) -> None:
    assert index_bytes(capacity) <= 40_000 + 110 * capacity

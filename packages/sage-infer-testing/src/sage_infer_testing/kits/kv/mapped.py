"""The kit for KV stores whose blocks lie in memory that other processes map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sage_infer.contracts import MappedKVStore
from sage_infer.errors import InvalidRequest

from sage_infer_testing.kits.kv.store import KVStoreContract
from sage_infer_testing.waiting import eventually

__all__ = ["MappedKVStoreContract"]

Make = Callable[[int], Any]


class MappedKVStoreContract(KVStoreContract, kit=True):
    """Everything that a ``MappedKVStore`` promises, and all that a ``KVStore`` does. Override ``open_store``."""

    protocol: ClassVar[type] = MappedKVStore

    # --- what tests use

    def slot(self, store: Any, index: int) -> memoryview:
        """The bytes of a slot."""
        size = self.kv_schema.bytes_per_page
        region: memoryview = store.region().cast("B")
        return region[index * size : (index + 1) * size]

    def write(self, store: Any, keys: Sequence[bytes], slots: Sequence[int | None]) -> None:
        """Fill reserved slots with their keys' blocks."""
        for key, index in zip(keys, slots, strict=True):
            assert index is not None, f"no slot was reserved for {key.hex()}"
            self.slot(store, index)[:] = self.block(key)

    # --- tests

    def test_the_region_has_a_slot_for_each_block(self, make_store: Make) -> None:
        """``region`` is writable memory of at least ``capacity_blocks`` pages, the same at each call.

        How to fix: allocate the arena once, when the store is opened.
        """
        store = make_store(4)
        region = store.region()
        assert not region.readonly, "the region cannot be written"
        least = store.stats().capacity_blocks * self.kv_schema.bytes_per_page
        assert region.nbytes >= least > 0, f"{region.nbytes} bytes, {least} are needed"
        (index,) = store.reserve(self.keys(1))
        self.write(store, self.keys(1), [index])
        assert bytes(self.slot(store, index)) == bytes(self.block(self.keys(1)[0])), (
            "region() is another memory"
        )

    def test_committed_blocks_are_found(self, make_store: Make) -> None:
        """What was reserved, filled and committed is found like what was put, byte for byte.

        How to fix: enter the keys into the index in ``commit``; the bytes are in their slots already.
        """
        store, keys = make_store(4), self.keys(2)
        slots = store.reserve(keys)
        assert len(set(slots)) == 2, f"two blocks were given the slots {slots}"
        self.write(store, keys, slots)
        store.commit(keys)
        assert self.held(store, keys) == [True, True]
        assert store.match(self.tokens(2)) == 2 * self.kv_schema.page_size
        assert store.stats().blocks == 2, store.stats()

    def test_reserved_blocks_are_not_visible(self, make_store: Make) -> None:
        """Between ``reserve`` and ``commit`` a block is not held for anybody.

        How to fix: keep reserved slots apart from the index until ``commit``.
        """
        store, keys = make_store(4), self.keys(2)
        self.write(store, keys, store.reserve(keys))
        assert store.contains(keys) == [False, False], "contains() sees a reserved block"
        assert self.held(store, keys) == [False, False]
        assert store.match(self.tokens(2)) == 0, "match() sees a reserved block"
        assert store.acquire(keys) == [None, None], "acquire() hands out a reserved block"
        assert store.pin(keys) == [False, False], "pin() sees a reserved block"
        assert store.stats().blocks == 0, f"a reserved block is counted as held: {store.stats()}"

    def test_a_block_is_written_once(self, make_store: Make) -> None:
        """``reserve`` has no slot for a key that is held or reserved already, nor twice in one call.

        How to fix: look the key up in the index and among the reserved ones first.
        """
        store, keys = make_store(6), self.keys(3)
        self.fill(store, keys[:1])
        slots = store.reserve(keys[:2])
        assert slots[0] is None, "a slot was reserved for a block that is held"
        assert store.reserve(keys[1:2]) == [None], "a slot was reserved for a block that is reserved"
        twice = store.reserve([keys[2], keys[2]])
        assert twice[0] is not None
        assert twice[1] is None, f"one block was given the slots {twice}"

    def test_reserving_makes_room(self, make_store: Make) -> None:
        """``reserve`` evicts unpinned blocks, and has no slot where all are pinned or reserved.

        How to fix: free slots as ``put`` does; never one that is reserved or acquired.
        """
        store = make_store(2)
        size = self.capacity(store, 2)
        keys = self.keys(2 * size + 1)
        self.fill(store, keys[:size])
        slots = store.reserve(keys[size : 2 * size])
        assert None not in slots, f"a store of unpinned blocks must make room, got {slots}"
        assert store.reserve(keys[2 * size :]) == [None], "a slot that is reserved was given away"
        self.write(store, keys[size : 2 * size], slots)
        assert self.fill(store, keys[:1]) == 0, "put() stored a block into a reserved slot"
        store.commit(keys[size : 2 * size])
        assert self.held(store, keys[size : 2 * size]) == [True] * size

    def test_discard_gives_the_slot_back(self, make_store: Make) -> None:
        """A discarded block is not held, and its slot can be used again; other keys are ignored.

        How to fix: put the slot back among the free ones; held blocks stay.
        """
        store = make_store(2)
        size = self.capacity(store, 2)
        keys = self.keys(2 * size + 1)
        for _ in range(3):
            assert None not in store.reserve(keys[:size]), "slots of discarded blocks were lost"
            store.discard(keys[:size])
        self.fill(store, keys[-1:])
        store.discard([keys[0], keys[-1]])
        assert store.contains([keys[0], keys[-1]]) == [False, True]

    def test_commit_of_what_is_not_reserved_is_refused(self, make_store: Make) -> None:
        """``commit`` with a key that is not reserved is ``InvalidRequest``, and commits none of them.

        How to fix: check all keys before the first one enters the index.
        """
        store, keys = make_store(4), self.keys(2)
        self.write(store, keys[:1], store.reserve(keys[:1]))
        with pytest.raises(InvalidRequest):
            store.commit(keys)
        assert store.contains(keys) == [False, False], "a refused commit() committed a block"
        store.commit(keys[:1])
        with pytest.raises(InvalidRequest):
            store.commit(keys[:1])
        assert self.held(store, keys) == [True, False]

    def test_acquired_slots_hold_still(self, make_store: Make) -> None:
        """``acquire`` returns where each block lies, None where it is not held; its bytes stay until ``release``.

        How to fix: an acquired block is pinned; count ``acquire`` and ``release`` as ``pin`` and ``unpin``.
        """
        store = make_store(2)
        size = self.capacity(store, 2)
        keys = self.keys(2 * size)
        self.fill(store, keys[:1])
        slots = store.acquire(keys[:2])
        assert slots[0] is not None, "acquire() does not find a block that was put"
        assert slots[1] is None, "acquire() returned a slot for a block that is not held"
        self.fill(store, keys[1:])
        found = bytes(self.slot(store, slots[0]))
        assert not self.lossless or found == self.block(keys[0]), "an acquired slot was written over"
        assert store.contains(keys[:1]) == [True]
        store.release(keys)
        store.release(keys)
        assert store.evict(2 * size) == size, "a released block cannot be evicted"

    async def test_an_acquired_slot_with_a_lease_comes_back(self, make_store: Make) -> None:
        """An ``acquire`` with ``lease_s`` ends by itself, so that a reader that dies blocks nothing.

        How to fix: as for the leases of ``pin``.
        """
        store, keys = make_store(4), self.keys(1)
        self.fill(store, keys)
        assert None not in store.acquire(keys, lease_s=0.02)
        await eventually(
            lambda: store.evict(1) == 1, "a block whose lease is over was not evicted", within_s=self.settle_s
        )

    def test_other_processes_see_the_region(self, make_store: Make) -> None:
        """Where ``region_uri`` names shared memory, the block lies there too.

        How to fix: ``shm://name`` is the name that ``shm_open`` takes, without a slash.
        """
        store, keys = make_store(4), self.keys(1)
        uri = store.region_uri()
        assert isinstance(uri, str), f"region_uri() returned {uri!r}"
        file = Path("/dev/shm", uri.removeprefix("shm://"))
        if not uri.startswith("shm://") or not file.parent.is_dir():
            pytest.skip(f"region_uri is {uri!r}: the memory is private, or cannot be looked at here")
        self.fill(store, keys)
        (index,) = store.acquire(keys)
        size = self.kv_schema.bytes_per_page
        with file.open("rb") as memory:
            memory.seek(index * size)
            assert memory.read(size) == bytes(self.slot(store, index)), f"{uri} holds other bytes"

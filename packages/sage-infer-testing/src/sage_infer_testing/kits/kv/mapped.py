"""The kit for KV stores in memory that other processes can map."""

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
    """Guarantees of a ``MappedKVStore``, including those of ``KVStore``. Override ``open_store``."""

    protocol: ClassVar[type] = MappedKVStore

    # --- helpers of the tests

    def slot(self, store: Any, index: int) -> memoryview:
        """Return the bytes of a slot."""
        size = self.kv_schema.bytes_per_page
        region: memoryview = store.region().cast("B")
        return region[index * size : (index + 1) * size]

    def write(self, store: Any, keys: Sequence[bytes], slots: Sequence[int | None]) -> None:
        """Fill reserved slots with the blocks of their keys."""
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
            "region() returned different memory"
        )

    def test_committed_blocks_are_found(self, make_store: Make) -> None:
        """Blocks that were reserved, filled and committed are found like blocks that were put, byte for byte.

        How to fix: add the keys to the index in ``commit``; the bytes are already in their slots.
        """
        store, keys = make_store(4), self.keys(2)
        slots = store.reserve(keys)
        assert len(set(slots)) == 2, f"two blocks have the slots {slots}"
        self.write(store, keys, slots)
        store.commit(keys)
        assert self.held(store, keys) == [True, True]
        assert store.match(self.tokens(2)) == 2 * self.kv_schema.page_size
        assert store.stats().blocks == 2, store.stats()

    def test_reserved_blocks_are_not_visible(self, make_store: Make) -> None:
        """A block is not visible between ``reserve`` and ``commit``.

        How to fix: do not add reserved slots to the index until ``commit``.
        """
        store, keys = make_store(4), self.keys(2)
        self.write(store, keys, store.reserve(keys))
        assert store.contains(keys) == [False, False], "contains() sees a reserved block"
        assert self.held(store, keys) == [False, False]
        assert store.match(self.tokens(2)) == 0, "match() sees a reserved block"
        assert store.acquire(keys) == [None, None], "acquire() returns a reserved block"
        assert store.pin(keys) == [False, False], "pin() sees a reserved block"
        assert store.stats().blocks == 0, f"a reserved block is counted as stored: {store.stats()}"

    def test_a_block_is_written_once(self, make_store: Make) -> None:
        """``reserve`` returns None for a key that is already stored or reserved, also within the same call.

        How to fix: first look up the key in the index and among the reserved keys.
        """
        store, keys = make_store(6), self.keys(3)
        self.fill(store, keys[:1])
        slots = store.reserve(keys[:2])
        assert slots[0] is None, "a slot was reserved for a stored block"
        assert store.reserve(keys[1:2]) == [None], "a second slot was reserved for a reserved block"
        twice = store.reserve([keys[2], keys[2]])
        assert twice[0] is not None
        assert twice[1] is None, f"one block has the slots {twice}"

    def test_reserving_makes_room(self, make_store: Make) -> None:
        """``reserve`` evicts unpinned blocks, and returns None if all blocks are pinned or reserved.

        How to fix: evict blocks as in ``put``, but never reuse a slot that is reserved or acquired.
        """
        store = make_store(2)
        size = self.capacity(store, 2)
        keys = self.keys(2 * size + 1)
        self.fill(store, keys[:size])
        slots = store.reserve(keys[size : 2 * size])
        assert None not in slots, f"reserve() must evict unpinned blocks, got {slots}"
        assert store.reserve(keys[2 * size :]) == [None], "a reserved slot was reused"
        self.write(store, keys[size : 2 * size], slots)
        assert self.fill(store, keys[:1]) == 0, "put() stored a block into a reserved slot"
        store.commit(keys[size : 2 * size])
        assert self.held(store, keys[size : 2 * size]) == [True] * size

    def test_discard_gives_the_slot_back(self, make_store: Make) -> None:
        """A discarded block is not stored, and its slot can be reused; other keys are ignored.

        How to fix: add the slot to the free slots; do not discard stored blocks.
        """
        store = make_store(2)
        size = self.capacity(store, 2)
        keys = self.keys(2 * size + 1)
        for _ in range(3):
            assert None not in store.reserve(keys[:size]), "slots of discarded blocks were not freed"
            store.discard(keys[:size])
        self.fill(store, keys[-1:])
        store.discard([keys[0], keys[-1]])
        assert store.contains([keys[0], keys[-1]]) == [False, True]

    def test_commit_of_what_is_not_reserved_is_refused(self, make_store: Make) -> None:
        """``commit`` with a key that is not reserved is ``InvalidRequest``, and commits no block.

        How to fix: check all keys before adding the first one to the index.
        """
        store, keys = make_store(4), self.keys(2)
        self.write(store, keys[:1], store.reserve(keys[:1]))
        with pytest.raises(InvalidRequest):
            store.commit(keys)
        assert store.contains(keys) == [False, False], "a failed commit() committed a block"
        store.commit(keys[:1])
        with pytest.raises(InvalidRequest):
            store.commit(keys[:1])
        assert self.held(store, keys) == [True, False]

    def test_acquired_slots_hold_still(self, make_store: Make) -> None:
        """``acquire`` returns the slot of each stored block, else None; its bytes do not change until ``release``.

        How to fix: pin acquired blocks; count ``acquire`` and ``release`` like ``pin`` and ``unpin``.
        """
        store = make_store(2)
        size = self.capacity(store, 2)
        keys = self.keys(2 * size)
        self.fill(store, keys[:1])
        slots = store.acquire(keys[:2])
        assert slots[0] is not None, "acquire() does not find a block that was put"
        assert slots[1] is None, "acquire() returned a slot for a missing block"
        self.fill(store, keys[1:])
        found = bytes(self.slot(store, slots[0]))
        assert not self.lossless or found == self.block(keys[0]), "an acquired slot was overwritten"
        assert store.contains(keys[:1]) == [True]
        store.release(keys)
        store.release(keys)
        assert store.evict(2 * size) == size, "a released block cannot be evicted"

    async def test_an_acquired_slot_with_a_lease_comes_back(self, make_store: Make) -> None:
        """An ``acquire`` with ``lease_s`` expires, so that a crashed reader does not hold blocks forever.

        How to fix: as for leases of ``pin``.
        """
        store, keys = make_store(4), self.keys(1)
        self.fill(store, keys)
        assert None not in store.acquire(keys, lease_s=0.02)
        await eventually(
            lambda: store.evict(1) == 1,
            "a block whose lease has expired was not evicted",
            within_s=self.settle_s,
        )

    def test_other_processes_see_the_region(self, make_store: Make) -> None:
        """If ``region_uri`` names shared memory, the blocks can be read there.

        How to fix: in ``shm://name`` use the name passed to ``shm_open``, without the slash.
        """
        store, keys = make_store(4), self.keys(1)
        uri = store.region_uri()
        assert isinstance(uri, str), f"region_uri() returned {uri!r}"
        file = Path("/dev/shm", uri.removeprefix("shm://"))
        if not uri.startswith("shm://") or not file.parent.is_dir():
            pytest.skip(f"region_uri is {uri!r}: the memory is private, or cannot be mapped on this system")
        self.fill(store, keys)
        (index,) = store.acquire(keys)
        size = self.kv_schema.bytes_per_page
        with file.open("rb") as memory:
            memory.seek(index * size)
            assert memory.read(size) == bytes(self.slot(store, index)), f"{uri} holds other bytes"

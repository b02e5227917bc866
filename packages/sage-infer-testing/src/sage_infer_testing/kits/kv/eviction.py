"""Eviction from a store, and blocks that must not be evicted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sage_infer_testing.kits.kv.base import KVStoreSuite
from sage_infer_testing.waiting import eventually

__all__ = ["EvictionTests"]


class EvictionTests(KVStoreSuite, kit=True):
    """Tests of capacity, eviction order, pins and leases."""

    def test_least_recently_used_makes_room(self, make_store: Callable[[int], Any]) -> None:
        """A full store evicts the least recently used block; ``get`` counts as a use, ``contains`` does not.

        How to fix: move a key to the end of the order on ``get`` and ``put``; evict from the front.
        """
        self.need_lru()
        store = make_store(3)
        size = self.capacity(store, 3)
        keys = self.keys(size + 1)
        for key in keys[:size]:
            self.fill(store, [key])
        assert self.held(store, keys[:1]) == [True]
        store.contains(keys[1:2])
        assert self.fill(store, keys[size:]) == 1, "a full store must evict a block to store another one"
        assert self.held(store, [*keys[:3], keys[size]]) == [True, False, True, True], (
            "a block other than the least recently used one was evicted"
        )
        stats = store.stats()
        assert stats.blocks == stats.capacity_blocks == size, (
            f"stats() of a full store of {size} blocks return {stats}"
        )
        assert stats.evictions == 1, f"one block was evicted, stats() count {stats.evictions}"

    def test_evict_drops_the_oldest(self, make_store: Callable[[int], Any]) -> None:
        """``evict(n)`` evicts up to n unpinned blocks, least recently used first, and returns their number.

        How to fix: use the same code as for eviction from a full store.
        """
        self.need_lru()
        store, keys = make_store(4), self.keys(3)
        for key in keys:
            self.fill(store, [key])
        assert store.evict(1) == 1
        assert self.held(store, keys) == [False, True, True]
        assert store.evict(10) == 2, "evict() must return the number of evicted blocks"
        assert store.evict(1) == 0, "an empty store has nothing to evict"

    def test_pins_hold(self, make_store: Callable[[int], Any]) -> None:
        """Pinned blocks are not evicted; pins are counted; ``pin`` returns False for unknown keys.

        How to fix: keep a pin count per block, and do not evict blocks with a count above 0.
        """
        store = make_store(2)
        size = self.capacity(store, 2)
        keys = self.keys(size + 2)
        self.fill(store, keys[:2])
        assert store.pin([keys[0], keys[-1]]) == [True, False]
        store.pin(keys[:1])
        store.unpin(keys[:1])
        assert store.stats().pinned_blocks == 1, (
            f"one block is pinned, stats() say {store.stats().pinned_blocks}"
        )
        assert store.evict(10) == 1, "evict() must not evict the pinned block, which still has its second pin"
        self.fill(store, keys[1:])
        assert self.held(store, keys[:1]) == [True], "a pinned block was evicted from a full store"
        store.unpin(keys[:1])
        assert store.evict(2 * size) == size, "an unpinned block can be evicted again"
        store.unpin(keys)
        self.fill(store, keys[:1])
        store.pin(keys[:1])
        assert store.evict(1) == 0, (
            "a pin did not hold: unpin() of a block without pins took it back beforehand"
        )
        store.unpin(keys[:1])

    def test_capacity_is_kept(self, make_store: Callable[[int], Any]) -> None:
        """A store never holds more blocks than its capacity, whatever its policy; one put of more keeps what fits.

        How to fix: make room before a block is stored, also within one call of ``put``.
        """
        store = make_store(3)
        size = self.capacity(store, 3)
        keys = self.keys(size + 2)
        count = self.fill(store, keys)
        held = store.contains(keys)
        assert sum(held) == count == store.stats().blocks, f"put() returned {count}, held are {sum(held)}"
        assert count <= size, f"a store of {size} blocks holds {count}"
        for key in self.keys(size + 2, salt=1):
            self.fill(store, [key])
            stats = store.stats()
            assert stats.blocks <= size, f"a store of {size} blocks holds {stats.blocks}"

    def test_a_lease_holds_until_its_end(self, make_store: Callable[[int], Any]) -> None:
        """A pin with a long lease protects its block, is counted, and can be removed before its end.

        How to fix: treat a lease like a pin until it expires.
        """
        store, keys = make_store(4), self.keys(2)
        self.fill(store, keys)
        store.pin(keys[:1], lease_s=3600.0)
        assert store.stats().pinned_blocks == 1, f"one block is leased: {store.stats()}"
        assert store.evict(10) == 1, "evict() must not evict the leased block"
        store.unpin(keys[:1])
        assert store.evict(10) == 1, "the lease was taken back, and the block cannot be evicted"

    async def test_leases_end_by_themselves(self, make_store: Callable[[int], Any]) -> None:
        """A pin with a lease expires after ``lease_s`` seconds; other pins of the same block stay.

        How to fix: record the end of each lease, and remove expired pins before an eviction.
        """
        store, keys = make_store(4), self.keys(2)
        self.fill(store, keys)
        assert store.pin(keys, lease_s=0.02) == [True, True]
        assert store.pin(keys[1:]) == [True]
        await eventually(
            lambda: store.evict(1) == 1,
            "a block whose lease has expired was not evicted",
            within_s=self.settle_s,
        )
        assert store.contains(keys) == [False, True], (
            "the pin without a lease ended with the other pin's lease"
        )
        assert store.evict(1) == 0, "the pin without a lease ended with the block's own lease"
        store.unpin(keys)
        assert store.evict(1) == 1, "the last pin was removed, but the block cannot be evicted"

    def test_a_store_full_of_pins_takes_nothing(self, make_store: Callable[[int], Any]) -> None:
        """If every block is pinned, ``put`` returns 0, stores nothing and counts the dropped blocks.

        How to fix: return how many of the given blocks are stored, not how many were given.
        """
        store = make_store(2)
        size = self.capacity(store, 2)
        keys = self.keys(size + 1)
        self.fill(store, keys[:size])
        store.pin(keys[:size])
        assert self.fill(store, keys[size:]) == 0, "put() into a store full of pinned blocks must return 0"
        assert self.held(store, keys) == [True] * size + [False]
        assert store.stats().dropped == 1, (
            f"one block was not stored, stats() return dropped={store.stats().dropped}"
        )

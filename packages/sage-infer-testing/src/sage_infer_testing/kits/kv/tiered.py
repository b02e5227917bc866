"""The kit for KV stores with several tiers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, get_args

from sage_infer.contracts import KVPlace, TieredKVStore
from sage_infer.schemas.kv_chunk import MemoryTier

from sage_infer_testing.kits.kv.store import KVStoreContract
from sage_infer_testing.waiting import eventually

__all__ = ["TieredKVStoreContract"]

Make = Callable[[int], Any]


class TieredKVStoreContract(KVStoreContract, kit=True):
    """Guarantees of a ``TieredKVStore``, including those of ``KVStore``. Override ``open_store``.

    Attributes:
        fastest: the tier that blocks are read from.
        tiered_blocks: capacity of the stores in the tests of tiers, in blocks; the fastest tier must be smaller.
    """

    protocol: ClassVar[type] = TieredKVStore
    fastest: ClassVar[MemoryTier] = "dram"
    tiered_blocks: ClassVar[int] = 8

    # --- helpers of the tests

    def demoted(self, store: Any) -> tuple[list[bytes], list[bytes]]:
        """Fill a store; return all keys, and the keys of blocks that are only in a slower tier."""
        keys = self.keys(self.tiered_blocks)
        for key in keys:
            self.fill(store, [key])
        places = store.locate(keys)
        slow = [key for key, place in zip(keys, places, strict=True) if place and place.tier != self.fastest]
        assert slow, f"all of {len(keys)} blocks are in the tier {self.fastest!r}: {places}"
        return keys, slow

    # --- tests

    def test_blocks_are_located(self, make_store: Make) -> None:
        """``locate`` returns the fastest tier of each block and the seconds until it can be read there.

        How to fix: return a ``KVPlace`` for each stored key, and None for the others.
        """
        store = make_store(self.tiered_blocks)
        keys, _ = self.demoted(store)
        places = store.locate([*keys, *self.keys(1, salt=1)])
        assert places[-1] is None, f"a block that was never put is located at {places[-1]}"
        held = store.contains(keys)
        for place, here in zip(places, held, strict=False):
            assert isinstance(place, KVPlace) is here, f"contains() says {here}, locate() {place}"
            assert place is None or place.tier in get_args(MemoryTier), f"no such tier: {place}"
            assert place is None or place.seconds >= 0, f"negative seconds: {place}"

    def test_locating_is_no_look_up(self, make_store: Make) -> None:
        """``locate`` does not move blocks or change counters.

        How to fix: read the index without counting.
        """
        store = make_store(self.tiered_blocks)
        keys, slow = self.demoted(store)
        before, places = store.stats(), store.locate(keys)
        store.locate(slow[:1])
        assert store.locate(keys) == places, "two calls of locate() differ"
        assert store.stats() == before, f"locate() changed {before} to {store.stats()}"

    def test_every_tier_serves_its_blocks(self, make_store: Make) -> None:
        """Blocks in a slower tier are still stored, and are returned byte for byte.

        How to fix: read blocks in ``get`` from the tier that has them.
        """
        store = make_store(self.tiered_blocks)
        keys, slow = self.demoted(store)
        assert self.held(store, slow) == [True] * len(slow)
        assert all(self.held(store, keys)), "a store below its capacity lost blocks"

    def test_tiers_are_counted(self, make_store: Make) -> None:
        """``stats().tiers`` counts the blocks of each tier; a block may be in several.

        How to fix: update the counts when blocks move between tiers.
        """
        store = make_store(self.tiered_blocks)
        self.demoted(store)
        stats = store.stats()
        assert set(stats.tiers) <= set(get_args(MemoryTier)), f"no such tier: {dict(stats.tiers)}"
        assert all(0 <= count <= stats.blocks for count in stats.tiers.values()), stats
        assert sum(stats.tiers.values()) >= stats.blocks, f"blocks that are in no tier: {stats}"
        assert len([tier for tier, count in stats.tiers.items() if count]) > 1, f"one tier holds all: {stats}"

    async def test_prefetched_blocks_arrive(self, make_store: Make) -> None:
        """``prefetch`` promotes blocks to the fastest tier, and returns how many are being promoted or already there.

        How to fix: start promotions in the background; also count blocks that are already there, but not unknown keys.
        """
        store = make_store(self.tiered_blocks)
        _, slow = self.demoted(store)
        moving = store.prefetch([slow[0], *self.keys(1, salt=1)])
        assert moving == 1, f"one block that is held and one that is not: prefetch() returned {moving}"

        def is_there() -> bool:
            (place,) = store.locate(slow[:1])
            return place is not None and place.tier == self.fastest

        await eventually(is_there, "a prefetched block did not arrive", within_s=self.settle_s)
        assert store.prefetch(slow[:1]) == 1, "a block in the fastest tier counts"
        assert self.held(store, slow[:1]) == [True]

    def test_what_comes_too_late_is_not_moved(self, make_store: Make) -> None:
        """With a ``deadline_s`` that no block can meet, ``prefetch`` moves nothing.

        How to fix: compare the deadline with the estimate of ``locate``.
        """
        store = make_store(self.tiered_blocks)
        _, slow = self.demoted(store)
        assert store.prefetch(slow[:1], deadline_s=1e-9) == 0, (
            "prefetch() started a promotion that cannot meet the deadline"
        )
        (place,) = store.locate(slow[:1])
        assert place is not None, "prefetch() lost the block"
        assert place.tier != self.fastest, "prefetch() moved a block that cannot meet the deadline"

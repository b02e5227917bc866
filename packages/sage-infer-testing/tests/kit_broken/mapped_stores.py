"""Mapped and tiered stores with one mistake each."""

from __future__ import annotations

from typing import Any

import attrs
from kit_reference.mapped_store import ReferenceMappedStore
from kit_reference.tiered_store import ReferenceTieredStore
from sage_infer_testing import MappedKVStoreContract, TieredKVStoreContract

from kit_broken.suites import suite


def mapped(*tests: str) -> Any:
    return suite(MappedKVStoreContract, "open_store", *tests)


def tiered(*tests: str) -> Any:
    return suite(TieredKVStoreContract, "open_store", *tests)


@mapped("test_reserved_blocks_are_not_visible", "test_commit_of_what_is_not_reserved_is_refused")
class CommitsAtOnce(ReferenceMappedStore):
    def reserve_one(self, key: bytes) -> Any:
        index = super().reserve_one(key)
        if index is not None:
            self.commit([key])
        return index


@mapped("test_a_block_is_written_once")
class ReservesTwice(ReferenceMappedStore):
    def reserve_one(self, key: bytes) -> Any:
        self.discard([key])
        return super().reserve_one(key)


@mapped("test_reserving_makes_room")
class GivesReservedSlotsAway(ReferenceMappedStore):
    def reserve_one(self, key: bytes) -> Any:
        if not self.free and self.reserved:
            self.discard(list(self.reserved)[:1])
        return super().reserve_one(key)


@mapped("test_discard_gives_the_slot_back")
class LosesDiscardedSlots(ReferenceMappedStore):
    def discard(self, keys: Any) -> None:
        for key in keys:
            self.reserved.pop(key, None)


@mapped("test_commit_of_what_is_not_reserved_is_refused")
class CommitsWhatItCan(ReferenceMappedStore):
    def commit(self, keys: Any) -> None:
        super().commit([key for key in keys if key in self.reserved])
        super().commit(keys)


@mapped("test_acquired_slots_hold_still", "test_an_acquired_slot_with_a_lease_comes_back")
class AcquiresWithoutAPin(ReferenceMappedStore):
    def acquire(self, keys: Any, *, lease_s: Any = None) -> list[Any]:
        if lease_s is not None:
            return super().acquire(keys)
        return [self.blocks.get(key) for key in keys]


@mapped("test_the_region_has_a_slot_for_each_block")
class CopiesTheRegion(ReferenceMappedStore):
    def region(self) -> memoryview:
        return memoryview(bytearray(self.arena))


@mapped("test_committed_blocks_are_found")
class ForgetsWhatWasCommitted(ReferenceMappedStore):
    def commit(self, keys: Any) -> None:
        super().commit(keys)
        self.slot(self.blocks[keys[-1]])[:1] = b"!"


@mapped("test_other_processes_see_the_region")
class NamesAnotherMemory(ReferenceMappedStore):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.arena = memoryview(bytearray(self.memory.size))


@tiered("test_blocks_are_located")
class LocatesEverything(ReferenceTieredStore):
    def place(self, key: bytes) -> Any:
        place = super().place(key)
        return place and attrs.evolve(place, seconds=-1.0)


@tiered("test_locating_is_no_look_up")
class PromotesWhatIsLocated(ReferenceTieredStore):
    def place(self, key: bytes) -> Any:
        place = super().place(key)
        if place:
            self.promote(key)
        return place


@tiered("test_every_tier_serves_its_blocks")
class LosesTheDisk(ReferenceTieredStore):
    def get(self, keys: Any, out: Any) -> list[bool]:
        here = [key for key in keys if key in self.fast]
        buffers = dict(zip(keys, out, strict=True))
        super().get(here, [buffers[key] for key in here])
        return [key in self.fast for key in keys]


@tiered("test_tiers_are_counted")
class CountsNoTiers(ReferenceTieredStore):
    def stats(self) -> Any:
        return attrs.evolve(super().stats(), tiers={"dram": 0})


@tiered("test_prefetched_blocks_arrive")
class PromisesPrefetches(ReferenceTieredStore):
    def prefetch(self, keys: Any, *, deadline_s: Any = None) -> int:
        return sum(self.contains(keys))


@tiered("test_what_comes_too_late_is_not_moved")
class IgnoresDeadlinesOfMoves(ReferenceTieredStore):
    def prefetch(self, keys: Any, *, deadline_s: Any = None) -> int:
        return super().prefetch(keys)

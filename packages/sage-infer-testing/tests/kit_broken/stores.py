"""KV stores with one mistake each."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import attrs
from kit_reference.store import ReferenceStore
from sage_infer_testing import KVStoreContract

from kit_broken.suites import suite


def store(*tests: str) -> Any:
    return suite(KVStoreContract, "open_store", *tests)


@store("test_put_copies")
class KeepsViews(ReferenceStore):
    def put(self, keys: Any, blocks: Any) -> int:
        count = super().put(keys, blocks)
        self.blocks.update(zip(keys, blocks, strict=True))
        return count


@store("test_blocks_come_back", "test_random_operations_agree_with_a_model")
class ReturnsOtherBytes(ReferenceStore):
    def get(self, keys: Any, out: Any) -> list[bool]:
        found = super().get(keys, out)
        for buffer in out:
            buffer[0] ^= 1
        return found


@store("test_put_again_changes_nothing")
class CountsPuts(ReferenceStore):
    puts = 0

    def put(self, keys: Any, blocks: Any) -> int:
        self.puts += len(keys)
        return super().put(keys, blocks)

    def stats(self) -> Any:
        return attrs.evolve(super().stats(), blocks=self.puts)


@store("test_match_walks_the_prefix", "test_random_operations_agree_with_a_model")
class JumpsGaps(ReferenceStore):
    def match(self, tokens: Any) -> int:
        from sage_infer.contracts import block_keys

        keys = block_keys(self.model_id, self.schema, tokens)
        return self.schema.page_size * sum(key in self.blocks for key in keys)


@store("test_look_ups_are_counted")
class CountsNoLookUps(ReferenceStore):
    def stats(self) -> Any:
        return attrs.evolve(super().stats(), hits=0, misses=0)


@store("test_wrong_buffers_are_refused")
class ChecksNothing(ReferenceStore):
    def check(self, keys: Any, buffers: Any) -> None:
        """Nothing."""


@store("test_least_recently_used_makes_room", "test_evict_drops_the_oldest")
class DropsTheNewest(ReferenceStore):
    def evict(self, count: int, keep: Any = frozenset()) -> int:
        self.blocks = type(self.blocks)(reversed(self.blocks.items()))
        gone = super().evict(count, keep)
        self.blocks = type(self.blocks)(reversed(self.blocks.items()))
        return gone


@store(
    "test_pins_hold", "test_a_store_full_of_pins_takes_nothing", "test_random_operations_agree_with_a_model"
)
class IgnoresPins(ReferenceStore):
    def evict(self, count: int, keep: Any = frozenset()) -> int:
        pins, self.pins = self.pins, defaultdict(list)
        gone = super().evict(count, keep)
        self.pins = pins
        return gone


@store("test_stats_add_up")
class CountsNoBytes(ReferenceStore):
    def stats(self) -> Any:
        return attrs.evolve(super().stats(), bytes_used=0)


@store("test_close_twice_is_safe")
class ClosesTheStoreOnce(ReferenceStore):
    def close(self) -> None:
        del self.lock


@store("test_threads_do_not_disturb_each_other")
class LosesPins(ReferenceStore):
    def unpin(self, keys: Any) -> None:
        super().unpin(keys[:1])


@store("test_has_the_shape_of_its_protocol")
class OtherSchema(ReferenceStore):
    @property
    def schema(self) -> Any:
        return attrs.evolve(self._schema, format_id="mine")


@store("test_match_keys_walks_the_keys")
class CountsHeldKeys(ReferenceStore):
    def match_keys(self, keys: Any) -> int:
        return sum(self.contains(keys))


@store("test_contains_is_no_look_up")
class CountsGlances(ReferenceStore):
    def contains(self, keys: Any) -> list[bool]:
        self.hits += 1
        return super().contains(keys)


@store("test_least_recently_used_makes_room")
class TakesGlancesForUses(ReferenceStore):
    def contains(self, keys: Any) -> list[bool]:
        for key in filter(self.blocks.__contains__, keys):
            self.blocks.move_to_end(key)
        return super().contains(keys)


@store("test_leases_end_by_themselves")
class LeasesForEver(ReferenceStore):
    def pin(self, keys: Any, *, lease_s: Any = None) -> list[bool]:
        return super().pin(keys)


@store("test_a_lease_holds_until_its_end")
class LeasesAreNoPins(ReferenceStore):
    def pin(self, keys: Any, *, lease_s: Any = None) -> list[bool]:
        return super().pin(keys) if lease_s is None else self.contains(keys)


@store("test_a_store_full_of_pins_takes_nothing")
class HidesWhatItDrops(ReferenceStore):
    def stats(self) -> Any:
        return attrs.evolve(super().stats(), dropped=0)

"""KV stores with one fault each."""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any, ClassVar

import attrs
from kit_reference.store import ReferenceStore
from sage_infer.contracts import block_keys
from sage_infer.errors import InvalidRequest
from sage_infer_testing import KVStoreContract

from kit_mutants.table import mutant


def store(fault: str, test: str, says: str, **settings: Any) -> Callable[[type], type]:
    """Register a store under its fault, the test that fails on it and words of the failure."""

    def register(broken: type) -> type:
        made = {"open_store": lambda self, blocks: broken(self.model_id, self.kv_schema, blocks)}
        mutant("store", KVStoreContract, made, broken, fault, test, says, **settings)
        return broken

    return register


@store("a block comes back with other bytes", "test_blocks_come_back", "was returned with different bytes")
class FlipsABit(ReferenceStore):
    def load(self, key: bytes) -> Any:
        block = bytearray(super().load(key))
        block[-1] ^= 1
        return block


@store(
    "put keeps the caller's buffer instead of a copy", "test_put_copies", "was returned with different bytes"
)
class KeepsTheBuffer(ReferenceStore):
    def keep(self, key: bytes, block: memoryview) -> None:
        self.blocks[key] = block


@store(
    "a miss writes into the caller's buffer",
    "test_blocks_come_back",
    "is not stored, but its buffer was written",
)
class WritesOnAMiss(ReferenceStore):
    def get(self, keys: Any, out: Any) -> list[bool]:
        found = super().get(keys, out)
        for buffer, hit in zip(out, found, strict=True):
            if not hit:
                buffer[:] = b"\1" * len(buffer)
        return found


@store("pins are forgotten", "test_pins_hold", "one block is pinned, stats")
class ForgetsPins(ReferenceStore):
    def pin(self, keys: Any, *, lease_s: Any = None) -> list[bool]:
        return self.contains(keys)


@store("pinned blocks are evicted", "test_pins_hold", "must not evict the pinned block")
class EvictsPinned(ReferenceStore):
    def evict(self, count: int, keep: Any = frozenset()) -> int:
        pins, self.pins = self.pins, defaultdict(list)
        gone = super().evict(count, keep)
        self.pins = pins
        return gone


@store("two pins are one", "test_pins_hold", "still has its second pin|one block is pinned")
class PinsOnce(ReferenceStore):
    def unpin(self, keys: Any) -> None:
        for key in keys:
            self.pins[key].clear()


@store("unpin of an unpinned block takes back the next pin", "test_pins_hold", "a pin did not hold")
class PinsBelowZero(ReferenceStore):
    debts: dict[bytes, int]

    def unpin(self, keys: Any) -> None:
        for key in keys:
            if not self.is_pinned(key):
                self.__dict__.setdefault("debts", {})[key] = 1
        super().unpin(keys)

    def pin(self, keys: Any, *, lease_s: Any = None) -> list[bool]:
        debts = self.__dict__.setdefault("debts", {})
        super().pin([key for key in keys if not debts.get(key)], lease_s=lease_s)
        return self.contains(keys)


@store(
    "a lease never ends",
    "test_leases_end_by_themselves",
    "whose lease has expired was not evicted",
    settle_s=0.3,
)
class LeasesNeverEnd(ReferenceStore):
    def pin(self, keys: Any, *, lease_s: Any = None) -> list[bool]:
        return super().pin(keys)


@store(
    "the end of a lease ends all pins",
    "test_leases_end_by_themselves",
    "the pin without a lease ended|was not evicted",
)
class LeasesEndPins(ReferenceStore):
    def is_pinned(self, key: bytes) -> bool:
        if any(end <= time.monotonic() for end in self.pins[key]):
            self.pins[key].clear()
        return super().is_pinned(key)


@store("capacity is exceeded by one", "test_capacity_is_kept", "a store of 3 blocks holds 4")
class HoldsOneMore(ReferenceStore):
    def has_room(self) -> bool:
        return len(self.blocks) <= self.capacity


@store("a call of put makes no room within itself", "test_capacity_is_kept", "a store of 3 blocks holds 5")
class MakesRoomLate(ReferenceStore):
    def put(self, keys: Any, blocks: Any) -> int:
        self.evict(max(0, len(self.blocks) + 1 - self.capacity))
        for key, block in zip(keys, blocks, strict=True):
            self.keep(key, block)
        return len(keys)


@store("match counts blocks after a gap", "test_match_walks_the_prefix", "blocks 0, 1 and 3")
class MatchesOverGaps(ReferenceStore):
    def match_keys(self, keys: Any) -> int:
        return sum(self.contains(keys))


@store(
    "match counts a partial block",
    "test_match_walks_the_prefix",
    "partial block must not count|less than a block",
)
class MatchesPartialBlocks(ReferenceStore):
    def match(self, tokens: Any) -> int:
        found = super().match(tokens)
        return found + len(tokens) % self.schema.page_size if found else 0


@store("match forgets the model: all models share blocks", "test_match_walks_the_prefix", "blocks 0, 1 and 3")
class ForgetsTheModel(ReferenceStore):
    def match(self, tokens: Any) -> int:
        return self.match_keys(list(block_keys("any", self.schema, tokens))) * self.schema.page_size


@store(
    "the newest block is dropped first",
    "test_least_recently_used_makes_room",
    "other than the least recently used",
)
class DropsNewest(ReferenceStore):
    def evict(self, count: int, keep: Any = frozenset()) -> int:
        self.blocks = OrderedDict(reversed(self.blocks.items()))
        gone = super().evict(count, keep)
        self.blocks = OrderedDict(reversed(self.blocks.items()))
        return gone


@store(
    "get is no use: first in, first out",
    "test_least_recently_used_makes_room",
    "other than the least recently used",
)
class FirstInFirstOut(ReferenceStore):
    def get(self, keys: Any, out: Any) -> list[bool]:
        order = list(self.blocks)
        found = super().get(keys, out)
        for key in order:
            self.blocks.move_to_end(key)
        return found


@store("put again takes more room", "test_put_again_changes_nothing", "2 blocks were put twice")
class CountsPutsTwice(ReferenceStore):
    again = 0

    def put(self, keys: Any, blocks: Any) -> int:
        self.again += sum(self.contains(keys))
        return super().put(keys, blocks)

    def stats(self) -> Any:
        return attrs.evolve(super().stats(), blocks=len(self.blocks) + self.again)


@store(
    "put returns what was given, not what is held", "test_a_store_full_of_pins_takes_nothing", "must return 0"
)
class ReturnsWhatWasGiven(ReferenceStore):
    def put(self, keys: Any, blocks: Any) -> int:
        super().put(keys, blocks)
        return len(keys)


@store("bytes_used never falls", "test_stats_add_up", "bytes_used stays")
class BytesNeverFall(ReferenceStore):
    most = 0

    def stats(self) -> Any:
        found = super().stats()
        self.most = max(self.most, found.bytes_used)
        return attrs.evolve(found, bytes_used=self.most)


@store("a look-up counts once for each block", "test_look_ups_are_counted", "hits went from")
class CountsEachBlock(ReferenceStore):
    def match_keys(self, keys: Any) -> int:
        length = super().match_keys(keys)
        self.hits += len(keys)
        return length


@store("stores share one index", "test_stores_are_apart", "is in another one")
class SharesItsIndex(ReferenceStore):
    shared: ClassVar[OrderedDict[bytes, Any]] = OrderedDict()

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.blocks = self.shared
        self.blocks.clear()


@store(
    "buffers of a wrong size are accepted", "test_wrong_buffers_are_refused", "DID NOT RAISE .*InvalidRequest"
)
class ChecksNoSizes(ReferenceStore):
    def check(self, keys: Any, buffers: Any) -> None:
        if len(keys) != len(buffers):
            raise InvalidRequest("keys and buffers do not pair up")


@store(
    "no lock: room is looked for and taken in two steps",
    "test_threads_do_not_disturb_each_other",
    "more blocks than fit|returned with different|pinned|KeyError|RuntimeError",
)
class HasNoLock(ReferenceStore):
    """Two threads that find the same last room both take it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.lock = contextlib.nullcontext()  # type: ignore[assignment]

    def has_room(self) -> bool:
        room = super().has_room()
        time.sleep(0.002)  # not to wait for something: so that others run between looking and taking
        return room

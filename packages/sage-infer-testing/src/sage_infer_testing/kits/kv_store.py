"""The kit for KV stores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
from sage_infer.contracts import KVStore, KVStoreStats, block_keys
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import KVCacheSchema

from sage_infer_testing.kits.kv_store_machine import explore
from sage_infer_testing.shape import shape_problems
from sage_infer_testing.suite import ContractSuite

__all__ = ["KVStoreContract"]


class KVStoreContract(ContractSuite, kit=True):
    """Everything that a ``KVStore`` promises. Override ``open_store``.

    Attributes:
        model_id: the model that the store is opened for.
        kv_schema: the schema that it is opened with.
        lossless: whether blocks come back byte for byte; False for a store that quantizes.
        examples: sequences of operations that the randomized test tries.
    """

    model_id: ClassVar[str] = "kit-model"
    kv_schema: ClassVar[KVCacheSchema] = KVCacheSchema.from_preset(
        "fp16", num_layers=2, num_heads=2, head_dim=8, page_size=4
    )
    lossless: ClassVar[bool] = True
    examples: ClassVar[int] = 40

    def open_store(self, capacity_blocks: int) -> KVStore:
        """An empty store for ``model_id`` and ``kv_schema`` that holds exactly ``capacity_blocks`` blocks."""
        pytest.fail(f"{type(self).__name__} must override open_store(capacity_blocks)")

    # --- what tests use

    @pytest.fixture
    def make_store(self) -> Iterator[Callable[[int], Any]]:
        """Opens stores, and closes them after the test."""
        opened: list[Any] = []

        def make(capacity_blocks: int) -> Any:
            opened.append(self.open_store(capacity_blocks))
            return opened[-1]

        yield make
        for store in opened:
            store.close()

    def tokens(self, blocks: int, salt: int = 0) -> list[int]:
        """A token sequence of so many full blocks."""
        return [salt * 100_003 + i for i in range(blocks * self.kv_schema.page_size)]

    def keys(self, blocks: int, salt: int = 0) -> list[bytes]:
        """The sequence's keys."""
        return list(block_keys(self.model_id, self.kv_schema, self.tokens(blocks, salt)))

    def block(self, key: bytes) -> memoryview:
        """The one block that belongs to a key."""
        size = self.kv_schema.bytes_per_page
        return memoryview(hashlib.shake_128(key).digest(size))

    def fill(self, store: KVStore, keys: Sequence[bytes]) -> int:
        """Put the keys' blocks."""
        return store.put(keys, [self.block(key) for key in keys])

    def held(self, store: KVStore, keys: Sequence[bytes]) -> list[bool]:
        """Which keys are held; fails where a block comes back with other bytes."""
        __tracebackhide__ = True
        out = [bytearray(self.kv_schema.bytes_per_page) for _ in keys]
        found = store.get(keys, [memoryview(buffer) for buffer in out])
        for key, buffer, hit in zip(keys, out, found, strict=True):
            if hit and self.lossless:
                assert buffer == self.block(key), f"block {key.hex()} came back with other bytes"
            assert hit or not any(buffer), f"block {key.hex()} is not held, and its buffer was written"
        return found

    # --- tests

    def test_has_the_shape_of_its_protocol(self, make_store: Callable[[int], Any]) -> None:
        """Every method of ``KVStore`` is there with its parameters, and ``schema`` is the one asked for.

        How to fix: the message names each method and parameter; copy the signature from the protocol.
        """
        store = make_store(4)
        problems = shape_problems(store, KVStore)
        assert not problems, f"not a KVStore: {'; '.join(problems)}"
        assert store.schema == self.kv_schema, f"opened with {self.kv_schema}, has {store.schema}"

    def test_blocks_come_back(self, make_store: Callable[[int], Any]) -> None:
        """What was put is got, byte for byte; what was not put is False and leaves its buffer alone.

        How to fix: copy exactly ``schema.bytes_per_page`` bytes each way, into the caller's buffer only on a hit.
        """
        store, keys = make_store(8), self.keys(3)
        assert self.fill(store, keys) == 3, "put() of 3 blocks must return 3"
        assert self.held(store, [*keys, *self.keys(2, salt=1)]) == [True, True, True, False, False]

    def test_put_copies(self, make_store: Callable[[int], Any]) -> None:
        """The caller may overwrite its buffers after ``put``, and ``get`` fills only the buffers it was given.

        How to fix: copy in ``put``; a store that keeps a view serves whatever the engine writes there next.
        """
        store, (key,) = make_store(4), self.keys(1)
        mine = bytearray(self.block(key))
        store.put([key], [memoryview(mine)])
        mine[:] = bytes(len(mine))
        assert self.held(store, [key]) == [True]

    def test_put_again_changes_nothing(self, make_store: Callable[[int], Any]) -> None:
        """Putting a block that is held takes no further room.

        How to fix: look the key up before taking a free page.
        """
        store, keys = make_store(4), self.keys(2)
        self.fill(store, keys)
        assert self.fill(store, keys) == 2, "put() returns how many of the blocks are held afterwards"
        assert store.stats().blocks == 2, f"2 blocks were put twice, stats() count {store.stats().blocks}"

    def test_match_walks_the_prefix(self, make_store: Callable[[int], Any]) -> None:
        """``match`` gives the tokens of the longest prefix held, in whole blocks, up to the first gap.

        How to fix: walk ``block_keys(model_id, schema, tokens)`` and stop at the first key that is not held.
        """
        store, page = make_store(8), self.kv_schema.page_size
        tokens, keys = self.tokens(4), self.keys(4)
        assert store.match(tokens) == 0, "an empty store matches nothing"
        self.fill(store, [keys[0], keys[1], keys[3]])
        assert store.match(tokens) == 2 * page, (
            f"blocks 0, 1 and 3 of {page} tokens match {store.match(tokens)}"
        )
        assert store.match([*self.tokens(1), -1]) == page, "the last, partial block must not count"
        assert store.match(tokens[: page - 1]) == 0, "less than a block matches nothing"
        assert store.match([]) == 0
        assert store.match(self.tokens(4, salt=1)) == 0, "another sequence must not match"

    def test_look_ups_are_counted(self, make_store: Callable[[int], Any]) -> None:
        """A ``match`` that finds something is one hit, one that finds nothing is one miss.

        How to fix: count in ``match``, once a call.
        """
        store = make_store(4)
        self.fill(store, self.keys(1))
        before = store.stats()
        store.match(self.tokens(2))
        store.match(self.tokens(2, salt=1))
        after = store.stats()
        assert after.hits == before.hits + 1, f"hits went from {before.hits} to {after.hits}"
        assert after.misses == before.misses + 1, f"misses went from {before.misses} to {after.misses}"

    def test_wrong_buffers_are_refused(self, make_store: Callable[[int], Any]) -> None:
        """Buffers of a wrong size or number are ``InvalidRequest``, and nothing is stored or written.

        How to fix: check all lengths before the first byte is copied.
        """
        store, keys, size = make_store(4), self.keys(2), self.kv_schema.bytes_per_page
        good = self.block(keys[0])
        for wrong in ([good], [good, good[:-1]], [good, memoryview(bytes(size + 1))]):
            with pytest.raises(InvalidRequest):
                store.put(keys, wrong)
        assert self.held(store, keys) == [False, False], "a refused put() stored a block"
        self.fill(store, keys)
        for sizes in ([size], [size, size - 1], [size, size + 1]):
            out = [bytearray(n) for n in sizes]
            with pytest.raises(InvalidRequest):
                store.get(keys, [memoryview(buffer) for buffer in out])
            assert not any(map(any, out)), "a refused get() wrote into a buffer"

    def test_least_recently_used_makes_room(self, make_store: Callable[[int], Any]) -> None:
        """A full store drops the block that was used longest ago; ``get`` is a use.

        How to fix: move a key to the end of the order on ``get`` and ``put``; drop from the front.
        """
        store, keys = make_store(3), self.keys(4)
        for key in keys[:3]:
            self.fill(store, [key])
        assert self.held(store, keys[:1]) == [True]
        assert self.fill(store, keys[3:]) == 1, "a full store must make room for a block"
        assert self.held(store, keys) == [True, False, True, True], (
            "not the least recently used block was dropped"
        )
        stats = store.stats()
        assert stats.blocks == stats.capacity_blocks == 3, f"a full store of 3 blocks says {stats}"
        assert stats.evictions == 1, f"one block was dropped, stats() count {stats.evictions}"

    def test_evict_drops_the_oldest(self, make_store: Callable[[int], Any]) -> None:
        """``evict(n)`` drops up to n unpinned blocks, least recently used first, and returns how many.

        How to fix: share the code with the eviction that makes room.
        """
        store, keys = make_store(4), self.keys(3)
        for key in keys:
            self.fill(store, [key])
        assert store.evict(1) == 1
        assert self.held(store, keys) == [False, True, True]
        assert store.evict(10) == 2, "evict() returns how many blocks went"
        assert store.evict(1) == 0, "an empty store has nothing to evict"

    def test_pins_hold(self, make_store: Callable[[int], Any]) -> None:
        """Pinned blocks outlive ``evict`` and a full store; pins are counted; unknown keys are False.

        How to fix: keep a count a block; skip blocks with a count over 0 when something must go.
        """
        store, keys = make_store(2), self.keys(4)
        self.fill(store, keys[:2])
        assert store.pin([*keys[:1], *keys[3:]]) == [True, False]
        store.pin(keys[:1])
        store.unpin(keys[:1])
        assert store.stats().pinned_blocks == 1, (
            f"one block is pinned, stats() say {store.stats().pinned_blocks}"
        )
        assert store.evict(10) == 1, "evict() must leave the pinned block, whose second pin still holds"
        self.fill(store, keys[1:4])
        assert self.held(store, keys[:1]) == [True], "a pinned block was dropped to make room"
        store.unpin(keys[:1])
        assert store.evict(10) == 2, "an unpinned block can be evicted again"
        store.unpin(keys)

    def test_a_store_full_of_pins_takes_nothing(self, make_store: Callable[[int], Any]) -> None:
        """Where every block is pinned, ``put`` returns 0 and stores nothing.

        How to fix: return how many of the given blocks are held, not how many were given.
        """
        store, keys = make_store(2), self.keys(3)
        self.fill(store, keys[:2])
        store.pin(keys[:2])
        assert self.fill(store, keys[2:]) == 0, "put() into a store full of pinned blocks must return 0"
        assert self.held(store, keys) == [True, True, False]

    def test_stats_add_up(self, make_store: Callable[[int], Any]) -> None:
        """``stats`` counts the blocks and bytes held, and the capacity asked for.

        How to fix: count on every put and eviction.
        """
        store = make_store(4)
        empty = store.stats()
        assert isinstance(empty, KVStoreStats), f"stats() gave a {type(empty).__name__}"
        assert (empty.blocks, empty.capacity_blocks) == (0, 4), empty
        self.fill(store, self.keys(3))
        full = store.stats()
        assert full.blocks == 3, full
        least = 3 * self.kv_schema.bytes_per_page if self.lossless else 1
        assert full.bytes_used - empty.bytes_used >= least, (
            f"3 blocks in {full.bytes_used - empty.bytes_used} bytes"
        )

    def test_close_twice_is_safe(self, make_store: Callable[[int], Any]) -> None:
        """A second ``close`` does nothing.

        How to fix: return at once where the store is closed already.
        """
        store = make_store(2)
        self.fill(store, self.keys(1))
        store.close()
        store.close()

    def test_threads_do_not_disturb_each_other(self, make_store: Callable[[int], Any]) -> None:
        """Threads that put, get, pin and evict at once only ever see whole blocks.

        How to fix: one lock around the index; bytes may be copied outside it only from pages that cannot be reused
        meanwhile.
        """
        store = make_store(6)

        def work(salt: int) -> None:
            keys = self.keys(3, salt % 3)
            for _ in range(40):
                self.fill(store, keys)
                pinned = [key for key, hit in zip(keys, store.pin(keys), strict=True) if hit]
                self.held(store, keys)
                store.unpin(pinned)
                store.evict(1)

        with ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(work, salt) for salt in range(4)]:
                future.result(timeout=self.timeout_s)
        stats = store.stats()
        assert stats.pinned_blocks == 0, f"every pin was taken back, {stats.pinned_blocks} blocks are pinned"
        assert stats.blocks <= stats.capacity_blocks, f"more blocks than fit: {stats}"

    def test_random_operations_agree_with_a_model(self) -> None:
        """Any sequence of operations leaves what a simple model says: Hypothesis searches for one that does not.

        How to fix: the message ends with the shortest sequence of operations that goes wrong; replay it by hand.
        """
        explore(self, self.examples)

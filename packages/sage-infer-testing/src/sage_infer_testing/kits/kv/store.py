"""The kit for KV stores."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sage_infer.contracts import KVStoreStats, block_keys
from sage_infer.errors import InvalidRequest

from sage_infer_testing.kits.kv.eviction import EvictionTests
from sage_infer_testing.kits.kv.machine import explore
from sage_infer_testing.shape import shape_problems

__all__ = ["KVStoreContract"]


class KVStoreContract(EvictionTests, kit=True):
    """Guarantees of a ``KVStore``. Override ``open_store``; see ``KVStoreSuite`` for other settings."""

    def test_has_the_shape_of_its_protocol(self, make_store: Callable[[int], Any]) -> None:
        """Every method of the protocol exists with its parameters, and ``schema`` is the requested one.

        How to fix: the message names each method and parameter; copy the signature from the protocol.
        """
        store = make_store(4)
        problems = shape_problems(store, self.protocol)
        assert not problems, f"not a {self.protocol.__name__}: {'; '.join(problems)}"
        assert store.schema == self.kv_schema, f"opened with {self.kv_schema}, has {store.schema}"

    def test_blocks_come_back(self, make_store: Callable[[int], Any]) -> None:
        """``get`` returns stored blocks byte for byte; for others it returns False and does not change the buffer.

        How to fix: copy exactly ``schema.bytes_per_page`` bytes, and write into the caller's buffer only on a hit.
        """
        store, keys = make_store(8), self.keys(3)
        assert self.fill(store, keys) == 3, "put() of 3 blocks must return 3"
        assert self.held(store, [*keys, *self.keys(2, salt=1)]) == [True, True, True, False, False]

    def test_put_copies(self, make_store: Callable[[int], Any]) -> None:
        """The caller can overwrite its buffers after ``put``, and ``get`` fills only the given buffers.

        How to fix: copy the bytes in ``put``; with a view, later writes of the engine change stored blocks.
        """
        store, (key,) = make_store(4), self.keys(1)
        mine = bytearray(self.block(key))
        store.put([key], [memoryview(mine)])
        mine[:] = bytes(len(mine))
        assert self.held(store, [key]) == [True]

    def test_put_again_changes_nothing(self, make_store: Callable[[int], Any]) -> None:
        """Putting a stored block again uses no additional memory.

        How to fix: look up the key before allocating a page.
        """
        store, keys = make_store(4), self.keys(2)
        self.fill(store, keys)
        assert self.fill(store, keys) == 2, "put() must return how many of the blocks are stored afterwards"
        assert store.stats().blocks == 2, f"2 blocks were put twice, stats() count {store.stats().blocks}"

    def test_match_walks_the_prefix(self, make_store: Callable[[int], Any]) -> None:
        """``match`` returns the number of tokens in the longest stored prefix, in whole blocks, up to the first gap.

        How to fix: iterate over ``block_keys(model_id, schema, tokens)`` and stop at the first missing key.
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

    def test_match_keys_walks_the_keys(self, make_store: Callable[[int], Any]) -> None:
        """``match_keys`` returns how many keys at the start of the list are stored, also with a salt.

        How to fix: stop at the first missing key. The caller computes the keys with its salt and extras.
        """
        store, tokens = make_store(8), self.tokens(4)
        salted = list(block_keys(self.model_id, self.kv_schema, tokens, salt=b"tenant"))
        self.fill(store, [salted[0], salted[1], salted[3]])
        assert store.match_keys(salted) == 2, f"keys 0, 1 and 3 match {store.match_keys(salted)}"
        assert store.match_keys(salted[2:]) == 0, "the first key is not stored"
        assert store.match_keys([]) == 0
        assert store.match(tokens) == 0, "match() found the blocks of another salt"

    def test_contains_is_no_look_up(self, make_store: Callable[[int], Any]) -> None:
        """``contains`` returns for each key whether it is stored, and does not change counters.

        How to fix: read the index without counting and without changing the eviction order.
        """
        store, keys = make_store(8), self.keys(3)
        self.fill(store, keys[:2])
        before = store.stats()
        assert store.contains([*keys, *self.keys(1, salt=1)]) == [True, True, False, False]
        assert store.contains([]) == []
        assert store.stats() == before, f"contains() changed {before} to {store.stats()}"

    def test_look_ups_are_counted(self, make_store: Callable[[int], Any]) -> None:
        """A ``match`` or ``match_keys`` counts as one hit if it finds a block, else as one miss.

        How to fix: count once per call; call ``match_keys`` in ``match``.
        """
        store = make_store(4)
        self.fill(store, self.keys(1))
        before = store.stats()
        store.match(self.tokens(2))
        store.match(self.tokens(2, salt=1))
        after = store.stats()
        assert after.hits == before.hits + 1, f"hits went from {before.hits} to {after.hits}"
        assert after.misses == before.misses + 1, f"misses went from {before.misses} to {after.misses}"
        store.match_keys(self.keys(2))
        store.match_keys(self.keys(2, salt=1))
        again = store.stats()
        assert (again.hits, again.misses) == (after.hits + 1, after.misses + 1), f"{after}, then {again}"

    def test_wrong_buffers_are_refused(self, make_store: Callable[[int], Any]) -> None:
        """A wrong size or number of buffers is ``InvalidRequest``, and nothing is stored or written.

        How to fix: check all lengths before the first byte is copied.
        """
        store, keys, size = make_store(4), self.keys(2), self.kv_schema.bytes_per_page
        good = self.block(keys[0])
        for wrong in ([good], [good, good[:-1]], [good, memoryview(bytes(size + 1))]):
            with pytest.raises(InvalidRequest):
                store.put(keys, wrong)
        assert self.held(store, keys) == [False, False], "a failed put() stored a block"
        self.fill(store, keys)
        for sizes in ([size], [size, size - 1], [size, size + 1]):
            out = [bytearray(n) for n in sizes]
            with pytest.raises(InvalidRequest):
                store.get(keys, [memoryview(buffer) for buffer in out])
            assert not any(map(any, out)), "a failed get() wrote into a buffer"

    def test_stats_add_up(self, make_store: Callable[[int], Any]) -> None:
        """``stats`` returns the number of stored blocks and bytes, and the requested capacity.

        How to fix: count on every put and eviction.
        """
        store = make_store(4)
        empty = store.stats()
        assert isinstance(empty, KVStoreStats), f"stats() returned a {type(empty).__name__}"
        assert empty.blocks == empty.dropped == 0, f"stats() of an empty store return {empty}"
        if self.exact_capacity:
            assert empty.capacity_blocks == 4, f"opened for 4 blocks: {empty}"
        self.fill(store, self.keys(3))
        full = store.stats()
        assert full.blocks == 3, full
        least = 3 * self.kv_schema.bytes_per_page if self.lossless else 1
        assert full.bytes_used - empty.bytes_used >= least, (
            f"3 blocks in {full.bytes_used - empty.bytes_used} bytes"
        )
        assert store.evict(3) == 3, "three blocks that nobody pinned must go"
        emptied = store.stats()
        assert emptied.blocks == 0, f"everything was evicted: {emptied}"
        assert emptied.bytes_used < full.bytes_used, (
            f"everything was evicted, and bytes_used stays: {emptied}"
        )
        assert emptied.evictions == 3, f"3 blocks were evicted, stats() count {emptied.evictions}"

    def test_stores_are_apart(self, make_store: Callable[[int], Any]) -> None:
        """Two stores that are open side by side share no blocks and no counters.

        How to fix: keep the index in the instance, not in the class or the module. Stores that share one region of
        memory on purpose are opened under different names by ``open_store``.
        """
        one, other, keys = make_store(4), make_store(4), self.keys(2)
        self.fill(one, keys)
        assert other.contains(keys) == [False, False], "a block that was put into one store is in another one"
        assert other.stats().blocks == 0, f"an empty store beside a full one says {other.stats()}"

    def test_a_key_twice_is_one_block(self, make_store: Callable[[int], Any]) -> None:
        """One call of ``put`` with a key twice keeps one block.

        How to fix: look each key up when its turn comes, not all keys before the first one.
        """
        store, (key,) = make_store(4), self.keys(1)
        self.fill(store, [key, key])
        assert store.stats().blocks == 1, f"one block was put, stats() count {store.stats().blocks}"
        assert self.held(store, [key]) == [True]

    def test_close_twice_is_safe(self, make_store: Callable[[int], Any]) -> None:
        """A second ``close`` does nothing.

        How to fix: return immediately if the store is already closed.
        """
        store = make_store(2)
        self.fill(store, self.keys(1))
        store.close()
        store.close()

    def test_threads_do_not_disturb_each_other(self, make_store: Callable[[int], Any]) -> None:
        """Threads that put, get, pin and evict simultaneously see only complete blocks.

        How to fix: protect the index with one lock; copy bytes outside of it only from pages that cannot be reused
        meanwhile.
        """
        store = make_store(6)

        def work(salt: int) -> None:
            keys = self.keys(3, salt % 3)
            for _ in range(40):
                self.fill(store, keys)
                pinned = [key for key, hit in zip(keys, store.pin(keys), strict=True) if hit]
                self.held(store, keys)
                crowded = store.stats()
                assert crowded.blocks <= crowded.capacity_blocks, f"more blocks than fit: {crowded}"
                store.unpin(pinned)
                store.evict(1)

        with ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(work, salt) for salt in range(4)]:
                future.result(timeout=self.timeout_s)
        stats = store.stats()
        assert stats.pinned_blocks == 0, f"every pin was removed, but {stats.pinned_blocks} blocks are pinned"
        assert stats.blocks <= stats.capacity_blocks, f"more blocks than fit: {stats}"

    def test_random_operations_agree_with_a_model(self) -> None:
        """The store agrees with a simple model after any sequence of operations found by Hypothesis.

        How to fix: replay the shortest failing sequence of operations, which is at the end of the message.
        """
        explore(self, self.examples)

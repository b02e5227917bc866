"""Base of the tests of KV stores: stores, keys, and the blocks of keys."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import pytest
from sage_infer.contracts import KVStore, block_keys
from sage_infer.schemas import KVCacheSchema

from sage_infer_testing.suite import ContractSuite

__all__ = ["KVStoreSuite"]


_MOST_BLOCKS = 4096  # that a test fills


class KVStoreSuite(ContractSuite, kit=True):
    """Base of the kits for stores. Override ``open_store``.

    Attributes:
        model_id: model that the store is opened for.
        kv_schema: schema that the store is opened with.
        lossless: whether blocks are returned unchanged; False for a store that quantizes.
        exact_capacity: whether the capacity is exactly the requested one; False for a store that rounds up.
        policy: eviction policy; the eviction order is tested only for "lru".
        examples: number of operation sequences in the randomized test.
    """

    model_id: ClassVar[str] = "kit-model"
    kv_schema: ClassVar[KVCacheSchema] = KVCacheSchema.from_preset(
        "fp16", num_layers=2, num_heads=2, head_dim=8, page_size=4
    )
    lossless: ClassVar[bool] = True
    exact_capacity: ClassVar[bool] = True
    policy: ClassVar[str] = "lru"
    protocol: ClassVar[type] = KVStore
    examples: ClassVar[int] = 40

    def open_store(self, capacity_blocks: int) -> KVStore:
        """Return an empty store for ``model_id`` and ``kv_schema`` with a capacity of ``capacity_blocks`` blocks."""
        pytest.fail(f"{type(self).__name__} must override open_store(capacity_blocks)")

    # --- helpers of the tests

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

    def capacity(self, store: KVStore, asked: int) -> int:
        """Return the capacity of the store in blocks; skip the test if it is too large to fill."""
        __tracebackhide__ = True
        found = store.stats().capacity_blocks
        if self.exact_capacity:
            assert found == asked, f"opened for {asked} blocks, stats() say capacity_blocks={found}"
        elif not asked <= found <= _MOST_BLOCKS:
            pytest.skip(f"a store of {found} blocks cannot be filled in a test")
        return found

    def need_lru(self) -> None:
        """Skip the test if the store has another policy."""
        if self.policy != "lru":
            pytest.skip(f"policy is {self.policy!r}")

    def tokens(self, blocks: int, salt: int = 0) -> list[int]:
        """Return a token sequence of ``blocks`` full blocks."""
        return [salt * 100_003 + i for i in range(blocks * self.kv_schema.page_size)]

    def keys(self, blocks: int, salt: int = 0) -> list[bytes]:
        """Return the keys of the sequence."""
        return list(block_keys(self.model_id, self.kv_schema, self.tokens(blocks, salt)))

    def block(self, key: bytes) -> memoryview:
        """Return the block of a key."""
        size = self.kv_schema.bytes_per_page
        return memoryview(hashlib.shake_128(key).digest(size))

    def fill(self, store: KVStore, keys: Sequence[bytes]) -> int:
        """Put the blocks of the keys."""
        return store.put(keys, [self.block(key) for key in keys])

    def held(self, store: KVStore, keys: Sequence[bytes]) -> list[bool]:
        """Return which keys are stored; fail if a block is returned with different bytes."""
        __tracebackhide__ = True
        out = [bytearray(self.kv_schema.bytes_per_page) for _ in keys]
        found = store.get(keys, [memoryview(buffer) for buffer in out])
        for key, buffer, hit in zip(keys, out, found, strict=True):
            if hit and self.lossless:
                assert buffer == self.block(key), f"block {key.hex()} was returned with different bytes"
            assert hit or not any(buffer), f"block {key.hex()} is not stored, but its buffer was written"
        return found

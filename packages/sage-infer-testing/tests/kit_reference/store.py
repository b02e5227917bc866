"""A KV store: blocks in a dictionary."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import Any

from sage_infer.contracts import KVStoreStats, block_keys
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import KVCacheSchema


class ReferenceStore:
    """Blocks in a dictionary, oldest use first."""

    def __init__(self, model_id: str, schema: KVCacheSchema, capacity: int) -> None:
        self.model_id, self._schema, self.capacity = model_id, schema, capacity
        self.blocks: OrderedDict[bytes, Any] = OrderedDict()  # oldest use first
        self.pins: defaultdict[bytes, list[float]] = defaultdict(list)  # when each pin of a block ends
        self.hits = self.misses = self.evictions = self.dropped = 0
        self.lock = threading.RLock()

    @property
    def schema(self) -> KVCacheSchema:
        return self._schema

    def check(self, keys: Sequence[bytes], buffers: Sequence[memoryview]) -> None:
        size = self.schema.bytes_per_page
        if len(keys) != len(buffers) or any(buffer.nbytes != size for buffer in buffers):
            raise InvalidRequest(f"{len(keys)} keys need as many buffers of {size} bytes")

    def match(self, tokens: Sequence[int]) -> int:
        keys = list(block_keys(self.model_id, self.schema, tokens))
        return self.match_keys(keys) * self.schema.page_size

    def match_keys(self, keys: Sequence[bytes]) -> int:
        with self.lock:
            length = next((i for i, key in enumerate(keys) if key not in self.blocks), len(keys))
            self.hits, self.misses = self.hits + bool(length), self.misses + (not length)
            return length

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        with self.lock:
            return [key in self.blocks for key in keys]

    def get(self, keys: Sequence[bytes], out: Sequence[memoryview]) -> list[bool]:
        self.check(keys, out)
        with self.lock:
            for key, buffer in zip(keys, out, strict=True):
                if key in self.blocks:
                    buffer[:] = self.load(key)
                    self.blocks.move_to_end(key)
            return [key in self.blocks for key in keys]

    def put(self, keys: Sequence[bytes], blocks: Sequence[memoryview]) -> int:
        self.check(keys, blocks)
        with self.lock:
            fresh = set(keys)
            for key, block in zip(keys, blocks, strict=True):
                if key in self.blocks:
                    self.blocks.move_to_end(key)
                elif self.has_room() or self.evict(1, keep=fresh):
                    self.keep(key, block)
            held = sum(key in self.blocks for key in keys)
            self.dropped += len(keys) - held
            return held

    def has_room(self) -> bool:
        return len(self.blocks) < self.capacity

    def keep(self, key: bytes, block: memoryview) -> None:
        self.blocks[key] = bytes(block)

    def load(self, key: bytes) -> Any:
        return self.blocks[key]

    def forget(self, key: bytes) -> None:
        del self.blocks[key]

    def pin(self, keys: Sequence[bytes], *, lease_s: float | None = None) -> list[bool]:
        with self.lock:
            held = [key in self.blocks for key in keys]
            for key in (key for key, hit in zip(keys, held, strict=True) if hit):
                self.pins[key].append(math.inf if lease_s is None else time.monotonic() + lease_s)
            return held

    def unpin(self, keys: Sequence[bytes]) -> None:
        with self.lock:
            for key in (key for key in keys if self.is_pinned(key)):
                self.pins[key].remove(max(self.pins[key]))

    def is_pinned(self, key: bytes) -> bool:
        self.pins[key] = [end for end in self.pins[key] if end > time.monotonic()]
        return bool(self.pins[key])

    def evict(self, count: int, keep: frozenset[bytes] | set[bytes] = frozenset()) -> int:
        with self.lock:
            loose = [key for key in self.blocks if not self.is_pinned(key) and key not in keep][:count]
            for key in loose:
                self.forget(key)
            self.evictions += len(loose)
            return len(loose)

    def stats(self) -> KVStoreStats:
        with self.lock:
            return KVStoreStats(
                blocks=len(self.blocks), capacity_blocks=self.capacity,
                bytes_used=len(self.blocks) * self.schema.bytes_per_page,
                pinned_blocks=sum(map(self.is_pinned, list(self.pins))), hits=self.hits, misses=self.misses,
                evictions=self.evictions, dropped=self.dropped,
            )  # fmt: skip

    def close(self) -> None:
        self.blocks.clear()

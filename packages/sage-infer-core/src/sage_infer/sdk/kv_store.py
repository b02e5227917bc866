"""Base of KV stores: index, eviction order and pins."""

from __future__ import annotations

import math
import threading
import time
from abc import abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Collection, Sequence
from typing import Generic, TypeVar

from sage_infer.contracts import KVStoreStats, block_keys
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import KVCacheSchema

__all__ = ["BaseKVStore"]

Place = TypeVar("Place")


class BaseKVStore(Generic[Place]):
    """Base of a ``KVStore`` with LRU eviction. A subclass stores the bytes: it overrides ``write``, ``read`` and
    ``erase``.

    Blocks of the same ``put`` do not evict each other. Every method holds ``lock``, also while it calls methods of the
    subclass.

    Attributes:
        schema: schema of the blocks.
        model_id: model that the blocks belong to.
        capacity_blocks: capacity in blocks.
        places: place of each block by key, least recently used first.
        lock: reentrant lock, which the subclass can also use.
    """

    def __init__(self, *, schema: KVCacheSchema, model_id: str, capacity_blocks: int = 1024) -> None:
        if type(capacity_blocks) is not int or capacity_blocks < 1:
            raise InvalidRequest(f"capacity_blocks must be a positive integer, got {capacity_blocks!r}")
        self.schema, self.model_id, self.capacity_blocks = schema, model_id, capacity_blocks
        self.places: OrderedDict[bytes, Place] = OrderedDict()
        self.lock = threading.RLock()
        self._pins: dict[bytes, list[float]] = {}  # when each pin of a block ends
        self._counts: Counter[str] = Counter()

    # --- methods for subclasses to override

    @abstractmethod
    def write(self, key: bytes, block: memoryview) -> Place:
        """Store a copy of a block; return its place, for ``read`` and ``erase``."""
        raise NotImplementedError(f"{type(self).__name__} must override write()")

    @abstractmethod
    def read(self, place: Place, out: memoryview) -> None:
        """Copy a block into ``out``."""
        raise NotImplementedError(f"{type(self).__name__} must override read()")

    def erase(self, place: Place) -> None:
        """Free the bytes of a block. The default does nothing: Python frees them."""

    def has_room(self) -> bool:
        """Return whether another block fits without an eviction."""
        return len(self.places) < self.capacity_blocks

    # --- the contract

    def match(self, tokens: Sequence[int]) -> int:
        return self.match_keys(list(block_keys(self.model_id, self.schema, tokens))) * self.schema.page_size

    def match_keys(self, keys: Sequence[bytes]) -> int:
        with self.lock:
            held = next((i for i, key in enumerate(keys) if key not in self.places), len(keys))
            self._counts["hits" if held else "misses"] += 1
            return held

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        with self.lock:
            return [key in self.places for key in keys]

    def get(self, keys: Sequence[bytes], out: Sequence[memoryview]) -> list[bool]:
        self._check(keys, out)
        with self.lock:
            held = self.contains(keys)
            for key, buffer, hit in zip(keys, out, held, strict=True):
                if hit:
                    self.read(self.places[key], buffer.cast("B"))
                    self.places.move_to_end(key)
            return held

    def put(self, keys: Sequence[bytes], blocks: Sequence[memoryview]) -> int:
        self._check(keys, blocks)
        with self.lock:
            fresh = set(keys)
            for key, block in zip(keys, blocks, strict=True):
                if key in self.places:
                    self.places.move_to_end(key)
                elif self.has_room() or self._evict(1, fresh):
                    self.places[key] = self.write(key, block.cast("B"))
            held = sum(self.contains(keys))
            self._counts["dropped"] += len(keys) - held
            return held

    def pin(self, keys: Sequence[bytes], *, lease_s: float | None = None) -> list[bool]:
        until = math.inf if lease_s is None else time.monotonic() + lease_s
        with self.lock:
            held = self.contains(keys)
            for key, hit in zip(keys, held, strict=True):
                if hit:
                    self._pins.setdefault(key, []).append(until)
            return held

    def unpin(self, keys: Sequence[bytes]) -> None:
        with self.lock:
            for key in keys:
                if self.is_pinned(key):
                    self._pins[key].remove(max(self._pins[key]))

    def evict(self, count: int) -> int:
        with self.lock:
            return self._evict(count)

    def stats(self) -> KVStoreStats:
        with self.lock:
            return KVStoreStats(
                blocks=len(self.places),
                capacity_blocks=self.capacity_blocks,
                bytes_used=len(self.places) * self.schema.bytes_per_page,
                pinned_blocks=sum(map(self.is_pinned, list(self._pins))),
                hits=self._counts["hits"],
                misses=self._counts["misses"],
                evictions=self._counts["evictions"],
                dropped=self._counts["dropped"],
            )

    def close(self) -> None:
        with self.lock:
            for place in self.places.values():
                self.erase(place)
            self.places.clear()
            self._pins.clear()

    # --- for subclasses

    def is_pinned(self, key: bytes) -> bool:
        """Return whether a block has a pin whose lease has not expired."""
        self._pins[key] = [until for until in self._pins.get(key, ()) if until > time.monotonic()]
        return bool(self._pins[key] or self._pins.pop(key))

    def _evict(self, count: int, keep: Collection[bytes] = ()) -> int:
        loose = (key for key in self.places if key not in keep and not self.is_pinned(key))
        victims = [key for key, _ in zip(loose, range(count), strict=False)]
        for key in victims:
            self.erase(self.places.pop(key))
        self._counts["evictions"] += len(victims)
        return len(victims)

    def _check(self, keys: Sequence[bytes], buffers: Sequence[memoryview]) -> None:
        size = self.schema.bytes_per_page
        if len(keys) != len(buffers) or any(buffer.nbytes != size for buffer in buffers):
            raise InvalidRequest(f"{len(keys)} keys need {len(keys)} buffers of {size} bytes each")

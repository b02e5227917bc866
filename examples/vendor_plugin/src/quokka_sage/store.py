"""A ``KVStore`` in memory that drops the least recently used blocks."""

import math
import threading
import time
from collections import Counter, OrderedDict

from sage_infer.contracts import KVStoreStats, block_keys
from sage_infer.errors import InvalidRequest


class QuokkaStore:
    def __init__(self, *, schema, model_id, capacity_blocks=1024):
        self.schema, self.model_id, self.capacity = schema, model_id, capacity_blocks
        self.blocks, self.pins, self.count = OrderedDict(), {}, Counter()
        self.lock = threading.RLock()

    def match(self, tokens):
        return self.match_keys(list(block_keys(self.model_id, self.schema, tokens))) * self.schema.page_size

    def match_keys(self, keys):
        with self.lock:
            held = [*self.contains(keys), False].index(False)
            self.count["hits" if held else "misses"] += 1
            return held

    def contains(self, keys):
        with self.lock:
            return [key in self.blocks for key in keys]

    def get(self, keys, out):
        self._check(keys, out)
        with self.lock:
            for key, buffer in zip(keys, out, strict=True):
                if key in self.blocks:
                    self.blocks.move_to_end(key)
                    buffer.cast("B")[:] = self.blocks[key]
            return self.contains(keys)

    def put(self, keys, blocks):
        self._check(keys, blocks)
        with self.lock:
            for key, block in zip(keys, blocks, strict=True):
                if key in self.blocks:
                    self.blocks.move_to_end(key)
                elif len(self.blocks) < self.capacity or self.evict(1):
                    self.blocks[key] = bytes(block)
            held = sum(self.contains(keys))
            self.count["dropped"] += len(keys) - held
            return held

    def pin(self, keys, *, lease_s=None):
        until = time.monotonic() + (math.inf if lease_s is None else lease_s)
        with self.lock:
            for key in keys:
                if key in self.blocks:
                    self.pins.setdefault(key, []).append(until)
            return self.contains(keys)

    def unpin(self, keys):
        with self.lock:
            for key in keys:
                if self._is_pinned(key):
                    self.pins[key].remove(max(self.pins[key]))

    def evict(self, count):
        with self.lock:
            victims = [key for key in self.blocks if not self._is_pinned(key)][:count]
            for key in victims:
                del self.blocks[key]
            self.count["evictions"] += len(victims)
            return len(victims)

    def stats(self):
        with self.lock:
            return KVStoreStats(
                blocks=len(self.blocks), capacity_blocks=self.capacity,
                pinned_blocks=sum(map(self._is_pinned, self.blocks)),
                bytes_used=len(self.blocks) * self.schema.bytes_per_page,
                **{name: self.count[name] for name in ("hits", "misses", "evictions", "dropped")},
            )  # fmt: skip

    def close(self):
        with self.lock:
            self.blocks.clear()
            self.pins.clear()

    def _is_pinned(self, key):
        self.pins[key] = [until for until in self.pins.get(key, ()) if until > time.monotonic()]
        return bool(self.pins[key] or self.pins.pop(key))

    def _check(self, keys, buffers):
        if len(keys) != len(buffers) or any(b.nbytes != self.schema.bytes_per_page for b in buffers):
            raise InvalidRequest(f"expected a buffer of {self.schema.bytes_per_page} bytes for each key")

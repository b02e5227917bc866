"""State of the tiered store, and how blocks move between memory and the lower store."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from attrs import define
from sage_infer.contracts import KVPlace
from sage_infer.errors import ConfigError, InvalidRequest
from sage_infer.schemas import KVCacheSchema
from sage_infer.schemas.kv_chunk import MemoryTier
from sage_infer.sdk.kv_pages.notes import note_of
from sage_infer.sdk.kv_pages.setting import open_kv_store

from sage_infer_kvstore.paged.store import PagedStore
from sage_infer_kvstore.policies.names import policy_of
from sage_infer_kvstore.tiers.worker import LowerThread

__all__ = ["BaseTieredStore", "Block"]

_EVICTED_TOGETHER = 64  # that part of the capacity, at least, when the lower store is full
_FIRST_ESTIMATE_S = 0.001


@define
class Block:
    """Where a block is. ``is_dirty``: not in the lower store yet; ``is_queued``: on its way there."""

    upper: bool = False
    lower: bool = False
    is_dirty: bool = False
    is_queued: bool = False
    lower_pins: int = 0


class BaseTieredStore:
    """Everything but the calls of the contract. ``TieredStore`` explains the arguments."""

    def __init__(
        self,
        *,
        schema: KVCacheSchema,
        model_id: str,
        lower: str | Mapping[str, Any],
        lower_tier: MemoryTier = "ssd",
        upper: Mapping[str, Any] | None = None,
        write: str = "through",
        policy: str = "lru",
        wait_s: float = 1.0,
        high_watermark: float = 0.9,
    ) -> None:
        if lower_tier not in get_args(MemoryTier):
            raise ConfigError(
                f"lower_tier must be one of {', '.join(get_args(MemoryTier))}, got {lower_tier!r}"
            )
        if write not in ("through", "back"):
            raise ConfigError(f"write must be through or back, got {write!r}")
        if not 0 < high_watermark < 1:
            raise ConfigError(f"high_watermark must be between 0 and 1, got {high_watermark!r}")
        if upper is not None and "name" in upper:
            raise ConfigError("the memory of a tiered store belongs to one process; leave upper.name out")
        if upper is not None and "policy" in upper:
            raise ConfigError("policy is an option of the tiered store; leave upper.policy out")
        self._schema, self._model_id, self._tier = schema, model_id, lower_tier
        self._policy = policy_of(policy, schema.page_size)
        self._lower = open_kv_store(lower, schema=schema, model_id=model_id)
        self._note = note_of(self._lower)
        self._upper = PagedStore(schema=schema, model_id=model_id, **(upper or {}))
        self._room = self._upper.stats().capacity_blocks
        self._capacity = self._lower.stats().capacity_blocks
        self._writes_back, self._high, self._wait_s = write == "back", high_watermark, wait_s
        self._thread = LowerThread(wait_s)
        self._changed = threading.Condition(threading.RLock())  # guards all below
        self._blocks: dict[bytes, Block] = {}
        self._pins: dict[bytes, list[float]] = {}
        self._in_upper = self._hits = self._misses = self._evictions = self._dropped = self._evicted_below = 0
        self._seconds = _FIRST_ESTIMATE_S
        self._closed = False

    def _flush(self, wait_s: float) -> None:
        """Wait for the calls that are queued."""
        self._thread.call(lambda: None, None, wait_s)

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidRequest("the store is closed; open it again")

    # --- blocks below

    def _evict_below(self, count: int) -> int:
        """Let the lower store drop blocks in its own order; they leave memory too."""
        evicted = self._thread.call(lambda: int(self._lower.evict(count)), 0)
        return self._refresh() if evicted else 0

    def _refresh(self) -> int:
        """Forget blocks that the lower store no longer has; returns how many."""
        with self._changed:
            keys = [key for key, block in self._blocks.items() if block.lower]
        nothing: list[bool] = []
        held = self._thread.call(lambda: [*self._lower.contains(keys)], nothing)
        with self._changed:
            gone = [key for key, hit in zip(keys, held, strict=False) if not hit]
            for key in gone:
                self._lost(key)
        return len(gone)

    def _pin_below(self, key: bytes, end: float) -> None:
        lease = None if end == math.inf else max(0.0, end - time.monotonic())
        self._blocks[key].lower_pins += 1
        self._thread.submit(lambda: self._lower.pin([key], lease_s=lease))

    def _is_pinned(self, key: bytes) -> bool:
        if key not in self._pins:
            return False
        now = time.monotonic()
        self._pins[key] = [end for end in self._pins[key] if end > now]
        return bool(self._pins[key] or self._pins.pop(key))

    def _place(self, block: Block | None) -> KVPlace | None:
        if block is None:
            return None
        return (
            KVPlace(tier="dram", seconds=0.0)
            if block.upper
            else KVPlace(tier=self._tier, seconds=self._seconds)
        )

    # --- with the lock

    def _enter_upper(self, key: bytes, block: Block, data: memoryview) -> None:
        block.upper = self._upper.put([key], [data]) == 1
        if block.upper:
            self._in_upper += 1
            self._policy.add(key, time.monotonic())

    def _leave_upper(self, key: bytes, block: Block) -> None:
        if block.upper:
            block.upper = False
            self._in_upper -= 1
            self._policy.remove(key)
            self._upper.drop([key])

    def _promote(self, key: bytes, page: memoryview) -> None:
        block = self._blocks.get(key)
        if block is not None and not block.upper and self._make_upper_room(0.0):
            self._enter_upper(key, block, page)

    def _order(self) -> Iterator[bytes]:
        return self._policy.order(time.monotonic())

    def _lost(self, key: bytes) -> None:
        block = self._blocks.pop(key, None)
        if block is not None:
            self._leave_upper(key, block)
            self._pins.pop(key, None)

    def _has_total_room(self) -> bool:
        return not self._capacity or len(self._blocks) < self._capacity

    def _make_room(self, keys: Sequence[bytes], end: float) -> bool:
        """Room for one more block, here and in total. Other threads may take it while this one waits: look again."""
        while self._make_total_room(keys, end) and self._make_upper_room(end):
            if self._has_total_room():
                return True
        return False

    def _make_upper_room(self, end: float) -> bool:
        """Let blocks leave memory that are in the lower store too; waits until ``end`` for those on their way."""
        while self._in_upper >= self._room:
            victim = next((key for key in self._order() if self._may_leave(key)), None)
            if victim is not None:
                block = self._blocks[victim]
                self._leave_upper(victim, block)
                if not block.lower:
                    self._lost(victim)
                    self._evictions += 1
                continue
            dirty = next((key for key in self._order() if not self._blocks[key].is_queued), None)
            if dirty is not None and self._thread.is_available:
                self._write(dirty)
            left = end - time.monotonic()
            if left <= 0 or not self._changed.wait(left):
                return False
        return True

    def _may_leave(self, key: bytes) -> bool:
        block = self._blocks[key]
        if block.lower:
            return True
        is_waiting = block.is_queued or block.is_dirty
        return not self._is_pinned(key) and not (is_waiting and self._thread.is_available)

    def _make_total_room(self, keys: Sequence[bytes], end: float) -> bool:
        """Make the lower store drop blocks where it would be full."""
        if self._has_total_room():
            return True
        kept = [key for key in keys if key in self._blocks]
        for key in kept:
            if self._blocks[key].lower:
                self._pin_below(key, math.inf)
        self._changed.release()  # another thread may need it meanwhile
        try:
            self._flush(max(0.0, end - time.monotonic()))
            self._evictions += self._evict_below(max(1, self._capacity // _EVICTED_TOGETHER))
        finally:
            self._changed.acquire()
        for key in kept:
            block = self._blocks.get(key)
            if block is not None and block.lower_pins:
                block.lower_pins -= 1
                self._thread.submit(lambda key=key: self._lower.unpin([key]))  # type: ignore[misc]
        if len(self._blocks) >= self._capacity:  # it does not answer, or all it holds is pinned
            loose = (key for key in [*self._order(), *self._blocks] if not self._is_pinned(key))
            victim = next((key for key in loose if key not in keys), None)
            if victim is not None:
                self._lost(victim)
                self._evictions += 1
        return self._has_total_room()

    def _write_some(self, key: bytes) -> None:
        if not self._writes_back:
            self._write(key)
        elif self._in_upper > self._high * self._room:
            coldest = next((k for k in self._order() if self._blocks[k].is_dirty), None)
            if coldest is not None and not self._blocks[coldest].is_queued:
                self._write(coldest)

    def _write(self, key: bytes) -> None:
        if self._thread.is_available:
            self._blocks[key].is_queued = True
            self._thread.submit(lambda: self._copy_down(key))

    def _copy_down(self, key: bytes) -> None:
        """In the lower store's thread: the block stays in memory until this has ended."""
        page = memoryview(bytearray(self._schema.bytes_per_page))
        is_stored = False
        evictions = 0
        try:
            if self._upper.get([key], [page]) == [True]:
                is_stored = self._lower.put([key], [page]) == 1
                evictions = self._lower.stats().evictions
        finally:
            with self._changed:
                block = self._blocks.get(key)
                if block is not None:
                    block.is_queued = block.is_dirty = False
                    block.lower = is_stored
                    for end in self._pins.get(key, ()) if is_stored else ():
                        self._pin_below(key, end)
                self._changed.notify_all()
        if evictions != self._evicted_below:
            self._evicted_below = evictions
            held = self._lower.contains(keys := [k for k, b in list(self._blocks.items()) if b.lower])
            with self._changed:
                for other, hit in zip(keys, held, strict=True):
                    if not hit and other in self._blocks and not self._blocks[other].is_queued:
                        self._lost(other)

"""The tiered store: pages in memory over any other KV store."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from sage_infer.contracts import KVPlace, KVStoreStats, block_keys
from sage_infer.schemas import KVCacheSchema

from sage_infer_kvstore.blocks import as_bytes, check_keys, checked_buffers
from sage_infer_kvstore.policies.base import Request
from sage_infer_kvstore.tiers.base import BaseTieredStore, Block

__all__ = ["TieredStore"]

_CLOSE_S = 5.0


class TieredStore(BaseTieredStore):
    """A ``TieredKVStore``: the blocks in use lie in memory, all of them in a lower store of any kind.

    The lower store is called in a thread of its own. One that raises, hangs or is full never delays a block in memory
    and never raises: its blocks are misses, and it is left alone for a while (``failures`` counts).

    Args:
        lower: the lower store, by its name or as ``{store: NAME, …}`` with its options.
        lower_tier: what it is: ssd (default), remote or dram.
        upper: options of the memory above it, as of the store ``paged``, without ``name``.
        write: ``through``: blocks go to the lower store as they come; ``back``: when memory is fuller than
            ``high_watermark``.
        policy: which blocks leave memory first: ``lru``, ``hotness``, ``reuse``, ``slo`` or ``recompute``.
        wait_s: how long a call waits for the lower store.

    Raises:
        ConfigError: wrong options.
        BackendUnavailable: the lower store cannot be opened.
    """

    @property
    def schema(self) -> KVCacheSchema:
        return self._schema

    @property
    def lossless(self) -> bool:
        return bool(getattr(self._lower, "lossless", True))

    # --- look-up

    def note_request(self, keys: Sequence[bytes], *, patience_s: float | None = None) -> None:
        """Tell the policy of a request with a prompt of these blocks, in this order, whether or not they are stored.

        ``patience_s``: seconds that the request may wait for its first token; None if unknown.
        """
        check_keys(keys)
        with self._changed:
            self._check_open()
            self._policy.asked(keys, time.monotonic(), Request(patience_s))
        note = self._note
        if note is not None and self._thread.is_available:
            self._thread.submit(lambda: note(keys, patience_s))

    def note_weights(self, weights_id: str) -> None:
        """Pass on which weights the blocks belong to, to a lower store that keeps it."""
        note = getattr(self._lower, "note_weights", None)
        if note is not None and self._thread.is_available:
            self._thread.submit(lambda: note(weights_id))

    def match(self, tokens: Sequence[int]) -> int:
        keys = list(block_keys(self._model_id, self._schema, tokens))
        return self.match_keys(keys) * self._schema.page_size

    def match_keys(self, keys: Sequence[bytes]) -> int:
        held = [*self.contains(keys), False].index(False)
        with self._changed:
            self._hits += bool(held)
            self._misses += not held
        return held

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        check_keys(keys)
        with self._changed:
            self._check_open()
            unknown = [key for key in keys if key not in self._blocks]
        if unknown:
            self._learn(unknown)
        with self._changed:
            return [key in self._blocks for key in keys]

    def _learn(self, keys: list[bytes]) -> None:
        """Ask the lower store for blocks of earlier processes."""
        nothing: list[bool] = []
        found = self._thread.call(lambda: [*self._lower.contains(keys)], nothing)
        with self._changed:
            for key, held in zip(keys, found, strict=False):
                if held and key not in self._blocks and self._has_total_room():
                    self._blocks[key] = Block(lower=True)

    def locate(self, keys: Sequence[bytes]) -> list[KVPlace | None]:
        self.contains(keys)
        with self._changed:
            return [self._place(self._blocks.get(key)) for key in keys]

    # --- blocks

    def get(self, keys: Sequence[bytes], out: Sequence[memoryview]) -> list[bool]:
        buffers = checked_buffers(self._schema, keys, out)
        self._check_open()
        found = self._upper.get(keys, out)
        with self._changed:
            for key in (key for key, hit in zip(keys, found, strict=True) if hit):
                self._policy.used(key, time.monotonic())
        missing = [i for i, hit in enumerate(found) if not hit]
        held = self.contains([keys[i] for i in missing])
        below = [i for i, hit in zip(missing, held, strict=True) if hit]
        if below:
            pages = self._read([keys[i] for i in below])
            for i, page in zip(below, pages, strict=True):
                if page is not None:
                    buffers[i][:] = as_bytes(page)
                    found[i] = True
        return found

    def _read(self, keys: list[bytes]) -> list[memoryview | None]:
        """Blocks of the lower store, which also go to memory; None for those that it does not return."""
        pages = [
            memoryview(bytearray(self._schema.bytes_per_page)) for _ in keys
        ]  # ours: the call may come late
        started = time.monotonic()
        unknown: list[bool | None] = [None] * len(keys)
        hits: list[bool | None] = self._thread.call(lambda: [*self._lower.get(keys, pages)], unknown)
        if len(hits) != len(keys):
            hits = unknown
        with self._changed:
            if any(hits):
                self._seconds += 0.2 * ((time.monotonic() - started) / len(keys) - self._seconds)
            for key, page, hit in zip(keys, pages, hits, strict=True):
                if hit:
                    self._promote(key, page)
                elif hit is not None:  # it has lost the block
                    self._lost(key)
        return [page if hit else None for page, hit in zip(pages, hits, strict=True)]

    def put(self, keys: Sequence[bytes], blocks: Sequence[memoryview]) -> int:
        checked_buffers(self._schema, keys, blocks)
        self.contains(keys)
        end = time.monotonic() + self._wait_s
        for key, data in zip(keys, blocks, strict=True):
            with self._changed:
                self._check_open()
                if key in self._blocks:
                    self._policy.used(key, time.monotonic())
                elif self._make_room(keys, end) and key not in self._blocks:
                    self._blocks[key] = block = Block(is_dirty=True)
                    self._enter_upper(key, block, data)
                    self._write_some(key)
                elif key not in self._blocks:  # another thread may have put it meanwhile
                    self._dropped += 1
        with self._changed:
            return sum(key in self._blocks for key in keys)

    def prefetch(self, keys: Sequence[bytes], *, deadline_s: float | None = None) -> int:
        self.contains(keys)
        moving: list[bytes] = []
        with self._changed:
            there = sum(1 for key in keys if key in self._blocks and self._blocks[key].upper)
            for key in keys:
                block = self._blocks.get(key)
                is_in_time = deadline_s is None or self._seconds * (len(moving) + 1) <= deadline_s
                if block is not None and not block.upper and is_in_time and len(moving) <= self._room // 2:
                    moving.append(key)
        if not moving or not self._thread.is_available:
            return there
        for key in moving:
            self._thread.submit(lambda key=key: self._fetch(key))  # type: ignore[misc]
        return there + len(moving)

    def _fetch(self, key: bytes) -> None:
        page = memoryview(bytearray(self._schema.bytes_per_page))
        (hit,) = self._lower.get([key], [page])
        with self._changed:
            if hit:
                self._promote(key, page)

    # --- pins

    def pin(self, keys: Sequence[bytes], *, lease_s: float | None = None) -> list[bool]:
        held = self.contains(keys)
        end = math.inf if lease_s is None else time.monotonic() + lease_s
        with self._changed:
            held = [key in self._blocks for key in keys]
            for key in (key for key, hit in zip(keys, held, strict=True) if hit):
                self._pins.setdefault(key, []).append(end)
                if self._blocks[key].lower:
                    self._pin_below(key, end)
        return held

    def unpin(self, keys: Sequence[bytes]) -> None:
        check_keys(keys)
        with self._changed:
            for key in keys:
                if self._is_pinned(key):
                    self._pins[key].remove(max(self._pins[key]))
                    block = self._blocks.get(key)
                    if block is not None and block.lower_pins:
                        block.lower_pins -= 1
                        self._thread.submit(lambda key=key: self._lower.unpin([key]))  # type: ignore[misc]

    # --- eviction

    def evict(self, count: int) -> int:
        self._check_open()
        self._flush(self._wait_s)
        done = self._evict_below(count) if count > 0 else 0
        with self._changed:
            for key in list(self._order()) if done < count else ():
                block = self._blocks[key]
                if done < count and not block.lower and not block.is_queued and not self._is_pinned(key):
                    self._lost(key)
                    done += 1
            self._evictions += done
        return done

    # --- the store itself

    def stats(self) -> KVStoreStats:
        with self._changed:
            below = sum(block.lower or block.is_queued for block in self._blocks.values())
            return KVStoreStats(
                blocks=len(self._blocks),
                capacity_blocks=self._capacity,
                bytes_used=(self._in_upper + below) * self._schema.bytes_per_page,
                pinned_blocks=sum(self._is_pinned(key) for key in list(self._pins)),
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
                dropped=self._dropped,
                tiers={"dram": self._in_upper, self._tier: below},
            )

    @property
    def failures(self) -> int:
        """Calls of the lower store that raised, or did not return in time."""
        return self._thread.failures

    def close(self) -> None:
        with self._changed:
            if self._closed:
                return
            for key, block in self._blocks.items():
                if block.is_dirty and not block.is_queued:
                    self._write(key)
        self._flush(_CLOSE_S)
        self._closed = True
        self._thread.call(self._lower.close, None, _CLOSE_S)
        self._thread.stop()
        self._upper.close()

"""The SSD store: blocks in append-only files that survive a restart."""

from __future__ import annotations

import contextlib
import math
import os
import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sage_infer.contracts import KVStoreStats, block_keys
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import KVCacheSchema

from sage_infer_kvstore.blocks import blocks_of, check_keys, checked_buffers
from sage_infer_kvstore.ssd.about import About
from sage_infer_kvstore.ssd.folder import open_folder
from sage_infer_kvstore.ssd.record import Layout
from sage_infer_kvstore.ssd.segment import Buffers, Segment, found_segment, new_segment

__all__ = ["SSDStore"]

_SEGMENT_NAME = re.compile(r"segment-v2-(\d{10})\.kv")
_EARLIER_FORMATS = "segment-v1-*.kv"
_SEGMENTS = 64
_IO_THREADS = 4
_DEFAULT_GB = 16.0
_RECORD_BITS = 32
_RECORD_MASK = 2**_RECORD_BITS - 1


class SSDStore:
    """A ``KVStore`` in a folder, which drops the oldest blocks, a segment at a time.

    A block is whole or absent, whatever instant the process dies at. Damaged blocks are misses and counted as
    ``corrupt``; what a full or read-only disk does not take is counted as ``dropped``.

    Args:
        path: the folder. Each model and schema has a folder of its own in it, which one process uses at a time.
        capacity_gb: size on disk in GiB, 16 by default. Segments with pinned blocks may keep more until they are
            unpinned.
        capacity_blocks: size in blocks, in place of ``capacity_gb``.
        direct: pass by the operating system's page cache where the file system can.

    Raises:
        ConfigError: wrong options, the folder cannot be used, or another process uses it.
    """

    def __init__(
        self,
        *,
        schema: KVCacheSchema,
        model_id: str,
        path: str,
        capacity_gb: float | None = None,
        capacity_blocks: int | None = None,
        direct: bool = True,
    ) -> None:
        self._schema, self._model_id = schema, model_id
        self._capacity = blocks_of(
            schema, capacity_gb=capacity_gb, capacity_blocks=capacity_blocks, default_gb=_DEFAULT_GB
        )
        self._layout = Layout(schema.bytes_per_page, max(1, self._capacity // _SEGMENTS))
        self._direct = direct
        self._buffers = Buffers(self._layout.payload_bytes)
        self._lock = threading.Lock()  # guards all below
        self._index: dict[bytes, int] = {}  # number of the segment and of the record in it, in one
        self._writing: set[bytes] = set()
        self._segments: list[Segment] = []  # oldest first; blocks are added to the last one
        self._segment_of: dict[int, Segment] = {}
        self._is_growing = False  # whether the last one was made by this process
        self._hits = self._misses = self._evictions = self._corrupt = self._dropped = 0
        self._closed = False
        self._folder, self._descriptor, self._writable = open_folder(path, model_id, schema)
        self._pool = ThreadPoolExecutor(_IO_THREADS, thread_name_prefix="sage-kv-ssd")
        self._scan()
        self.note_weights("")

    @property
    def schema(self) -> KVCacheSchema:
        return self._schema

    def note_weights(self, weights_id: str) -> None:
        """Write down which weights the blocks belong to; commands read that beside the schema."""
        if self._writable:
            About(self._model_id, weights_id, self._schema, self._capacity).write(self._folder)

    # --- look-up

    def match(self, tokens: Sequence[int]) -> int:
        keys = list(block_keys(self._model_id, self._schema, tokens))
        return self.match_keys(keys) * self._schema.page_size

    def match_keys(self, keys: Sequence[bytes]) -> int:
        check_keys(keys)
        with self._lock:
            self._check_open()
            count = next((i for i, key in enumerate(keys) if key not in self._index), len(keys))
            self._hits += bool(count)
            self._misses += not count
        return count

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        check_keys(keys)
        with self._lock:
            self._check_open()
            return [key in self._index for key in keys]

    # --- blocks

    def get(self, keys: Sequence[bytes], out: Sequence[memoryview]) -> list[bool]:
        buffers = checked_buffers(self._schema, keys, out)
        with self._lock:
            self._check_open()
            places = [self._place(key) for key in keys]
            for place in filter(None, places):
                place[0].users += 1
        return list(self._pool.map(self._read, keys, places, buffers))

    def put(self, keys: Sequence[bytes], blocks: Sequence[memoryview]) -> int:
        buffers = checked_buffers(self._schema, keys, blocks)
        with self._lock:
            self._check_open()
            kept = [(place[0], key) for key in keys if (place := self._place(key)) is not None]
            for segment, key in kept:
                segment.pins.setdefault(key, []).append(math.inf)  # they make no room for the others
            places = [self._allot(key) for key in keys]
            for segment, key in kept:
                segment.pins[key].remove(math.inf)
        written: dict[Segment, dict[int, tuple[bytes, int]]] = {}
        for key, place, checksum in zip(
            keys, places, self._pool.map(self._write, places, buffers), strict=True
        ):
            if place is not None and checksum is not None:
                written.setdefault(place[0], {})[place[1]] = (key, checksum)
        for segment, entries in written.items():
            try:
                segment.commit(entries)
            except OSError:
                entries.clear()
        with self._lock:
            for key, place in zip(keys, places, strict=True):
                if place is not None:
                    self._written(key, *place, is_stored=place[1] in written.get(place[0], {}))
            return sum(1 for key in keys if key in self._index)

    def pin(self, keys: Sequence[bytes], *, lease_s: float | None = None) -> list[bool]:
        check_keys(keys)
        end = math.inf if lease_s is None else time.monotonic() + lease_s
        with self._lock:
            self._check_open()
            places = [self._place(key) for key in keys]
            for key, place in zip(keys, places, strict=True):
                if place is not None:
                    place[0].pins.setdefault(key, []).append(end)
            return [place is not None for place in places]

    def unpin(self, keys: Sequence[bytes]) -> None:
        check_keys(keys)
        with self._lock:
            self._check_open()
            for key in keys:
                place = self._place(key)
                if place is not None and place[0].is_pinned(key):
                    ends = place[0].pins[key]
                    ends.remove(max(ends))

    def evict(self, count: int) -> int:
        with self._lock:
            self._check_open()
            done = 0
            for segment in list(self._segments):
                done += self._empty(segment, count - done)
            return done

    # --- the store itself

    def stats(self) -> KVStoreStats:
        with self._lock:
            return KVStoreStats(
                blocks=len(self._index),
                capacity_blocks=self._capacity,
                bytes_used=sum(len(s.keys) for s in self._segments) * self._layout.payload_bytes,
                pinned_blocks=sum(segment.pinned() for segment in self._segments),
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
                corrupt=self._corrupt,
                dropped=self._dropped,
                tiers={"ssd": len(self._index)},
            )

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._pool.shutdown()
        if self._is_growing:
            self._segments[-1].trim()
        for segment in self._segments:
            os.close(segment.descriptor)
        os.close(self._descriptor)

    # --- in a thread of the pool

    def _read(self, key: bytes, place: tuple[Segment, int] | None, out: npt.NDArray[np.uint8]) -> bool:
        if place is None:
            return False
        segment, record = place
        try:
            is_whole = segment.read(record, out, self._buffers)
        except OSError:
            is_whole = False
        if not is_whole and self._writable:
            segment.spoil(record)
        with self._lock:
            if not is_whole:
                self._corrupt += 1
                self._forget(segment, record)
            self._leave(segment)
        return is_whole

    def _write(self, place: tuple[Segment, int] | None, block: npt.NDArray[np.uint8]) -> int | None:
        """Checksum of a payload that is on disk; None where the disk did not take it."""
        if place is None:
            return None
        try:
            return place[0].write(place[1], block, self._buffers)
        except OSError:
            return None

    # --- with the lock

    def _written(self, key: bytes, segment: Segment, record: int, *, is_stored: bool) -> None:
        self._writing.discard(key)
        if is_stored:
            segment.keys[record] = key
            segment.live += 1
            self._index[key] = _packed(segment, record)
        else:
            self._dropped += 1
            if record == len(segment.keys) - 1:  # the next block may use its place
                segment.keys.pop()
        self._leave(segment)

    def _place(self, key: bytes) -> tuple[Segment, int] | None:
        packed = self._index.get(key)
        return None if packed is None else (self._segment_of[packed >> _RECORD_BITS], packed & _RECORD_MASK)

    def _allot(self, key: bytes) -> tuple[Segment, int] | None:
        """A record to write a block to; None where it is held, being written, or there is no room."""
        if key in self._index or key in self._writing:
            return None
        segment = self._with_room() if self._writable else None
        if segment is None:
            self._dropped += 1
            return None
        segment.keys.append(None)
        segment.users += 1
        self._writing.add(key)
        return segment, len(segment.keys) - 1

    def _with_room(self) -> Segment | None:
        for oldest in list(self._segments):
            if self._charged() < self._capacity:
                break
            self._empty(oldest, len(oldest.keys))
        if self._charged() >= self._capacity:
            return None
        if self._is_growing and self._segments and len(self._segments[-1].keys) < self._layout.records:
            return self._segments[-1]
        if self._segments:
            self._segments[-1].seal()
        number = self._segments[-1].number + 1 if self._segments else 1
        try:
            path = self._folder / f"segment-v2-{number:010}.kv"
            segment = new_segment(path, number, self._layout, direct=self._direct)
        except OSError:
            return None
        self._add(segment)
        self._is_growing = True
        return segment

    def _charged(self) -> int:
        """Blocks that count towards the capacity: all that were written to a segment, unless pins keep it."""
        return sum(
            segment.live + segment.users if segment.pins and segment.pinned() else len(segment.keys)
            for segment in self._segments
        )

    def _empty(self, segment: Segment, count: int) -> int:
        """Drop up to ``count`` unpinned blocks of a segment, oldest first; returns how many."""
        done = 0
        for record, key in enumerate(segment.keys):
            if done < count and key is not None and not segment.is_pinned(key):
                self._forget(segment, record)
                done += 1
        self._evictions += done
        self._drop_if_dead(segment)
        return done

    def _forget(self, segment: Segment, record: int) -> None:
        key = segment.keys[record] if record < len(segment.keys) else None
        if key is not None:
            segment.keys[record] = None
            segment.live -= 1
            segment.pins.pop(key, None)
            del self._index[key]

    def _leave(self, segment: Segment) -> None:
        segment.users -= 1
        if segment.is_dropped:
            segment.close_unused()
        else:
            self._drop_if_dead(segment)

    def _drop_if_dead(self, segment: Segment) -> None:
        """Remove the file of a segment without blocks, unless blocks are being written to it."""
        is_open = self._is_growing and segment is self._segments[-1]
        is_full = len(segment.keys) >= self._layout.records
        if not segment.live and not segment.users and segment.keys and (is_full or not is_open):
            self._segments.remove(segment)
            del self._segment_of[segment.number]
            self._is_growing = self._is_growing and not is_open
            segment.drop()

    def _add(self, segment: Segment) -> None:
        self._segments.append(segment)
        self._segment_of[segment.number] = segment

    def _scan(self) -> None:
        """Find the blocks of earlier processes by their entries; those of earlier formats are removed."""
        for path in self._folder.glob(_EARLIER_FORMATS):
            self._remove(path)
        found = sorted(
            (int(match[1]), path)
            for path in self._folder.iterdir()
            if (match := _SEGMENT_NAME.fullmatch(path.name))
        )
        for number, path in found:
            try:
                segment = found_segment(
                    path, number, self._layout.block_bytes, direct=self._direct, writable=self._writable
                )
            except OSError:
                self._corrupt += 1
                continue
            if segment is None:  # also where a process was killed while it made the file
                self._remove(path)
                continue
            for record, key in segment.scan():
                segment.keys += [None] * (record + 1 - len(segment.keys))
                if key not in self._index:
                    segment.keys[record] = key
                    segment.live += 1
                    self._index[key] = _packed(segment, record)
            if segment.live:
                self._add(segment)
            else:
                segment.drop()
            if segment.live and self._writable:
                segment.trim()
        for segment in list(self._segments):
            if self._charged() > self._capacity:
                self._empty(segment, len(segment.keys))

    def _remove(self, path: Path) -> None:
        if self._writable:
            with contextlib.suppress(OSError):
                path.unlink()

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidRequest("the store is closed; open it again")


def _packed(segment: Segment, record: int) -> int:
    return segment.number << _RECORD_BITS | record

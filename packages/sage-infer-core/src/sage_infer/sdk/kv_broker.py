"""Pages of KV between an engine and a ``KVStore``: fetched before a request starts, saved as they fill.

The store's code runs in threads of the broker alone. A store that raises, hangs, is full or returns other bytes than it
was given costs reuse, and nothing else.
"""

from __future__ import annotations

import asyncio
import math
import mmap
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from sage_infer.call_thread import CallThread
from sage_infer.compat import wait_for
from sage_infer.sdk.kv_pages.line import RequestLine
from sage_infer.sdk.kv_pages.notes import note_of
from sage_infer.sdk.kv_pages.pages import Counts, FetchedPages, Save

if TYPE_CHECKING:
    from sage_infer.contracts import KVStore

__all__ = ["KVBroker"]

_CLOSE_S = 5.0
_CHECKSUMS = 1_000_000
_SAVED_TOGETHER = 8
_PATIENCE = 3  # failures in a row before the store is left alone
_PAUSE_S = 30.0
_OBSERVED_S = 1.0


class KVBroker:
    """Fetches and saves pages of one model. All methods may be called from any thread.

    Args:
        store: it is closed with the broker.
        page_bytes: size of a page.
        wait_s: how long a request waits for its pages before it is computed without them.
        buffer_bytes: bound of the bytes that are being fetched, and of those that are being saved.
        new_buffer: returns a buffer of ``page_bytes``; by default private memory. The broker keeps them, and asks for
            at most ``buffer_bytes`` while only ``fetch`` and ``save_from`` are used.
    """

    def __init__(
        self,
        store: KVStore,
        *,
        page_bytes: int,
        wait_s: float,
        buffer_bytes: int,
        new_buffer: Callable[[], memoryview] | None = None,
    ) -> None:
        self._store = store
        self._page_bytes = page_bytes
        self._new_buffer = new_buffer or (lambda: memoryview(mmap.mmap(-1, page_bytes)))
        self._wait_s = wait_s
        self._limit = max(1, buffer_bytes // page_bytes)
        self._is_lossless = bool(getattr(store, "lossless", True))
        self._prefetch: Callable[[Sequence[bytes]], int] | None = getattr(store, "prefetch", None)
        self._note_request = note_of(store)
        self._lock = threading.Lock()  # guards all below
        self._counts = Counts()
        self._free: deque[memoryview] = deque(maxlen=self._limit)
        self._fetching = self._saving = 0
        # Of requests that have started or ended; not with the lock, since they may be collected while it is held.
        self._returned: deque[tuple[int, list[memoryview]]] = deque()
        self._checksums: OrderedDict[bytes, int] = OrderedDict()  # of the pages that this process saved
        self._failures_in_row = 0
        self._paused_until = 0.0
        self._closed = False
        self._seen: dict[str, float] = {}  # what the store last said about itself
        self._seen_at = -math.inf
        self._line = RequestLine()
        self._fetcher, self._saver = CallThread("sage-kv-fetch"), CallThread("sage-kv-save")
        self._queue: deque[Save] = deque()

    # --- fetching

    async def fetch(
        self, keys: Sequence[bytes], *, cached: int = 0, patience_s: float | None = None
    ) -> FetchedPages:
        """The pages of a request's prompt: of the longest prefix of ``keys`` that the store holds.

        None where the store does not answer in time. The engine has the first ``cached`` pages, which are not
        fetched. A store with a method ``note_request`` gets all keys, and ``patience_s``: how long the request may
        wait for its first token.
        """
        self._note(keys, patience_s)
        keys = keys[cached : cached + self._limit]
        if not keys:
            return FetchedPages()
        with self._lock:
            self._take_back()
            is_late = bool(self._line) or self._fetching + len(keys) > self._limit
            if self._is_unavailable() or is_late:
                self._counts.skipped_requests += 1
                return FetchedPages(is_deferred=not self._is_unavailable())
            self._fetching += len(keys)
        return await self._fetched(keys)

    async def fetch_later(self, wanted: Callable[[], Sequence[bytes]]) -> FetchedPages:
        """The pages of a request whose ``fetch`` was deferred, as soon as there is room, in order of arrival.

        Meanwhile a store with several tiers moves them to the fastest one, for the first requests in the line whose
        pages are together no more than those that may be in flight.

        Args:
            wanted: returns the keys of the pages; none if the request no longer waits.
        """
        with self._line.joined(wanted()[: self._limit]) as turn:
            while not self._is_unavailable() and (keys := wanted()[: self._limit]):
                self._promote_first()
                with self._lock:
                    self._take_back()
                    is_next = self._line.is_first(turn) and self._fetching + len(keys) <= self._limit
                    self._fetching += len(keys) if is_next else 0
                if not is_next:
                    await turn.wait()
                    continue
                fetched = await self._fetched(keys)
                with self._lock:
                    self._counts.later_requests += bool(fetched.pages)
                return fetched
        return FetchedPages()

    async def prefetch(self, keys: Sequence[bytes]) -> int:
        """Have a store with several tiers move the pages of a request that will come to the fastest one.

        Returns how many are there or on their way; 0 without such a store, and while it is busy.
        """
        prefetch, keys = self._prefetch, keys[: self._limit]
        with self._lock:
            if prefetch is None or not keys or self._is_unavailable():
                return 0
        return await asyncio.wrap_future(self._fetcher.submit(partial(self._promote, prefetch, keys)))

    def _promote_first(self) -> None:
        if self._prefetch is not None:
            for keys in self._line.announced(self._limit):
                self._fetcher.submit(partial(self._promote, self._prefetch, keys))

    def _promote(self, prefetch: Callable[[Sequence[bytes]], int], keys: Sequence[bytes]) -> int:
        try:
            count = int(prefetch(keys))
        except BaseException:
            with self._lock:
                self._failed()
            return 0
        with self._lock:
            self._counts.prefetched += count
        return count

    def _is_unavailable(self) -> bool:
        return self._closed or self._is_paused() or self._fetcher.busy_s() > self._wait_s

    async def _fetched(self, keys: Sequence[bytes]) -> FetchedPages:
        """The stored pages of keys whose number is counted in ``_fetching``."""
        future = self._fetcher.submit(lambda: self._fetch(keys))
        try:
            return await wait_for(asyncio.shield(asyncio.wrap_future(future)), self._wait_s)
        except BaseException as error:
            is_waiting = future.cancel()
            del future  # a traceback keeps this frame, which must not keep buffers
            with self._lock:
                if is_waiting:
                    self._give_back(len(keys), [])
                if isinstance(error, TimeoutError):
                    self._counts.late_requests += 1
                    if not is_waiting:  # else other requests kept the store busy
                        self._failed()
                    return FetchedPages(is_deferred=is_waiting)
            raise

    def _note(self, keys: Sequence[bytes], patience_s: float | None) -> None:
        note = self._note_request
        if note is None or not keys:
            return
        with self._lock:
            if self._is_unavailable():
                return

        def noted() -> None:
            try:
                note(keys, patience_s)
            except BaseException:
                with self._lock:
                    self._failed()

        self._fetcher.submit(noted)

    def _fetch(self, keys: Sequence[bytes]) -> FetchedPages:
        pages: dict[bytes, memoryview] = {}
        buffers: list[memoryview] = []
        try:
            keys_held = keys[: max(0, int(self._store.match_keys(keys)))]
            buffers += [self._buffer() for _ in keys_held]
            found = self._store.get(keys_held, buffers) if buffers else []
            if len(found) != len(keys_held):
                raise ValueError(f"the store answered {len(found)} of {len(keys_held)} keys")
            for key, buffer, hit in zip(keys_held, buffers, found, strict=True):
                if not hit or not self._is_right(key, buffer):
                    break
                pages[key] = buffer
        except BaseException:
            with self._lock:
                self._failed()
            self._give_back(len(keys), buffers)
            return FetchedPages()
        if self._is_observation_due():
            self._saver.submit(self._observe)  # not here: a request waits
        fetched = FetchedPages(pages)
        weakref.finalize(fetched, self._give_back, len(keys), buffers).atexit = False
        with self._lock:
            self._counts.fetched += len(pages)
            self._failures_in_row = 0
        return fetched

    def _is_right(self, key: bytes, buffer: memoryview) -> bool:
        if not self._is_lossless:
            return True
        with self._lock:
            expected = self._checksums.get(key)
        if expected is None or expected == _checksum(buffer):
            return True
        with self._lock:
            self._counts.corrupt += 1
        return False

    def _give_back(self, count: int, buffers: list[memoryview]) -> None:
        self._returned.append((count, buffers))
        self._line.wake()

    def _take_back(self) -> None:
        while self._returned:
            count, buffers = self._returned.popleft()
            self._fetching -= count
            self._free.extend(buffers)

    # --- saving

    def save(self, key: bytes, read: Callable[[memoryview], object]) -> None:
        """Queue a page; ``read`` copies its bytes into the buffer that it is given, before this returns."""
        with self._lock:
            if self._closed or self._saving >= self._limit or self._is_paused():
                self._counts.dropped += 1
                return
            self._saving += 1
        buffer = self._buffer()
        read(buffer)
        self._put_later(Save(key, buffer, lambda: self._free.append(buffer)))

    def save_from(self, key: bytes, buffer: memoryview, done: Callable[[], None]) -> None:
        """Queue a page without a copy; ``done`` is called when the buffer is no longer read, from any thread."""
        with self._lock:
            is_taken = not self._closed and not self._is_paused()
            if is_taken:
                self._saving += 1
            else:
                self._counts.dropped += 1
        if is_taken:
            self._put_later(Save(key, buffer, done))
        else:
            done()

    def _put_later(self, page: Save) -> None:
        self._queue.append(page)
        self._saver.submit(self._save)

    def _save(self) -> None:
        batch: list[Save] = []
        while self._queue and len(batch) < _SAVED_TOGETHER:
            batch.append(self._queue.popleft())
        if not batch:
            return
        new, sums, held = batch, {}, 0
        try:
            # Pages that are there already stay: computed in another batch, the same page may differ in its last bits,
            # and the checksum must be that of the stored one.
            known = self._store.contains([page.key for page in batch])
            new = [page for page, is_held in zip(batch, known, strict=True) if not is_held]
            sums = {page.key: _checksum(page.buffer) for page in new} if self._is_lossless else {}
            if new:
                held = int(
                    self._store.put([page.key for page in new], [page.buffer.toreadonly() for page in new])
                )
        except BaseException:
            with self._lock:
                self._failed()
        held = min(held, len(new))
        with self._lock:
            self._saving -= len(batch)
            self._counts.saved += held
            self._counts.dropped += len(new) - held
            self._checksums.update(sums)
            while len(self._checksums) > _CHECKSUMS:
                self._checksums.popitem(last=False)
        for page in batch:
            page.done()
        if self._is_observation_due():
            self._observe()

    # --- the store's statistics, for which it may have to ask a server

    def _is_observation_due(self) -> bool:
        """At most once per second; the caller then observes."""
        now = time.monotonic()
        with self._lock:
            is_due = not self._closed and now - self._seen_at >= _OBSERVED_S
            self._seen_at = now if is_due else self._seen_at
        return is_due

    def _observe(self) -> None:
        try:
            stats = self._store.stats()
            found = {
                "blocks": float(stats.blocks),
                "capacity_blocks": float(stats.capacity_blocks),
                "hits": float(stats.hits),
                "misses": float(stats.misses),
                "evictions": float(stats.evictions),
                **{f"tier_{name}": float(blocks) for name, blocks in stats.tiers.items()},
            }
        except BaseException:  # statistics are worth no failure
            return
        with self._lock:
            self._seen = found

    # --- the broker itself

    def counts(self) -> dict[str, float]:
        """Counters since the start, the size of a page in bytes, and whether the store is left alone after failures.

        These of the store are added, and updated in another thread at most once per second: ``blocks``,
        ``capacity_blocks``, ``hits``, ``misses``, ``evictions``, and the blocks per tier (``tier_dram`` …).
        """
        if not self._saver.busy_s() and self._is_observation_due():
            self._saver.submit(self._observe)  # for the next caller
        with self._lock:
            found = {name: float(getattr(self._counts, name)) for name in Counts.__slots__ if name[0] != "_"}
            return {
                **self._seen,
                **found,
                "page_bytes": float(self._page_bytes),
                "paused": float(self._is_paused()),
            }

    def free_buffers(self) -> int:
        """Buffers without a page that the broker keeps for the next one."""
        with self._lock:
            self._take_back()
            return len(self._free)

    def flush(self, timeout_s: float = _CLOSE_S) -> bool:
        """Wait until everything is saved; False where the store takes too long."""
        return self._saver.drain(timeout_s)

    def close(self) -> None:
        """Save what is queued and close the store; give up on a store that does not return. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._line.wake_all()
        is_done = self._saver.drain(_CLOSE_S) and self._fetcher.drain(_CLOSE_S)
        if is_done:
            self._saver.submit(self._store.close)
            self._saver.drain(_CLOSE_S)
        self._saver.stop()
        self._fetcher.stop()

    def _buffer(self) -> memoryview:
        try:
            return self._free.pop()
        except IndexError:
            return self._new_buffer()

    def _is_paused(self) -> bool:
        return time.monotonic() < self._paused_until

    def _failed(self) -> None:
        self._counts.failures += 1
        self._failures_in_row += 1
        if self._failures_in_row >= _PATIENCE:
            self._paused_until = time.monotonic() + _PAUSE_S


def _checksum(buffer: memoryview) -> int:
    import xxhash

    return xxhash.xxh3_64_intdigest(buffer)

"""KV cache events of the engine: snapshots, and a bounded event history."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping

from attrs import field, frozen
from sage_infer.contracts import KVEvents, KVSnapshot, KVStored

__all__ = ["KVEventLog"]

_KEPT_BYTES = 8 * 2**20  # event history for slow readers
_EVENT_BYTES, _KEY_BYTES, _TOKEN_BYTES = 200, 50, 8  # approximate sizes of an event, a key and a token id


@frozen
class _Block:
    parent: bytes | None
    tokens: tuple[int, ...]
    salt: bytes


@frozen
class _Reader:
    """A reader waiting for the next event."""

    loop: asyncio.AbstractEventLoop
    woken: asyncio.Event = field(factory=asyncio.Event)

    def wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # its event loop was closed
            self.loop.call_soon_threadsafe(self.woken.set)


class KVEventLog:
    """Blocks are recorded by the engine thread; readers may be in any event loop.

    Changes between two calls of ``flush`` form one event: a block that is stored and removed in between is omitted.
    """

    def __init__(self, generation: int, *, kept_bytes: int = _KEPT_BYTES) -> None:
        self.generation = generation
        self._limit = kept_bytes
        self._stored: dict[bytes, _Block] = {}  # since the last flush, as _removed
        self._removed: dict[bytes, None] = {}
        self._lock = threading.Lock()  # guards all below
        self._held: dict[bytes, _Block] = {}
        self._seq = 0
        self._events: deque[tuple[KVEvents, int]] = deque()
        self._bytes = 0
        self._waiting: list[_Reader] = []
        self._closed = False

    # --- in the engine thread

    def stored(self, key: bytes, parent: bytes | None, tokens: tuple[int, ...], salt: bytes) -> None:
        """A block was cached."""
        self._stored[key] = _Block(parent, tokens, salt)

    def removed(self, key: bytes) -> None:
        """A block was evicted."""
        if self._stored.pop(key, None) is None:
            self._removed[key] = None

    def flush(self) -> None:
        """Create an event from the recorded changes."""
        if not self._stored and not self._removed:
            return
        stored, removed = self._stored, tuple(self._removed)
        self._stored, self._removed = {}, {}
        event = KVEvents(generation=self.generation, seq=self._seq + 1, stored=_runs(stored), removed=removed)
        size = _EVENT_BYTES + _KEY_BYTES * (len(removed) + 2 * len(stored))
        size += _TOKEN_BYTES * sum(len(block.tokens) for block in stored.values())
        with self._lock:
            self._seq += 1
            for key in removed:
                self._held.pop(key, None)
            self._held.update(stored)
            self._events.append((event, size))
            self._bytes += size
            while self._bytes > self._limit and len(self._events) > 1:
                self._bytes -= self._events.popleft()[1]
            waiting, self._waiting = self._waiting, []
        for reader in waiting:
            reader.wake()

    def close(self) -> None:
        """End the events of every reader."""
        with self._lock:
            self._closed = True
            waiting, self._waiting = self._waiting, []
        for reader in waiting:
            reader.wake()

    # --- from anywhere

    def snapshot(self) -> KVSnapshot:
        with self._lock:
            held, seq = dict(self._held), self._seq
        return KVSnapshot(generation=self.generation, seq=seq, stored=_runs(held))

    async def events(self, since: int) -> AsyncIterator[KVEvents]:
        """Events after ``since`` from the history, then new ones, until ``close``."""
        while True:
            reader = _Reader(asyncio.get_running_loop())
            with self._lock:
                event = self._next(since)
                if event is None:
                    if self._closed:
                        return
                    self._waiting.append(reader)
            if event is not None:
                since = event.seq
                yield event
                continue
            try:
                await reader.woken.wait()
            finally:
                with self._lock:
                    if reader in self._waiting:
                        self._waiting.remove(reader)

    def _next(self, since: int) -> KVEvents | None:
        if not self._events or since >= self._seq:
            return None
        first = self._events[0][0].seq
        return self._events[max(since + 1 - first, 0)][0]


def _runs(blocks: Mapping[bytes, _Block]) -> tuple[KVStored, ...]:
    """Blocks as runs, each the parent of the next, in their order."""
    runs: list[list[tuple[bytes, _Block]]] = []
    for key, block in blocks.items():
        if runs and runs[-1][-1][0] == block.parent and runs[-1][-1][1].salt == block.salt:
            runs[-1].append((key, block))
        else:
            runs.append([(key, block)])
    return tuple(map(_run, runs))


def _run(blocks: Iterable[tuple[bytes, _Block]]) -> KVStored:
    pairs = list(blocks)
    first = pairs[0][1]
    return KVStored(
        parent=first.parent,
        keys=tuple(key for key, _ in pairs),
        token_ids=tuple(token for _, block in pairs for token in block.tokens),
        tier="dram",
        salt=first.salt,
    )

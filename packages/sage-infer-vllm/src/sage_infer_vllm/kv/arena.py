"""Slots of one KV page each in shared memory, between an engine's workers and a KV store.

Slots for loads belong to the owner of the arena, who fills them. Slots for saves pass through four hands, each of which
alone changes the state that it finds: the scheduler reserves a free slot, a worker fills it, the owner takes what is
filled to the store, and frees it. So no lock is needed.

Pages may also come while their request waits: the owner publishes their slots under the request's ticket, and the
scheduler looks for them when the request is next.
"""

from __future__ import annotations

import itertools
import mmap
import os
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import asdict, frozen

from sage_infer_vllm.kv.host_pages import HostPages

__all__ = ["Arena", "ArenaPlace"]

_FREE, _RESERVED, _FILLED, _TAKEN = range(4)
_KEY_BYTES = 16
_COUNTERS_BYTES = 64
_UNSAVED, _LOADED_STEP = range(2)  # counters
_ALIGNED = 4096
_PAGE_BITS = 32
_STARTED = 4096  # tickets of requests that have started: the last ones are known


@frozen(kw_only=True)
class ArenaPlace:
    """Where an arena is, and its form: slots for loads come first.

    Attributes:
        file: the shared memory.
        page_bytes: size of a page.
        loads: number of slots for pages that requests load.
        saves: number of slots for pages that are saved.
    """

    file: str
    page_bytes: int
    loads: int
    saves: int

    def as_params(self) -> dict[str, Any]:
        """As plain data, for a request's parameters."""
        return asdict(self)

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> ArenaPlace:
        return cls(**params)

    @property
    def head_bytes(self) -> int:
        used = _COUNTERS_BYTES + 8 * (_STARTED + self.loads) + self.saves * (4 + _KEY_BYTES)
        return -(-used // _ALIGNED) * _ALIGNED

    @property
    def nbytes(self) -> int:
        return self.head_bytes + (self.loads + self.saves) * self.page_bytes


class Arena:
    """A mapped arena. It stays mapped until nothing refers to its pages."""

    def __init__(self, place: ArenaPlace, memory: Any) -> None:
        import numpy as np

        self.place = place
        self._bytes: Any = np.frombuffer(memory, np.uint8)
        if len(self._bytes) < place.nbytes:
            raise ValueError(f"an arena of {place.nbytes} bytes has {len(self._bytes)}")
        at = 0

        def part(nbytes: int, kind: Any) -> Any:
            nonlocal at
            start, at = at, at + nbytes
            return self._bytes[start:at].view(kind)

        self._counters: Any = part(_COUNTERS_BYTES, np.uint64)
        self._started: Any = part(8 * _STARTED, np.uint64)
        self._late: Any = part(8 * place.loads, np.uint64)  # ticket and number of the page, written as one
        self._states: Any = part(4 * place.saves, np.uint32)
        self._keys: Any = part(_KEY_BYTES * place.saves, np.uint8).reshape(-1, _KEY_BYTES)

    @classmethod
    def create(cls, *, page_bytes: int, loads: int, saves: int) -> tuple[Arena, HostPages]:
        """A new arena, and the memory that keeps it reachable for other processes.

        Raises:
            OutOfMemory: there is not enough memory.
            UnsupportedFeature: this platform has no anonymous shared memory.
        """
        place = ArenaPlace(file="", page_bytes=page_bytes, loads=loads, saves=saves)
        memory = HostPages(place.nbytes)
        found = ArenaPlace(file=memory.file, page_bytes=page_bytes, loads=loads, saves=saves)
        return cls(found, memory.view), memory

    @classmethod
    def open(cls, place: ArenaPlace) -> Arena:
        """The arena of another process.

        Raises:
            OSError: that process has closed it.
            ValueError: it has another form.
        """
        descriptor = os.open(place.file, os.O_RDWR)
        try:
            return cls(place, mmap.mmap(descriptor, 0))
        finally:
            os.close(descriptor)

    def page(self, slot: int) -> Any:
        """The bytes of a slot, as an array."""
        start = self.place.head_bytes + slot * self.place.page_bytes
        return self._bytes[start : start + self.place.page_bytes]

    @property
    def memory(self) -> Any:
        """All of its bytes, as an array."""
        return self._bytes[: self.place.nbytes]

    # --- slots for saves

    def reserve(self, key: bytes) -> int | None:
        """Scheduler: a free slot for this page; None, and counted, where there is none."""
        free = (self._states == _FREE).nonzero()[0]
        if not len(free):
            self._counters[_UNSAVED] += 1
            return None
        entry = int(free[0])
        self._keys[entry] = memoryview(key)
        self._states[entry] = _RESERVED
        return self.place.loads + entry

    def filled(self, slot: int) -> None:
        """Worker: the page is complete."""
        self._states[slot - self.place.loads] = _FILLED

    def take_filled(self) -> list[tuple[int, bytes]]:
        """Owner: slots and keys of complete pages, each once."""
        entries = (self._states == _FILLED).nonzero()[0]
        self._states[entries] = _TAKEN
        return [(self.place.loads + int(entry), self._keys[entry].tobytes()) for entry in entries]

    def free(self, slot: int) -> None:
        """Owner: the page was saved, or is given up."""
        self._states[slot - self.place.loads] = _FREE

    @property
    def has_pending(self) -> bool:
        """Whether a page is reserved or filled."""
        return bool(((self._states == _RESERVED) | (self._states == _FILLED)).any())

    # --- slots for loads, of requests that wait

    def publish(self, ticket: int, first: int, slots: Sequence[int]) -> None:
        """Owner: these slots have the pages of a request from number ``first`` on. Tickets are above 0, and grow."""
        for page, slot in enumerate(slots, first):
            self._late[slot] = ticket << _PAGE_BITS | page

    def retract(self, ticket: int) -> None:
        """Owner: the pages of this request are no longer there. Safe to call twice."""
        self._late[self._late >> _PAGE_BITS == ticket] = 0

    def published(self, ticket: int) -> tuple[int, tuple[int, ...]]:
        """Scheduler: number of the first page of a request, and the slots of the pages from there on."""
        pages = {
            int(self._late[slot]) % (1 << _PAGE_BITS): int(slot)
            for slot in (self._late >> _PAGE_BITS == ticket).nonzero()[0]
        }
        first = min(pages, default=0)
        # Behind a gap, pages are still being published.
        numbers = itertools.takewhile(pages.__contains__, itertools.count(first))
        return first, tuple(pages[number] for number in numbers)

    def start(self, ticket: int) -> None:
        """Scheduler: the request has started, with or without pages."""
        self._started[ticket % _STARTED] = ticket

    def has_started(self, ticket: int) -> bool:
        """Owner: whether pages that are published from now on would come too late."""
        return int(self._started[ticket % _STARTED]) >= ticket

    # --- counters

    @property
    def loaded_step(self) -> int:
        """Number of the last step whose loads a worker has done."""
        return int(self._counters[_LOADED_STEP])

    def set_loaded_step(self, step: int) -> None:
        """Worker: it has done the loads of this step."""
        self._counters[_LOADED_STEP] = step

    def counts(self) -> dict[str, float]:
        return {"unsaved": float(self._counters[_UNSAVED])}

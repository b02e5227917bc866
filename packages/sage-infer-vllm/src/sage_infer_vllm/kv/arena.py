"""Slots of one KV page each in shared memory, between an engine's workers and a KV store.

Slots for loads belong to the owner of the arena, who fills them. Slots for saves pass through four hands, each of which
alone changes the state that it finds: the scheduler reserves a free slot, a worker fills it, the owner takes what is
filled to the store, and frees it. So no lock is needed.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from typing import Any

from attrs import asdict, frozen

from sage_infer_vllm.kv.host_pages import HostPages

__all__ = ["Arena", "ArenaPlace"]

_FREE, _RESERVED, _FILLED, _TAKEN = range(4)
_KEY_BYTES = 16
_COUNTERS_BYTES = 64
_UNSAVED, _LOADED_STEP = range(2)  # counters
_ALIGNED = 4096


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
        used = _COUNTERS_BYTES + self.saves * (4 + _KEY_BYTES)
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
        keys_at = _COUNTERS_BYTES + 4 * place.saves
        self._counters: Any = self._bytes[:_COUNTERS_BYTES].view(np.uint64)
        self._states: Any = self._bytes[_COUNTERS_BYTES:keys_at].view(np.uint32)
        self._keys: Any = self._bytes[keys_at : keys_at + _KEY_BYTES * place.saves].reshape(-1, _KEY_BYTES)

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

"""Memory that NIXL reads and writes: mapped segments, and buffers for files. Both stay registered between steps."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import define
from sage_infer_transport.execution import Failed

from sage_infer_nixl.agent.peers import Agent

__all__ = ["Mapped", "Memory"]

_MAX_SEGMENTS = 32
_BUFFER_BYTES = 1 << 20  # buffers have a multiple of this size
_MAX_IDLE_BYTES = 256 << 20


@define(eq=False)
class Mapped:
    """Registered memory at an address of this process."""

    memory: mmap.mmap
    address: int
    identity: tuple[int, int] = (0, 0)
    users: int = 0

    def view(self, offset: int, nbytes: int) -> memoryview:
        return memoryview(self.memory)[offset : offset + nbytes]


class Memory:
    """Registration takes as long as a transfer, so that memory is registered once. Safe to use from several threads."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._segments: OrderedDict[Path, Mapped] = OrderedDict()
        self._buffers: list[Mapped] = []
        self._lock = threading.Lock()

    @contextmanager
    def segment(self, path: Path) -> Iterator[Mapped]:
        """A shared memory segment. At most 32 stay mapped; the least recently used one is unmapped first.

        Raises:
            Failed: it cannot be opened.
        """
        with self._lock:
            found = self._open(path)
            found.users += 1
        try:
            yield found
        finally:
            with self._lock:
                found.users -= 1

    @contextmanager
    def buffer(self, nbytes: int) -> Iterator[Mapped]:
        """A buffer of at least so many bytes."""
        size = max(-(-nbytes // _BUFFER_BYTES), 1) * _BUFFER_BYTES
        with self._lock:
            found = next((held for held in self._buffers if len(held.memory) == size), None)
            if found is not None:
                self._buffers.remove(found)
        if found is None:
            memory = mmap.mmap(-1, size)
            found = Mapped(memory, self._agent.register(memory))
        try:
            yield found
        finally:
            with self._lock:
                self._buffers.append(found)
                while sum(len(held.memory) for held in self._buffers) > _MAX_IDLE_BYTES:
                    self._unmap(self._buffers.pop(0))

    def _open(self, path: Path) -> Mapped:
        try:
            state = path.stat()
            identity = (state.st_ino, state.st_size)
            held = self._segments.get(path)
            if held is not None and held.identity == identity:
                self._segments.move_to_end(path)
                return held
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                memory = mmap.mmap(descriptor, state.st_size)
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:
            raise Failed(f"cannot open shared memory {path.name}: {error}") from None
        found = Mapped(memory, self._agent.register(memory), identity)
        if held is not None and not held.users:
            self._unmap(held)
        self._segments[path] = found
        self._segments.move_to_end(path)
        idle = [key for key, mapped in self._segments.items() if not mapped.users and mapped is not found]
        for key in idle[: max(len(self._segments) - _MAX_SEGMENTS, 0)]:
            self._unmap(self._segments.pop(key))
        return found

    def _unmap(self, mapped: Mapped) -> None:
        self._agent.forget(mapped.address)
        with contextlib.suppress(BufferError):  # a view is left in a traceback: unmapped with it
            mapped.memory.close()

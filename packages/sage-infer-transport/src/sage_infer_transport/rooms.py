"""Rooms: ranges of one file-backed region of memory, allocated first fit and marked when their bytes are whole.

A header of 64 bytes precedes each room's payload. Its state becomes *arrived* after the last byte, so that a reader in
any process finds a whole payload or none.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import threading
from bisect import insort

from attrs import define, field, frozen
from sage_infer.errors import Overloaded

__all__ = ["HEADER_BYTES", "Region", "Room", "read_header", "write_header"]

HEADER_BYTES = 64
_HEADER = struct.Struct("<8sQQQ")  # magic, arrived, bytes of payload, xxh3-64
_MAGIC = b"SAGEROOM"
_RETRY_S = 0.1  # about the time that a transfer holds a room


@frozen
class Room:
    """A range of a region: ``nbytes`` of payload from ``offset`` on, after a header."""

    offset: int
    nbytes: int

    @property
    def start(self) -> int:
        return self.offset - HEADER_BYTES

    @property
    def end(self) -> int:
        return self.start + _rounded(self.nbytes)


def write_header(
    memory: mmap.mmap | memoryview, offset: int, *, arrived: bool, nbytes: int, digest: int
) -> None:
    """Write the header of the room whose payload is at ``offset``; *arrived* comes last."""
    start = offset - HEADER_BYTES
    _HEADER.pack_into(memory, start, _MAGIC, 0, nbytes, digest)
    if arrived:
        _HEADER.pack_into(memory, start, _MAGIC, 1, nbytes, digest)


def read_header(memory: mmap.mmap | memoryview, offset: int) -> tuple[bool, int, int] | None:
    """``(arrived, nbytes, digest)`` of the room whose payload is at ``offset``; None without a room there."""
    if offset < HEADER_BYTES or offset > len(memory):
        return None
    magic, arrived, nbytes, digest = _HEADER.unpack_from(memory, offset - HEADER_BYTES)
    return (bool(arrived), nbytes, digest) if magic == _MAGIC else None


@define(eq=False)
class Region:
    """``capacity`` bytes behind a file descriptor. The operating system provides a page when it is first written.

    ``capacity`` bounds the payloads. Headers and rounding have room of their own.
    """

    fd: int
    capacity: int
    memory: mmap.mmap
    _free: list[tuple[int, int]]
    _used: int = 0
    _lock: threading.Lock = field(factory=threading.Lock)

    @classmethod
    def on(cls, fd: int, capacity: int) -> Region:
        """Map a new file, which the region owns from now on."""
        size = 2 * _rounded(capacity) + (1 << 20)
        os.ftruncate(fd, size)
        memory = mmap.mmap(fd, size)
        return cls(fd, capacity, memory, [(0, size)])

    def allocate(self, sizes: list[int]) -> list[Room]:
        """A room of each size; all or none.

        Raises:
            Overloaded: there is not enough room now.
        """
        with self._lock:
            if self._used + sum(sizes) > self.capacity:
                raise Overloaded(
                    f"{sum(sizes)} bytes do not fit: {self.capacity - self._used} of {self.capacity} bytes "
                    "are free; withdraw chunks, or retry later",
                    retry_after=_RETRY_S,
                )
            rooms: list[Room] = []
            for size in sizes:
                start = self._take(_rounded(size))
                if start is None:
                    for room in rooms:
                        self._give_back(room)
                    raise Overloaded(
                        f"no free range of {size} bytes: memory is fragmented; retry later",
                        retry_after=_RETRY_S,
                    )
                room = Room(start + HEADER_BYTES, size)
                rooms.append(room)
                self._used += size
                write_header(self.memory, room.offset, arrived=False, nbytes=size, digest=0)
            return rooms

    def free(self, room: Room) -> None:
        """Free a room. Its pages stay with the region: the next room there costs no page faults."""
        with self._lock:
            self._give_back(room)

    def view(self, room: Room) -> memoryview:
        return memoryview(self.memory)[room.offset : room.offset + room.nbytes]

    def close(self) -> None:
        """Unmap the region as soon as no view of it is left, and close the file."""
        with contextlib.suppress(BufferError):  # a reader still has a view: unmapped with the last one
            self.memory.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _take(self, size: int) -> int | None:
        for index, (start, length) in enumerate(self._free):
            if length >= size:
                if length == size:
                    del self._free[index]
                else:
                    self._free[index] = (start + size, length - size)
                return start
        return None

    def _give_back(self, room: Room) -> None:
        start, end = room.start, room.end
        self._used -= room.nbytes
        write_header(self.memory, room.offset, arrived=False, nbytes=0, digest=0)
        insort(self._free, (start, end - start))
        merged: list[tuple[int, int]] = []
        for begin, length in self._free:
            if merged and merged[-1][0] + merged[-1][1] == begin:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((begin, length))
        self._free = merged


def _rounded(nbytes: int) -> int:
    """Bytes that a room takes: header and payload, in multiples of 64 so that payloads are aligned."""
    return HEADER_BYTES + -(-nbytes // 64) * 64

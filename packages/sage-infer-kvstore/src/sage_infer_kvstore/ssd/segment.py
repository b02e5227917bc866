"""A file of records that is only appended to, and the I/O on it."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from attrs import define, field

from sage_infer_kvstore.ssd.record import (
    HEADER_BYTES,
    payload_checksum,
    read_header,
    record_bytes,
    write_header,
)

__all__ = ["Buffers", "Segment", "open_segment"]

_SCAN_BYTES = 64
_NO_DIRECT_IO = errno.EINVAL


@define(eq=False)
class Segment:
    """Blocks of one file, in the order in which they were written. The index of the store guards all fields.

    Attributes:
        keys: key of each record; None where it is dropped, damaged or being written.
        pins: ends of the pins of each pinned block (``time.monotonic``).
        users: threads that read or write here; the file is closed when the last one has ended.
    """

    number: int
    path: Path
    descriptor: int
    block_bytes: int
    is_direct: bool
    keys: list[bytes | None] = field(factory=list)
    live: int = 0
    pins: dict[bytes, list[float]] = field(factory=dict)
    users: int = 0
    is_dropped: bool = False

    # --- pins

    def is_pinned(self, key: bytes) -> bool:
        ends = self.pins.get(key)
        if ends is None:
            return False
        now = time.monotonic()
        ends[:] = [end for end in ends if end > now]
        if not ends:
            del self.pins[key]
        return bool(ends)

    def pinned(self) -> int:
        """Blocks that are pinned now."""
        return sum(self.is_pinned(key) for key in list(self.pins))

    # --- files

    def write(self, record: int, key: bytes, block: npt.NDArray[np.uint8], buffers: Buffers) -> None:
        """
        Raises:
            OSError: the disk is full, read-only or broken.
        """
        with buffers.lend() as buffer:
            buffer[HEADER_BYTES : HEADER_BYTES + self.block_bytes] = block
            buffer[:HEADER_BYTES] = np.frombuffer(
                write_header(key, self.block_bytes, payload_checksum(block.data)), np.uint8
            )
            at = record * len(buffer)
            self._write_all(buffer[HEADER_BYTES:], at + HEADER_BYTES)
            self._write_all(buffer[:HEADER_BYTES], at)
        self._forget_pages(record)

    def read(self, record: int, key: bytes, out: npt.NDArray[np.uint8], buffers: Buffers) -> bool:
        """Copy a block into ``out``; False, with ``out`` untouched, where the record is damaged.

        Raises:
            OSError: the disk is broken.
        """
        with buffers.lend() as buffer:
            at, done = record * len(buffer), 0
            while done < len(buffer):
                count = os.preadv(self.descriptor, [buffer[done:].data], at + done)
                if not count:
                    return False
                done += count
            payload = buffer[HEADER_BYTES : HEADER_BYTES + self.block_bytes]
            header = read_header(buffer[:_SCAN_BYTES].data)
            if header != (key, self.block_bytes, payload_checksum(payload.data)):
                return False
            out[:] = payload
        self._forget_pages(record)
        return True

    def scan(self) -> Iterator[tuple[int, bytes]]:
        """Number and key of each record whose header is whole; payloads are not read."""
        size = record_bytes(self.block_bytes)
        os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        buffer = np.frombuffer(mmap.mmap(-1, HEADER_BYTES), np.uint8)
        for record in range(self.records_on_disk()):
            count = os.preadv(self.descriptor, [buffer.data], record * size)
            header = read_header(buffer[:count].data)
            if header is not None and header[1] == self.block_bytes:
                yield record, header[0]

    def records_on_disk(self) -> int:
        """Records that the file has room for; a torn one at the end does not count."""
        return os.fstat(self.descriptor).st_size // record_bytes(self.block_bytes)

    def spoil(self, record: int) -> None:
        """Overwrite a damaged record's header, so that the next start does not find it."""
        empty = np.frombuffer(mmap.mmap(-1, HEADER_BYTES), np.uint8)
        with contextlib.suppress(OSError):  # it is found to be damaged again
            self._write_all(empty, record * record_bytes(self.block_bytes))

    def drop(self) -> None:
        """Remove the file; it is closed when nobody reads it any more."""
        self.is_dropped = True
        with contextlib.suppress(OSError):  # read-only, or another process removed it
            self.path.unlink(missing_ok=True)
        self.close_unused()

    def close_unused(self) -> None:
        """Close a dropped file that has no users."""
        if self.is_dropped and not self.users and self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _write_all(self, data: npt.NDArray[np.uint8], at: int) -> None:
        done = 0
        while done < len(data):
            done += os.pwritev(self.descriptor, [data[done:].data], at + done)

    def _forget_pages(self, record: int) -> None:
        if not self.is_direct:  # the blocks are in memory already, in the tiers above
            size = record_bytes(self.block_bytes)
            os.posix_fadvise(self.descriptor, record * size, size, os.POSIX_FADV_DONTNEED)


def open_segment(
    path: Path, number: int, block_bytes: int, *, is_new: bool, direct: bool, writable: bool
) -> Segment:
    """Open a file, without the page cache where the file system can.

    Raises:
        OSError: it cannot be opened or made.
    """
    flags = os.O_CLOEXEC | (os.O_RDWR if writable else os.O_RDONLY)
    flags |= os.O_CREAT | os.O_EXCL if is_new else 0
    is_direct = direct and hasattr(os, "O_DIRECT")
    if is_direct:
        try:
            return Segment(number, path, os.open(path, flags | os.O_DIRECT, 0o600), block_bytes, True)
        except OSError as error:
            if error.errno != _NO_DIRECT_IO:
                raise
            flags &= ~os.O_EXCL  # the attempt may have made the file
    return Segment(number, path, os.open(path, flags, 0o600), block_bytes, False)


class Buffers:
    """Page-aligned buffers of one record each, which direct I/O needs."""

    def __init__(self, block_bytes: int) -> None:
        self._size = record_bytes(block_bytes)
        self._free: list[npt.NDArray[np.uint8]] = []

    @contextlib.contextmanager
    def lend(self) -> Iterator[npt.NDArray[np.uint8]]:
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = np.frombuffer(mmap.mmap(-1, self._size), np.uint8)
        try:
            yield buffer
        finally:
            self._free.append(buffer)

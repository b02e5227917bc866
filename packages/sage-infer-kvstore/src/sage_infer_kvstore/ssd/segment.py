"""A file of records that is only appended to, and the I/O on it."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from attrs import define, field

from sage_infer_kvstore.ssd.record import (
    ENTRY_BYTES,
    PAGE_BYTES,
    Layout,
    checksum_of,
    read_entry,
    write_entry,
)

__all__ = ["Buffers", "Segment", "found_segment", "new_segment"]

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
    layout: Layout
    is_direct: bool
    keys: list[bytes | None] = field(factory=list)
    live: int = 0
    pins: dict[bytes, list[float]] = field(factory=dict)
    users: int = 0
    is_dropped: bool = False
    checksums: array[int] = field(init=False, repr=False)
    _table: npt.NDArray[np.uint8] | None = field(default=None, repr=False)
    _entering: threading.Lock = field(
        factory=threading.Lock, repr=False
    )  # guards the table, here and on disk

    def __attrs_post_init__(self) -> None:
        self.checksums = array("Q", bytes(8 * self.layout.records))

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

    def write(self, record: int, block: npt.NDArray[np.uint8], buffers: Buffers) -> int:
        """Write a payload and return its checksum. The block does not exist before ``commit``.

        Raises:
            OSError: the disk is full, read-only or broken.
        """
        at = self.layout.payload_at(record)
        if block.nbytes % PAGE_BYTES == 0 and block.ctypes.data % PAGE_BYTES == 0:
            self._write_all(block, at)  # as direct I/O wants it
        else:
            with buffers.lend() as buffer:
                buffer[: block.nbytes] = block
                self._write_all(buffer, at)
        self._forget_pages(record)
        return checksum_of(block.data)

    def commit(self, entries: Mapping[int, tuple[bytes, int]]) -> None:
        """Enter the keys and checksums of records whose payloads have been written, in one write if they are close.

        Raises:
            OSError: the disk is full, read-only or broken.
        """
        with self._entering:
            for record, (key, checksum) in entries.items():
                self._set(record, write_entry(key, self.layout.block_bytes, checksum))
            try:
                self._write_table([self.layout.entry_at(record) for record in entries])
            except OSError:
                for record in entries:  # a later commit must not enter them
                    self._set(record, bytes(ENTRY_BYTES))
                raise
        for record, (_, checksum) in entries.items():
            self.checksums[record] = checksum

    def write_head(self) -> None:
        """
        Raises:
            OSError: as ``commit``.
        """
        self._write_table([0])

    def read(self, record: int, out: npt.NDArray[np.uint8], buffers: Buffers) -> bool:
        """Copy a block into ``out``; False, with ``out`` untouched, where it is damaged.

        Raises:
            OSError: the disk is broken.
        """
        with buffers.lend() as buffer:
            at, done = self.layout.payload_at(record), 0
            while done < len(buffer):
                count = os.preadv(self.descriptor, [buffer[done:].data], at + done)
                if not count:
                    return False
                done += count
            payload = buffer[: self.layout.block_bytes]
            if checksum_of(payload.data) != self.checksums[record]:
                return False
            out[:] = payload
        self._forget_pages(record)
        return True

    def scan(self) -> Iterator[tuple[int, bytes]]:
        """Number and key of each record whose entry is whole; payloads are not read."""
        table = _aligned(self.layout.table_bytes)
        filled = self._read_table(table)
        room = (os.fstat(self.descriptor).st_size - self.layout.table_bytes) // self.layout.payload_bytes
        for record in range(min(self.layout.records, room)):
            at = self.layout.entry_at(record)
            entry = read_entry(table[:filled][at : at + ENTRY_BYTES].data)
            if entry is not None and entry[1] == self.layout.block_bytes:
                self.checksums[record] = entry[2]
                yield record, entry[0]

    def seal(self) -> None:
        """Forget the table in memory, since hardly anything will be entered any more."""
        with self._entering:
            self._table = None

    def trim(self) -> None:
        """Return the room after the last record to the disk."""
        with contextlib.suppress(OSError):
            os.ftruncate(self.descriptor, self.layout.size(len(self.keys)))

    def spoil(self, record: int) -> None:
        """Remove a damaged record's entry, so that the next start does not find it."""
        with self._entering, contextlib.suppress(OSError):  # else it is found to be damaged again
            self._set(record, bytes(ENTRY_BYTES))
            self._write_table([self.layout.entry_at(record)])

    def _set(self, record: int, entry: bytes) -> None:
        if self._table is None:  # sealed, or written by an earlier process
            table = _aligned(self.layout.table_bytes)
            self._read_table(table)
            self._table = table
        at = self.layout.entry_at(record)
        self._table[at : at + ENTRY_BYTES] = np.frombuffer(entry, np.uint8)

    def _read_table(self, table: npt.NDArray[np.uint8]) -> int:
        return os.preadv(self.descriptor, [table.data], 0)

    def _write_table(self, places: Iterable[int]) -> None:
        assert self._table is not None
        pages = sorted({at // PAGE_BYTES for at in places})
        first, end = pages[0] * PAGE_BYTES, (pages[-1] + 1) * PAGE_BYTES
        self._write_all(self._table[first:end], first)

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
            at, size = self.layout.payload_at(record), self.layout.payload_bytes
            os.posix_fadvise(self.descriptor, at, size, os.POSIX_FADV_DONTNEED)


def new_segment(path: Path, number: int, layout: Layout, *, direct: bool) -> Segment:
    """Make a file with room for all records.

    Raises:
        OSError: it cannot be made.
    """
    descriptor, is_direct = _opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, direct=direct)
    try:
        # Writes that extend a file wait for each other; without room for all, it grows as it is written.
        with contextlib.suppress(OSError):
            os.posix_fallocate(descriptor, 0, layout.size(layout.records))
        table = _aligned(layout.table_bytes)
        table[:ENTRY_BYTES] = np.frombuffer(layout.head(), np.uint8)
        segment = Segment(number, path, descriptor, layout, is_direct, table=table)
        segment.write_head()
    except BaseException:
        os.close(descriptor)
        path.unlink()
        raise
    return segment


def found_segment(
    path: Path, number: int, block_bytes: int, *, direct: bool, writable: bool
) -> Segment | None:
    """Open a file of an earlier process; None where it is damaged or of another format.

    Raises:
        OSError: it cannot be opened.
    """
    descriptor, is_direct = _opened(path, os.O_RDWR if writable else os.O_RDONLY, direct=direct)
    page = _aligned(PAGE_BYTES)
    layout = Layout.read(page[: os.preadv(descriptor, [page.data], 0)].data)
    if layout is None or layout.block_bytes != block_bytes:
        os.close(descriptor)
        return None
    return Segment(number, path, descriptor, layout, is_direct)


def _opened(path: Path, flags: int, *, direct: bool) -> tuple[int, bool]:
    """A descriptor, without the page cache where the file system can, and whether it is so."""
    flags |= os.O_CLOEXEC
    if direct and hasattr(os, "O_DIRECT"):
        try:
            return os.open(path, flags | os.O_DIRECT, 0o600), True
        except OSError as error:
            if error.errno != _NO_DIRECT_IO:
                raise
            flags &= ~os.O_EXCL  # the attempt may have made the file
    return os.open(path, flags, 0o600), False


def _aligned(nbytes: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)


class Buffers:
    """Page-aligned buffers of one payload each, which direct I/O needs."""

    def __init__(self, payload_bytes: int) -> None:
        self._size = payload_bytes
        self._free: list[npt.NDArray[np.uint8]] = []

    @contextlib.contextmanager
    def lend(self) -> Iterator[npt.NDArray[np.uint8]]:
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = _aligned(self._size)
        try:
            yield buffer
        finally:
            self._free.append(buffer)

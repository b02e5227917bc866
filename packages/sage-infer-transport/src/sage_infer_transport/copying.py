"""Verified copies between files and shared memory, in blocks that stay in the CPU's cache."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash
from attrs import define, field, frozen
from sage_infer.schemas import KVChunk
from sage_infer.schemas.kv_chunk import CHECKSUM
from sage_infer.sdk import copy_chunk

from sage_infer_transport.addresses import FileAddress
from sage_infer_transport.execution import Failed, Move
from sage_infer_transport.rooms import read_header, write_header

__all__ = ["BLOCK_BYTES", "Hasher", "Segments", "copy", "new_file", "opened", "write_all"]

BLOCK_BYTES = 512 << 10
"""A block is hashed while it is in the second-level cache, after it was copied or received: memory is read once."""

_MAX_SEGMENTS = 32


class Hasher:
    """Running xxh3-64 of a chunk's bytes."""

    def __init__(self) -> None:
        self._state = xxhash.xxh3_64()

    def update(self, block: memoryview) -> None:
        self._state.update(block)

    def check(self, chunk: KVChunk, where: str) -> int:
        """The digest.

        Raises:
            Failed: it is not that of the chunk.
        """
        found = f"{CHECKSUM}:{self._state.hexdigest()}"
        if found != chunk.checksum:
            raise Failed(
                f"{where} does not hold chunk {chunk.chunk_id}: checksum {found}, expected {chunk.checksum}"
            )
        return self._state.intdigest()


@frozen
class MappedRoom:
    """A room of a mapped segment."""

    memory: mmap.mmap
    offset: int
    nbytes: int

    @property
    def payload(self) -> memoryview:
        return memoryview(self.memory)[self.offset : self.offset + self.nbytes]

    def arrived(self, digest: int) -> None:
        """Mark the room as complete."""
        write_header(self.memory, self.offset, arrived=True, nbytes=self.nbytes, digest=digest)


@define(eq=False)
class Segments:
    """Shared memory segments, which stay mapped between steps: page faults cost more than the copy.

    At most 32 are mapped; the least recently used one is unmapped first.
    """

    _mapped: OrderedDict[str, tuple[tuple[int, int], mmap.mmap]] = field(factory=OrderedDict)
    _lock: threading.Lock = field(factory=threading.Lock)

    def payload(self, address: FileAddress, chunk: KVChunk) -> memoryview:
        """The bytes of a chunk at an address, whether they have arrived or not.

        Raises:
            Failed: there is no such segment, or it is too short.
        """
        memory = self._segment(address)
        _check_length(memory, address, chunk)
        return memoryview(memory)[address.offset : address.offset + chunk.nbytes]

    def room(self, address: FileAddress, chunk: KVChunk) -> MappedRoom:
        """The room that was reserved for a chunk; it is marked as not arrived.

        Raises:
            Failed: there is no room of the chunk's size.
        """
        memory = self._segment(address)
        _check_length(memory, address, chunk)
        header = read_header(memory, address.offset)
        if header is None or header[1] != chunk.nbytes:
            raise Failed(
                f"{_name(address)}: no {chunk.nbytes} bytes are reserved there; reserve room at an endpoint"
            )
        write_header(memory, address.offset, arrived=False, nbytes=chunk.nbytes, digest=0)
        return MappedRoom(memory, address.offset, chunk.nbytes)

    def close(self) -> None:
        with self._lock:
            while self._mapped:
                _unmap(self._mapped.popitem()[1][1])

    def _segment(self, address: FileAddress) -> mmap.mmap:
        path = str(address.path)  # cheaper to compare than a Path
        with self._lock:
            try:
                found = os.stat(path)
                identity = (found.st_ino, found.st_size)
                held = self._mapped.get(path)
                if held is not None and held[0] == identity:
                    self._mapped.move_to_end(path)
                    return held[1]
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    memory = mmap.mmap(fd, found.st_size)
                finally:
                    os.close(fd)
            except (OSError, ValueError) as error:
                raise Failed(f"cannot open shared memory {address.path.name}: {error}") from None
            if held is not None:
                _unmap(held[1])
            self._mapped[path] = (identity, memory)
            if len(self._mapped) > _MAX_SEGMENTS:
                _unmap(self._mapped.popitem(last=False)[1][1])
            return memory


@contextmanager
def opened(address: FileAddress, chunk: KVChunk) -> Iterator[int]:
    """A file descriptor of a source.

    Raises:
        Failed: the file does not exist, or is too short.
    """
    try:
        fd = os.open(address.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Failed(f"cannot read {address.path}: {error.strerror}") from None
    try:
        size = os.fstat(fd).st_size
        if address.offset + chunk.nbytes > size:
            raise Failed(
                f"{address.path} has {size} bytes; chunk {chunk.chunk_id} needs {chunk.nbytes} from {address.offset} on"
            )
        yield fd
    finally:
        os.close(fd)


@contextmanager
def new_file(target: Path) -> Iterator[int]:
    """A file descriptor whose contents appear at ``target`` if the block ends without an exception."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        yield fd
        os.replace(aside, target)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    finally:
        os.close(fd)


def copy(source: FileAddress, target: FileAddress, move: Move, segments: Segments) -> None:
    """Copy a chunk from one address of this host to another.

    Raises:
        Failed: a place does not exist, or the target is not a room.
        KVCorrupt: the checksum is wrong; the target is as if never written.
    """
    chunk = move.step.chunk
    if not target.shared:
        copy_chunk(chunk, source.path, target.path, offset=source.offset, flush=False, check=move.check)
        return
    hasher, room = Hasher(), segments.room(target, chunk)
    payload = room.payload
    if source.shared:
        held = segments.payload(source, chunk)
        begin_of_source, begin_of_room = _address(held), _address(payload)
        for begin in range(0, chunk.nbytes, BLOCK_BYTES):
            move.check()
            block = payload[begin : begin + BLOCK_BYTES]
            # Without the GIL, unlike a slice. The copy is hashed, since it lies in the CPU's cache now.
            ctypes.memmove(begin_of_room + begin, begin_of_source + begin, len(block))
            hasher.update(block)
    else:
        with opened(source, chunk) as fd:
            for begin in range(0, chunk.nbytes, BLOCK_BYTES):
                move.check()
                block = payload[begin : begin + BLOCK_BYTES]
                _read(fd, block, source.offset + begin)
                hasher.update(block)
    digest = hasher.check(chunk, move.step.source.uri)
    room.arrived(digest)


def write_all(fd: int, block: memoryview, offset: int) -> None:
    while block:
        count = os.pwrite(fd, block, offset)
        block, offset = block[count:], offset + count


def _read(fd: int, block: memoryview, offset: int) -> None:
    while block:
        count = os.preadv(fd, [block], offset)
        if count == 0:
            raise Failed("the source became shorter while it was read")
        block, offset = block[count:], offset + count


def _address(view: memoryview) -> int:
    if not view:
        return 0
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def _check_length(memory: mmap.mmap, address: FileAddress, chunk: KVChunk) -> None:
    if address.offset + chunk.nbytes > len(memory):
        raise Failed(
            f"{_name(address)}: the segment has {len(memory)} bytes, the chunk needs {chunk.nbytes} there"
        )


def _name(address: FileAddress) -> str:
    return f"shm://{address.path.name}#{address.offset}"


def _unmap(memory: mmap.mmap) -> None:
    with contextlib.suppress(
        BufferError
    ):  # a view is left, in another thread or a traceback: unmapped with it
        memory.close()

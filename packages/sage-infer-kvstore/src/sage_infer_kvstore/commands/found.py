"""KV stores of this machine, seen from outside: shared arenas, and folders of SSD stores."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from attrs import frozen
from sage_infer.errors import InvalidRequest

from sage_infer_kvstore.paged.arena import SHARED_FOLDER
from sage_infer_kvstore.paged.layout import Head
from sage_infer_kvstore.paged.locks import OwnerNumbers
from sage_infer_kvstore.ssd.record import ENTRY_BYTES, Layout, checksum_of, read_entry

__all__ = ["FoundStore", "Verified", "arenas", "folders", "purge", "verify"]

_ARENA = re.compile(r"sage-kv-(.+)-([0-9a-f]{16})\.index")
_SEGMENT = re.compile(r"segment-v2-\d{10}\.kv")
_SPACE = re.compile(r"[0-9a-f]{16}")


@frozen(kw_only=True)
class FoundStore:
    """One store of one model and schema.

    Attributes:
        store: paged or ssd.
        name: the arena's name, or the folder.
        key_space: beginning of the key space that its blocks belong to.
        capacity_blocks: 0 where nothing on disk says it.
        bytes: bytes that it occupies.
        processes: processes that have it open.
    """

    store: str
    name: str
    key_space: str
    files: tuple[Path, ...]
    blocks: int
    capacity_blocks: int
    block_bytes: int
    bytes: int
    processes: int
    hits: int = 0
    misses: int = 0


@frozen(kw_only=True)
class Verified:
    """Blocks of one store whose bytes were read."""

    store: FoundStore
    whole: int
    damaged: int


def arenas() -> list[FoundStore]:
    """All shared arenas that this user may read."""
    found = []
    for path in sorted(SHARED_FOLDER.glob("sage-kv-*.index")) if SHARED_FOLDER.is_dir() else ():
        match = _ARENA.fullmatch(path.name)
        if match:
            try:
                found.append(_arena(path, match[1], match[2]))
            except OSError:
                continue  # removed just now, or another user's
    return found


def _arena(path: Path, name: str, key_space: str) -> FoundStore:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        size = 8 * len(Head)
        head = memoryview(os.pread(descriptor, size, 0).ljust(size, b"\0")).cast("q")
        data = path.with_suffix("")
        return FoundStore(
            store="paged",
            name=name,
            key_space=key_space,
            files=(data, path),
            blocks=head[Head.BLOCKS],
            capacity_blocks=head[Head.CAPACITY],
            block_bytes=head[Head.BLOCK_BYTES],
            bytes=sum(file.stat().st_blocks * 512 for file in (data, path) if file.exists()),
            processes=OwnerNumbers.count(descriptor),
            hits=head[Head.HITS],
            misses=head[Head.MISSES],
        )
    finally:
        os.close(descriptor)


def folders(path: Path) -> list[FoundStore]:
    """The SSD stores in a folder.

    Raises:
        InvalidRequest: there is no such folder, or no store in it.
    """
    if not path.is_dir():
        raise InvalidRequest(f"{path} is not a folder; name the path of an SSD store")
    places = [path] if _SPACE.fullmatch(path.name) else sorted(path.iterdir())
    found = [_folder(place) for place in places if place.is_dir() and _SPACE.fullmatch(place.name)]
    if not found:
        raise InvalidRequest(f"{path} holds no SSD store; name the path that the store was opened with")
    return found


def _folder(path: Path) -> FoundStore:
    files = tuple(sorted(file for file in path.iterdir() if _SEGMENT.fullmatch(file.name)))
    keys, block_bytes = set(), 0
    for file in files:
        for key, nbytes, _, _ in _entries(file):
            keys.add(key)
            block_bytes = nbytes
    return FoundStore(
        store="ssd",
        name=str(path.parent),
        key_space=path.name,
        files=files,
        blocks=len(keys),
        capacity_blocks=0,
        block_bytes=block_bytes,
        bytes=sum(file.stat().st_blocks * 512 for file in files),
        processes=int(_is_locked(path)),
    )


def _entries(file: Path) -> Iterator[tuple[bytes, int, int, int]]:
    """Key, bytes and checksum of each block of a segment, and where its payload begins."""
    with file.open("rb", buffering=0) as segment:
        size = os.fstat(segment.fileno()).st_size
        layout = Layout.read(os.pread(segment.fileno(), ENTRY_BYTES, 0))
        if layout is None:
            return
        table = os.pread(segment.fileno(), layout.table_bytes, 0)
        for record in range(layout.records):
            at = layout.entry_at(record)
            entry = read_entry(table[at : at + ENTRY_BYTES])
            if entry is not None and layout.size(record + 1) <= size:
                yield *entry, layout.payload_at(record)


def verify(store: FoundStore, report: Callable[[float], None]) -> Verified:
    """Read all blocks of an SSD store and compare them with their checksums; ``report`` gets the share done."""
    whole = damaged = 0
    for number, file in enumerate(store.files):
        with file.open("rb") as segment:
            for _, nbytes, checksum, at in _entries(file):
                segment.seek(at)
                data = np.frombuffer(segment.read(nbytes), np.uint8)
                if data.nbytes == nbytes and checksum_of(data.data) == checksum:
                    whole += 1
                else:
                    damaged += 1
        report((number + 1) / len(store.files))
    return Verified(store=store, whole=whole, damaged=damaged)


def purge(store: FoundStore) -> None:
    """Remove a store's blocks.

    Raises:
        InvalidRequest: a process has it open.
    """
    if store.processes:
        raise InvalidRequest(
            f"{store.store} {store.name} is open in {store.processes} process(es); end them first, or purge it later"
        )
    for file in store.files:
        file.unlink(missing_ok=True)


def _is_locked(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False

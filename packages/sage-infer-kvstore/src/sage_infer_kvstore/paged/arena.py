"""Memory of a paged store: its blocks and their index, private or in named shared memory."""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import threading
import weakref
from contextlib import AbstractContextManager
from pathlib import Path

from sage_infer.errors import ConfigError, InvalidRequest, OutOfMemory, UnsupportedFeature

from sage_infer_kvstore.paged.layout import Head, IndexFields, index_bytes
from sage_infer_kvstore.paged.locks import FileLock, OwnerNumbers

__all__ = ["SHARED_FOLDER", "PrivateArena", "SharedArena"]

SHARED_FOLDER = Path("/dev/shm")
_VERSION = 2
_LOCK_TIMEOUT_S = 5.0
_open_arenas: weakref.WeakSet[SharedArena] = weakref.WeakSet()


class PrivateArena:
    """Memory of this process alone."""

    uri = ""
    owner = 1

    def __init__(self, blocks: int, block_bytes: int, *, huge_pages: bool) -> None:
        try:
            self._memory = mmap.mmap(-1, blocks * block_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._index = mmap.mmap(-1, index_bytes(blocks), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError, ValueError) as error:
            raise OutOfMemory(
                f"no memory for {blocks} blocks of {block_bytes} bytes ({error}); lower capacity_gb"
            ) from error
        if huge_pages:
            with contextlib.suppress(OSError):  # a kernel without them
                self._memory.madvise(mmap.MADV_HUGEPAGE)
        self.memory = memoryview(self._memory)
        self.fields = IndexFields(memoryview(self._index), blocks)
        self.lock: AbstractContextManager[object] = threading.Lock()

    @property
    def is_open(self) -> bool:
        return True

    def is_alive(self, owner: int) -> bool:
        return owner == self.owner

    def close(self) -> None:
        """Free the memory; views that callers still hold keep it until they are gone."""


class SharedArena:
    """Memory of all processes that open the same name.

    ``name`` is the blocks' file in ``/dev/shm``; ``name.index`` is that of the index, the lock and the owners' numbers.
    The last process to close both removes them, unless ``keep`` is set; after a crash they stay, and the next process
    that opens them continues with their blocks.
    """

    def __init__(
        self, name: str, blocks: int | None, block_bytes: int, *, default_blocks: int, keep: bool
    ) -> None:
        if not sys.platform.startswith("linux"):
            raise UnsupportedFeature("shared KV stores need Linux; leave name out for memory of this process")
        self.uri = f"shm://{name}"
        self._keep = keep
        self._path = SHARED_FOLDER / name
        self._index_path = SHARED_FOLDER / f"{name}.index"
        self._descriptor = -1
        while not self._open(blocks, block_bytes, default_blocks):
            os.close(self._descriptor)
        _open_arenas.add(self)

    def _open(self, asked: int | None, block_bytes: int, default_blocks: int) -> bool:
        """Open or make the files; False where the last process removed them just now."""
        try:
            self._descriptor = os.open(self._index_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"cannot open shared memory {self._index_path}: {error.strerror}") from error
        self.lock: AbstractContextManager[object] = FileLock(
            self._descriptor, str(self._index_path), timeout_s=_LOCK_TIMEOUT_S
        )
        try:
            with self.lock:
                if os.fstat(self._descriptor).st_nlink == 0:
                    return False
                self._numbers = OwnerNumbers(self._descriptor)
                self.owner = self._numbers.mine
                if not self.owner:
                    raise ConfigError(f"255 processes share {self.uri} already; use another name")
                self._map(asked, block_bytes, default_blocks)
        except BaseException:
            os.close(self._descriptor)
            raise
        return True

    def _map(self, asked: int | None, block_bytes: int, default_blocks: int) -> None:
        head = memoryview(os.pread(self._descriptor, 8 * len(Head), 0).ljust(8 * len(Head), b"\0")).cast("q")
        if head[Head.READY]:
            self._check(head, asked, block_bytes)
            blocks = head[Head.CAPACITY]
        else:
            blocks = asked or default_blocks
        try:
            if not head[Head.READY]:
                os.ftruncate(self._descriptor, 0)  # what a process left that died here
            self._memory = _mapped(self._path, blocks * block_bytes)
            self._index = _mapped(self._index_path, index_bytes(blocks))
        except (OSError, ValueError) as error:
            if not head[Head.READY]:
                self._remove()
            raise OutOfMemory(
                f"no room in {SHARED_FOLDER} for {blocks} blocks of {block_bytes} bytes ({error}); lower "
                "capacity_gb, or give the machine (in a container: --shm-size) more shared memory"
            ) from error
        self.memory = memoryview(self._memory)
        self.fields = IndexFields(memoryview(self._index), blocks)
        if not head[Head.READY]:
            made = self.fields.head
            made[Head.VERSION], made[Head.CAPACITY], made[Head.BLOCK_BYTES] = _VERSION, blocks, block_bytes
            made[Head.READY] = 1

    def _check(self, head: memoryview, asked: int | None, block_bytes: int) -> None:
        if head[Head.VERSION] != _VERSION:
            raise ConfigError(
                f"{self.uri} was made by another version (format {head[Head.VERSION]}, here {_VERSION}); end the "
                f"processes that use it and remove {self._path} and {self._index_path}"
            )
        if head[Head.BLOCK_BYTES] != block_bytes:
            raise ConfigError(
                f"{self.uri} has blocks of {head[Head.BLOCK_BYTES]} bytes, and this model's have {block_bytes}; use "
                "another name"
            )
        if asked not in (None, head[Head.CAPACITY]):
            raise ConfigError(
                f"{self.uri} has room for {head[Head.CAPACITY]} blocks, not {asked}; open it with that capacity "
                "or none, or use another name"
            )

    @property
    def is_open(self) -> bool:
        return self._descriptor >= 0

    def is_alive(self, owner: int) -> bool:
        return self._numbers.is_alive(owner)

    def close(self) -> None:
        """Unmap, and remove the files if nobody else has them open."""
        if self._descriptor < 0:
            return
        if not self._keep:
            with self.lock:
                if not self._numbers.others():
                    self._remove()
        os.close(self._descriptor)
        self._descriptor = -1

    def _remove(self) -> None:
        for path in (self._path, self._index_path):
            path.unlink(missing_ok=True)

    def leave(self) -> None:
        """In a child after a fork: the parent's locks are not the child's."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self.lock = _ParentsLock()


class _ParentsLock:
    def __enter__(self) -> None:
        raise InvalidRequest("this store was opened by the parent process; open it again in the child")

    def __exit__(self, *_: object) -> None:
        """Never reached."""


def _mapped(path: Path, size: int) -> mmap.mmap:
    """A shared mapping of a file, through a descriptor of its own: ``mmap`` keeps a copy, which would keep locks.

    The memory is reserved now. Without that, a write would end the process later (SIGBUS).
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)


def _leave_all() -> None:
    for arena in list(_open_arenas):
        arena.leave()


os.register_at_fork(after_in_child=_leave_all)

"""The engine's processes: started in their own group, and cleaned up with their shared memory.

vLLM's engine core is a child of this process and starts the workers. If the core is killed, workers continue in a busy
loop; the shared memory of their queues always remains in ``/dev/shm``. Both are recorded while the engine runs, so that
they can be removed.
"""

from __future__ import annotations

import multiprocessing.spawn
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from attrs import define, field

__all__ = ["EngineProcesses", "engine_start", "wait_for_end"]

_ENGINE_NAMES = ("EngineCore", "DPCoordinator")  # names of vLLM's child processes
_VITAL = "VLLM::"  # title prefix of core and workers
_PARENT = "SAGE_INFER_VLLM_PARENT"
_SHM = Path("/dev/shm")
_GRACE_S = 2.0
_POLL_S = 0.2
_start_lock = threading.Lock()


@contextmanager
def engine_start() -> Iterator[None]:
    """Make processes started by vLLM in this block import ``sage_infer_vllm.engine.child`` as their main module.

    Only one engine starts at a time; other processes of this program are not affected.
    """
    with _start_lock:
        original = multiprocessing.spawn.get_preparation_data

        def prepared(name: str) -> dict[str, Any]:
            data: dict[str, Any] = original(name)
            if name.startswith(_ENGINE_NAMES):
                data.pop("init_main_from_path", None)
                data["init_main_from_name"] = "sage_infer_vllm.engine.child"
            return data

        before = os.environ.get(_PARENT)
        os.environ[_PARENT] = str(os.getpid())
        multiprocessing.spawn.get_preparation_data = prepared
        try:
            yield
        finally:
            multiprocessing.spawn.get_preparation_data = original
            if before is None:
                del os.environ[_PARENT]
            else:
                os.environ[_PARENT] = before


@define(eq=False)
class EngineProcesses:
    """Process groups of one engine, and the files that they opened in ``/dev/shm``."""

    leaders: frozenset[int] = frozenset()
    groups: frozenset[int] = frozenset()
    shared_memory: set[Path] = field(factory=set)

    @classmethod
    def of(cls, leaders: Iterable[int]) -> EngineProcesses:
        """The current processes of ``leaders`` (process ids of the engine cores)."""
        found = cls()
        found.add(leaders)
        return found

    def add(self, leaders: Iterable[int]) -> None:
        """Add further cores, and record the shared memory opened so far."""
        self.leaders |= frozenset(leaders)
        # Only leaders of their own group: killing another group would kill this process.
        self.groups |= frozenset(pid for pid in self.leaders if _group(pid) == pid)
        self.note_shared_memory()

    def members(self) -> list[int]:
        """Living processes of the groups."""
        return [pid for pid in _all_processes() if _group(pid) in self.groups and not _is_zombie(pid)]

    def wait_for_end(self) -> None:
        """Wait until an essential process, a core or a worker, exits."""
        vital = self.leaders | {pid for pid in self.members() if _title(pid).startswith(_VITAL)}
        wait_for_end(vital)

    def note_shared_memory(self) -> None:
        self.shared_memory |= _shared_memory_of(self.members())

    def reap(self) -> None:
        """Kill remaining processes of the groups, wait for them, and remove their shared memory. Safe to call twice."""
        for group in self.groups:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        _wait(lambda: not self.members())
        # Shared memory that is still mapped, such as a store shared by two engines, must survive.
        for file in self.shared_memory - _shared_memory_of(_all_processes()):
            with suppress(OSError):
                file.unlink()
                _forget(file)  # report the removal to the tracker
        self.shared_memory.clear()


def wait_for_end(pids: Collection[int]) -> None:
    """Wait until one of these processes has exited; they need not be children of this process."""
    if not hasattr(os, "pidfd_open"):
        while all(not _is_zombie(pid) for pid in pids):
            time.sleep(_POLL_S)
        return
    watched: list[int] = []
    try:
        for pid in pids:
            watched.append(os.pidfd_open(pid))
        select.select(watched, [], [])
    except ProcessLookupError:
        return  # it has already exited
    finally:
        for descriptor in watched:
            os.close(descriptor)


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _forget(file: Path) -> None:
    """Unregister the file from multiprocessing's resource tracker, which would warn at exit."""
    name = file.name
    if name.startswith("sem."):
        resource_tracker.unregister(f"/{name.removeprefix('sem.')}", "semaphore")
    elif name.startswith("psm_"):
        resource_tracker.unregister(f"/{name}", "shared_memory")


def _wait(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _GRACE_S
    while not done() and time.monotonic() < deadline:
        time.sleep(0.02)


def _all_processes() -> list[int]:
    with suppress(OSError):
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return []


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except OSError:
        return None


def _is_zombie(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def _shared_memory_of(pids: Iterable[int]) -> set[Path]:
    """Files in ``/dev/shm`` that one of the processes maps.

    Files are identified by inode, because glibc maps a semaphore under a temporary name before it renames it.
    """
    inodes = {inode for pid in pids for inode in _mapped_inodes(pid)}
    found = set()
    with suppress(OSError):
        for entry in os.scandir(_SHM):
            with suppress(OSError):
                if entry.stat().st_ino in inodes:
                    found.add(Path(entry.path))
    return found


def _mapped_inodes(pid: int) -> set[int]:
    try:
        maps = Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return set()
    return {int(line.split(maxsplit=5)[4]) for line in maps.splitlines() if f" {_SHM}/" in line}

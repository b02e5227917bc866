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
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from attrs import define, field

from sage_infer_vllm.engine.start_reports import report_failure

__all__ = ["KILLED", "EngineProcesses", "end_of", "engine_start", "lead_group", "reporting", "wait_for_end"]

KILLED = "was killed by"

_ENGINE_NAMES = ("EngineCore", "DPCoordinator")  # names of vLLM's child processes
_VITAL = "VLLM::"  # title prefix of core and workers
_PARENT = "SAGE_INFER_VLLM_PARENT"
_SHM = Path("/dev/shm")
_GRACE_S = 2.0
_POLL_S = 0.2
_start_lock = threading.Lock()


@contextmanager
def engine_start() -> Iterator[list[BaseProcess]]:
    """Make engine processes that vLLM starts in this block lead their group and report failures; yields them.

    Spawned ones import ``sage_infer_vllm.engine.child`` as their main module; forked ones inherit a changed ``run``.
    Only one engine starts at a time; other processes of this program are not affected.
    """
    started: list[BaseProcess] = []
    run, start = BaseProcess.run, BaseProcess.start
    is_engine = False  # set in a forked core, from which its workers inherit it

    def forked(self: BaseProcess) -> None:
        nonlocal is_engine
        if not is_engine and self.name.startswith(_ENGINE_NAMES):
            is_engine = True
            lead_group()
        (reporting(run) if is_engine else run)(self)

    def recorded(self: BaseProcess) -> None:
        start(self)
        if self.name.startswith(_ENGINE_NAMES):
            started.append(self)

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
        BaseProcess.run, BaseProcess.start = forked, recorded  # type: ignore[method-assign]
        try:
            yield started
        finally:
            BaseProcess.run, BaseProcess.start = run, start  # type: ignore[method-assign]
            multiprocessing.spawn.get_preparation_data = original
            if before is None:
                del os.environ[_PARENT]
            else:
                os.environ[_PARENT] = before


def lead_group() -> None:
    """Become the leader of a process group that is killed when the parent process exits."""
    with suppress(OSError):
        os.setpgid(0, 0)
    threading.Thread(target=_end_with, args=(os.getppid(),), name="sage-infer-parent", daemon=True).start()


def _end_with(parent: int) -> None:
    wait_for_end([parent])
    if os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)  # if there is no own group, kill only this process


def reporting(run: Callable[[Any], None]) -> Callable[[Any], None]:
    """``BaseProcess.run`` that reports exceptions of the process's target, which multiprocessing only prints."""

    def reported(self: Any) -> None:
        try:
            run(self)
        except Exception as error:
            report_failure(error)
            raise

    return reported


def end_of(processes: Iterable[BaseProcess]) -> str:
    """How the first ended process of these ended, such as ``EngineCore was killed by SIGKILL``; empty if all run."""
    for process in processes:
        code = process.exitcode
        if code is not None:
            return f"{process.name} {_end(code)}"
    return ""


def _end(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"{KILLED} {name}"


@define(eq=False)
class EngineProcesses:
    """Process groups of one engine, and the files that they opened in ``/dev/shm``.

    Attributes:
        leaders: process ids of the cores.
        groups: those that lead a group of their own.
        shared_memory: files in ``/dev/shm`` to remove.
        cores: the cores as vLLM started them; they keep their exit codes.
    """

    leaders: frozenset[int] = frozenset()
    groups: frozenset[int] = frozenset()
    shared_memory: set[Path] = field(factory=set)
    cores: list[BaseProcess] = field(factory=list)

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

    def end(self) -> str:
        """How the engine ended, once ``wait_for_end`` has returned."""
        # vLLM waits for its cores in another thread, which takes the exit code from the kernel before it stores it.
        _wait(lambda: bool(end_of(self.cores)) or not any(_is_zombie(core.pid or 0) for core in self.cores))
        return end_of(self.cores) or "a worker exited"

    def note_shared_memory(self) -> None:
        members = self.members()
        self.shared_memory |= _shared_memory_of(members) | _registrations_of(members)

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


def _registrations_of(pids: Iterable[int]) -> set[Path]:
    """Files in which Intel's OpenMP registers its processes; a killed one leaves it."""
    return {file for pid in pids for file in _SHM.glob(f"__KMP_REGISTERED_LIB_{pid}_*")}


def _mapped_inodes(pid: int) -> set[int]:
    try:
        maps = Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return set()
    return {int(line.split(maxsplit=5)[4]) for line in maps.splitlines() if f" {_SHM}/" in line}

"""Executor of this machine: replicas in this process, or in child processes behind unix sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import msgspec
from sage_infer.backends import create_backend
from sage_infer.contracts import ReplicaExit, ReplicaHandle
from sage_infer.errors import EngineDead, UnsupportedFeature
from sage_infer.names import GENERATING
from sage_infer.schemas import InstanceDescriptor, ReplicaSpec
from sage_infer.schemas.codec import from_dict, to_dict
from sage_infer.sdk import BackendReplica, BaseExecutor, BaseReplica

from sage_llm.replicas.cpu_share import set_niceness
from sage_llm.replicas.openai import is_remote
from sage_llm.replicas.protocol import WireError
from sage_llm.replicas.record import Lease, Record, free_records, started_at
from sage_llm.replicas.run_folder import RUN_FOLDER_VARIABLE, run_folder
from sage_llm.replicas.wire_errors import from_wire
from sage_llm.tasks import Tasks

__all__ = ["SERVER", "LocalExecutor"]

SERVER = "sage_llm.replicas.server:serve"
GRACE_S = 30.0
_NICE, _YIELDS_S = 10, 3.0
_TAIL_BYTES = 2000
_TAIL_LINES = 5


class ChildReplica(BaseReplica):
    """A replica in a process of its own process group."""

    def __init__(self, lease: Lease, record: Record, exit_of: Callable[[], Awaitable[int | None]]) -> None:
        super().__init__(record.spec)
        self.descriptor, self.pid = record.descriptor, record.pid
        self._lease = lease
        self._reason = ""
        self._exit_of = exit_of
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def shut_down(self) -> int | None:
        self._reason = self._reason or "stopped"
        _signal(self.pid, signal.SIGTERM)
        return (await self.wait()).code

    async def destroy(self) -> int | None:
        self._reason = "killed"
        _kill_group(self.pid)
        return (await self.wait()).code

    async def _watch(self) -> None:
        code = await self._exit_of()
        _kill_group(self.pid)  # what the process has left
        reason = self._reason or f"{_exit_text(code)}{_tail(self._lease.log)}"
        self._lease.remove()
        _delete_sockets(self.descriptor)
        self.ended(ReplicaExit(code=code, reason=reason))


class LocalExecutor(BaseExecutor):
    """Runs replicas on this machine.

    A replica whose spec has no ``server`` runs in this process, and so has no hop; so does the client of a model at an
    ``http:`` address. Others are child processes in process groups of their own. They end with ``close``. If this
    process dies without it, they abort their requests, continue for ``grace_s`` seconds, and are found by ``adopt`` of
    a later executor with the same run folder.

    Args:
        server: server of replicas whose spec has none; ``sage_llm.replicas.local.SERVER`` runs them in child processes.
        grace_s: seconds that a replica outlives its executor. 0: replicas do not outlive it.
        folder: run folder with sockets, records and logs; None for the default.
    """

    honours = ("server", "environment", "device_ids")

    def __init__(
        self, *, server: str | None = None, grace_s: float = GRACE_S, folder: Path | str | None = None
    ) -> None:
        super().__init__()
        self._server, self._grace_s = server, grace_s
        self._folder = None if folder is None else Path(folder)
        self._tasks = Tasks()

    async def launch(self, spec: ReplicaSpec) -> BaseReplica:
        if spec.server is None and (self._server is None or is_remote(spec.model)):
            return await _launch_here(spec)
        return await self._launch_child(spec)

    async def adopt(self) -> list[ReplicaHandle]:
        """Return the replicas of executors that died without ``close``.

        Records of dead replicas are deleted, and replicas that were still starting are killed.
        """
        found: list[ReplicaHandle] = []
        for lease in free_records(run_folder(self._folder)):
            record = lease.read()
            if record is None or not record.is_alive:
                _discard(lease, record)
            elif record.spec.replica_id in self.replicas:
                lease.release()  # it ends after its grace time
            else:
                replica = ChildReplica(lease, record, _Adopted(record).wait)
                self.keep(replica)
                found.append(replica)
        return found

    async def close(self) -> None:
        running = [replica for replica in self.replicas.values() if replica is not None]
        await asyncio.gather(*(replica.stop() for replica in running))
        await self._tasks.cancel()

    @property
    def _serves(self) -> bool:
        """Whether a replica is ready, whose requests one that starts would delay."""
        return any(replica is not None for replica in self.replicas.values())

    async def _launch_child(self, spec: ReplicaSpec) -> ChildReplica:
        folder = run_folder(self._folder)
        lease = Lease.new(folder)
        served = attrs.evolve(spec, server=spec.server or self._server)
        environment = {**os.environ, **spec.environment, RUN_FOLDER_VARIABLE: str(folder)}
        process: asyncio.subprocess.Process | None = None
        try:
            process = await _spawn(lease.log, environment)
            lease.write_process(process.pid)
            if self._serves:
                self._tasks.spawn(_yield_cpus(process.pid))
            order = {"spec": to_dict(served), "record": str(lease.path), "grace_s": self._grace_s}
            descriptor = await _started(process, order, spec, lease.log)
            record = Record(
                spec=spec, descriptor=descriptor, pid=process.pid, started=started_at(process.pid)
            )
            lease.write(record)
        except BaseException:
            if process is not None:
                _kill_group(process.pid)
                ended = asyncio.ensure_future(process.wait())
                while not ended.done():  # also if this is cancelled again
                    with suppress(asyncio.CancelledError):
                        await asyncio.shield(ended)
            lease.remove()
            raise
        return ChildReplica(lease, record, process.wait)


async def _yield_cpus(pid: int) -> None:
    """Give a process little CPU time at first, while other replicas take over the requests of one that ended."""
    if await set_niceness(pid, _NICE):
        await asyncio.sleep(_YIELDS_S)
        await set_niceness(pid, 0)


class _Adopted:
    """Waits for the exit of a process that is not a child of this one."""

    def __init__(self, record: Record) -> None:
        self._record = record

    async def wait(self) -> None:
        """Wait for the exit; its code is unknown."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        try:
            file = os.pidfd_open(self._record.pid)
        except ProcessLookupError:
            return
        loop.add_reader(file, ended.set)
        try:
            if self._record.is_alive:  # the pid was not reused before pidfd_open
                await ended.wait()
        finally:
            loop.remove_reader(file)
            os.close(file)


def _discard(lease: Lease, record: Record | None) -> None:
    """Delete what a replica without an owner has left that cannot be taken over."""
    if (pid := lease.process()) is not None:
        _kill_group(pid)
    if record is not None:
        _delete_sockets(record.descriptor)
    lease.remove()


def _delete_sockets(descriptor: InstanceDescriptor) -> None:
    for address in descriptor.addresses:
        with suppress(FileNotFoundError):
            os.unlink(address.removeprefix("unix:"))


async def _launch_here(spec: ReplicaSpec) -> BaseReplica:
    if spec.environment:
        raise UnsupportedFeature(
            "a replica in this process has no environment of its own; leave environment out, or set server"
        )
    model = attrs.evolve(spec.model, device_ids=spec.device_ids) if spec.device_ids else spec.model
    serves: Any = "llm" if model.model_type in GENERATING else model.model_type
    backend = create_backend(spec.backend, model=model, serves=serves, **spec.options)
    try:
        await backend.start()
    except BaseException:
        await backend.close()
        raise
    return BackendReplica(spec, backend)


async def _spawn(log: Path, environment: Mapping[str, str]) -> asyncio.subprocess.Process:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "sage_llm.replicas.child",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=file,
            env=environment,
            start_new_session=True,
        )
    finally:
        os.close(file)


async def _started(
    process: asyncio.subprocess.Process, order: Mapping[str, Any], spec: ReplicaSpec, log: Path
) -> InstanceDescriptor:
    """Send the order to a new process and wait until its replica is ready."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(order).encode() + b"\n")
    line = await process.stdout.readline()
    answer = json.loads(line) if line else {}
    if "ready" in answer:
        return from_dict(answer["ready"], InstanceDescriptor)
    if "failed" in answer:
        raise from_wire(msgspec.convert(answer["failed"], WireError))
    code = await process.wait()
    raise EngineDead(f"replica {spec.replica_id!r} ended before it was ready: {_exit_text(code)}{_tail(log)}")


def _exit_text(code: int | None) -> str:
    if code is None:
        return "ended"
    if code < 0:
        with suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _tail(log: Path) -> str:
    """Return the last lines of a log in one line."""
    with suppress(OSError), open(log, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").split("\n")
        kept = [line.strip() for line in lines if line.strip()][-_TAIL_LINES:]
        if kept:
            return f"; its last lines: {' / '.join(kept)}"
    return ""


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)

"""Records of replicas that run in child processes, for adoption after the death of the process that started them."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import frozen
from sage_infer.errors import SageInferError
from sage_infer.schemas import InstanceDescriptor, ReplicaSpec
from sage_infer.schemas.codec import from_dict, to_dict

__all__ = ["Lease", "Record", "free_records", "started_at"]


@frozen(kw_only=True)
class Record:
    """A running replica.

    Attributes:
        spec: spec that it was started with.
        descriptor: its identity.
        pid: its process, the leader of a process group.
        started: start time of the process in clock ticks since boot; tells a reused pid.
    """

    spec: ReplicaSpec
    descriptor: InstanceDescriptor
    pid: int
    started: int

    @property
    def is_alive(self) -> bool:
        return started_at(self.pid) == self.started


class Lease:
    """The record file of one replica. Who holds its lock owns the replica; the system releases it at a death."""

    def __init__(self, path: Path, file: int) -> None:
        self.path, self._file = path, file

    @classmethod
    def new(cls, folder: Path) -> Lease:
        """Create a record file and lock it."""
        path = folder / f"{secrets.token_hex(8)}.json"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        return cls(path, file)

    @classmethod
    def take(cls, path: Path) -> Lease | None:
        """Lock a record file; None if its owner lives, or the file is gone."""
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        return cls(path, file)

    def write_process(self, pid: int) -> None:
        """Write the process of a replica that is starting, so that it can be found if its starter dies."""
        self._write({"pid": pid, "started": started_at(pid)})

    def write(self, record: Record) -> None:
        self._write(
            {
                "spec": to_dict(record.spec),
                "descriptor": to_dict(record.descriptor),
                "pid": record.pid,
                "started": record.started,
            }
        )

    def _write(self, data: Any) -> None:
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(data).encode(), 0)

    def _read(self) -> Any:
        """Return what was written, or ``{}``: the writer may have died before or while it wrote."""
        try:
            data = json.loads(self.path.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return data if isinstance(data, dict) else {}

    def read(self) -> Record | None:
        """Return the record; None if it is incomplete, because its writer died."""
        data = self._read()
        try:
            return Record(
                spec=from_dict(data["spec"], ReplicaSpec),
                descriptor=from_dict(data["descriptor"], InstanceDescriptor),
                pid=int(data["pid"]),
                started=int(data["started"]),
            )
        except (ValueError, KeyError, TypeError, SageInferError):
            return None

    def process(self) -> int | None:
        """Return the process of the record, complete or not; None if it has ended."""
        data = self._read()
        pid, started = data.get("pid"), data.get("started")
        return pid if isinstance(pid, int) and started and started_at(pid) == started else None

    @property
    def log(self) -> Path:
        """The file with the replica's standard error."""
        return self.path.with_suffix(".log")

    def release(self) -> None:
        """Let go of the replica without deleting anything."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def remove(self) -> None:
        """Delete record and log. Safe to call twice."""
        for path in (self.path, self.log):
            with suppress(FileNotFoundError):
                path.unlink()
        self.release()


def free_records(folder: Path) -> Iterator[Lease]:
    """Lock and yield the records whose owner has died."""
    for path in sorted(folder.glob("*.json")):
        lease = Lease.take(path)
        if lease is not None:
            yield lease


def started_at(pid: int) -> int:
    """Return the start time of a process in clock ticks since boot; 0 if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8")
    except OSError:
        return 0
    fields = text.rpartition(")")[2].split()  # the name before may contain anything
    return 0 if fields[0] == "Z" else int(fields[19])

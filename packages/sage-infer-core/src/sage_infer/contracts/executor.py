"""Contract of executors, which run replicas in this process, in child processes or on a cluster."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from attrs import frozen

from sage_infer.schemas import InstanceDescriptor, ReplicaSpec

__all__ = ["HOST_VARIABLE", "Executor", "ReplicaExit", "ReplicaHandle"]

HOST_VARIABLE = "SAGE_REPLICA_HOST"
"""Environment variable that an executor on other machines sets in a replica's process, for the ``server`` of its spec:
the address of the replica's machine that the control plane reaches."""


@frozen(kw_only=True)
class ReplicaExit:
    """Exit status of a replica.

    Attributes:
        code: exit code as reported by the system, negative for a signal; None if the replica is not a process.
        reason: why the replica ended.
    """

    code: int | None
    reason: str


@runtime_checkable
class ReplicaHandle(Protocol):
    """Handle of a started or adopted replica."""

    @property
    def spec(self) -> ReplicaSpec: ...
    @property
    def descriptor(self) -> InstanceDescriptor:
        """The replica's identity; clients connect to its ``addresses``."""
        ...

    @property
    def backend(self) -> object | None:
        """The backend object if the replica runs in this process (address ``inproc:``), else None."""
        ...

    async def wait(self) -> ReplicaExit:
        """Wait until the replica has ended for any reason. Several callers may wait."""
        ...

    async def stop(self, *, grace_s: float = 10.0) -> ReplicaExit:
        """Close the replica's backend; kill the replica after ``grace_s`` seconds. Safe to call twice."""
        ...

    async def kill(self) -> ReplicaExit:
        """Kill the replica immediately. Safe to call twice."""
        ...


@runtime_checkable
class Executor(Protocol):
    """Starts replicas, and adopts replicas that outlived the process that started them."""

    async def start(self, spec: ReplicaSpec) -> ReplicaHandle:
        """Start a replica and wait until it is ready.

        Raises:
            InvalidRequest: a replica with this id is already running.
            UnsupportedFeature: the executor does not support a field that the spec sets.
            BackendUnavailable, OutOfMemory, EngineDead: the replica did not start; its resources were freed.
        """
        ...

    async def adopt(self) -> list[ReplicaHandle]:
        """Return running replicas that an earlier process started; empty if replicas end with their caller."""
        ...

    async def close(self) -> None:
        """Release all replicas. Replicas that end with their caller are stopped. Safe to call twice."""
        ...

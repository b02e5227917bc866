"""Contract of what runs replicas: in this process, in children, on a cluster."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from attrs import frozen

from sage_infer.schemas import InstanceDescriptor, ReplicaSpec

__all__ = ["Executor", "ReplicaExit", "ReplicaHandle"]


@frozen(kw_only=True)
class ReplicaExit:
    """How a replica ended: ``code`` as the system reports it (negative for a signal), None where it is not a
    process.
    """

    code: int | None
    reason: str


@runtime_checkable
class ReplicaHandle(Protocol):
    """A replica that was started or adopted."""

    @property
    def spec(self) -> ReplicaSpec: ...
    @property
    def descriptor(self) -> InstanceDescriptor:
        """The replica's identity; its ``addresses`` say how to talk to it."""
        ...

    @property
    def backend(self) -> object | None:
        """The backend itself for a replica in this process (address ``inproc:``); None elsewhere."""
        ...

    async def wait(self) -> ReplicaExit:
        """Return when the replica has ended, for whatever reason. Several may wait."""
        ...

    async def stop(self, *, grace_s: float = 10.0) -> ReplicaExit:
        """Close the replica's backend, and end it by force after ``grace_s`` seconds. Safe to call twice."""
        ...

    async def kill(self) -> ReplicaExit:
        """End the replica by force, without grace. Safe to call twice."""
        ...


@runtime_checkable
class Executor(Protocol):
    """Starts replicas and finds those that outlived the caller."""

    async def start(self, spec: ReplicaSpec) -> ReplicaHandle:
        """Start a replica and wait until it is ready.

        Raises:
            InvalidRequest: a replica of that id runs already.
            UnsupportedFeature: the executor cannot do what the spec asks for.
            BackendUnavailable, OutOfMemory, EngineDead: the replica did not start; nothing of it is left.
        """
        ...

    async def adopt(self) -> list[ReplicaHandle]:
        """Replicas that run already, started by an earlier process; empty where replicas end with their
        caller.
        """
        ...

    async def close(self) -> None:
        """Let go of every replica: those that end with their caller are stopped. Safe to call twice."""
        ...

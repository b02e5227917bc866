"""Base of executors: ids, timeouts, clean-up after a failed start, and handles of replicas."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Collection
from typing import Any, ClassVar

from sage_infer.compat import wait_for
from sage_infer.contracts import ReplicaExit, ReplicaHandle
from sage_infer.errors import EngineDead, InvalidRequest, UnsupportedFeature
from sage_infer.schemas import InstanceDescriptor, ReplicaSpec

__all__ = ["BaseExecutor", "BaseReplica", "BackendReplica"]

_RESERVATIONS = ("server", "environment", "device_ids", "gpus", "memory_gb", "group")
"""Fields of a spec that an executor may not support; their defaults have no effect."""


class BaseReplica:
    """Base of a ``ReplicaHandle``. A subclass overrides ``shut_down`` and ``destroy``.

    Attributes:
        spec: spec that the replica was started with.
        descriptor: identity of the replica.
        backend: backend object if the replica runs in this process, else None.
    """

    descriptor: InstanceDescriptor
    backend: Any = None

    def __init__(self, spec: ReplicaSpec) -> None:
        self.spec = spec
        self._ended: asyncio.Future[ReplicaExit] = asyncio.get_running_loop().create_future()

    # --- methods for subclasses to override

    @abstractmethod
    async def shut_down(self) -> int | None:
        """Close the replica gracefully; return its exit code, or None if it is not a process."""
        raise NotImplementedError(f"{type(self).__name__} must override shut_down()")

    async def destroy(self) -> int | None:
        """Kill the replica; return its exit code. The default calls ``shut_down``."""
        return await self.shut_down()

    # --- the contract

    async def wait(self) -> ReplicaExit:
        return await asyncio.shield(self._ended)

    async def stop(self, *, grace_s: float = 10.0) -> ReplicaExit:
        if not self._ended.done():
            try:
                code = await wait_for(self.shut_down(), grace_s)
            except TimeoutError:
                return await self.kill()
            self.ended(ReplicaExit(code=code, reason="stopped"))
        return self._ended.result()

    async def kill(self) -> ReplicaExit:
        if not self._ended.done():
            self.ended(ReplicaExit(code=await self.destroy(), reason="killed"))
        return self._ended.result()

    # --- for subclasses

    def ended(self, how: ReplicaExit) -> None:
        """Record that the replica has ended, by itself or killed; later calls are ignored."""
        if not self._ended.done():
            self._ended.set_result(how)


class BackendReplica(BaseReplica):
    """A started backend in this process."""

    def __init__(self, spec: ReplicaSpec, backend: Any) -> None:
        super().__init__(spec)
        self.backend = backend
        self.descriptor = InstanceDescriptor(
            instance_id=spec.replica_id,
            generation=time.time_ns(),
            model_ids=(spec.model.model_id,),
            capability=backend.get_capability(),
            addresses=("inproc:",),
        )

    async def shut_down(self) -> int | None:
        await self.backend.close()
        return None


class BaseExecutor:
    """Base of an ``Executor`` whose replicas end with it. A subclass overrides ``launch``.

    Attributes:
        honours: optional fields of ``ReplicaSpec`` that ``launch`` supports, among ``server``, ``environment``,
            ``device_ids``, ``gpus``, ``memory_gb`` and ``group``; specs that set other ones are refused.
        replicas: running replicas by id; None for a replica that is starting.
    """

    honours: ClassVar[Collection[str]] = ()

    def __init__(self) -> None:
        self.replicas: dict[str, BaseReplica | None] = {}

    # --- methods for subclasses to override

    @abstractmethod
    async def launch(self, spec: ReplicaSpec) -> BaseReplica:
        """Start a replica and wait until it is ready. On failure or cancellation, free all of its resources.

        Raises:
            BackendUnavailable, OutOfMemory, EngineDead: the replica did not start.
        """
        raise NotImplementedError(f"{type(self).__name__} must override launch()")

    # --- the contract

    async def start(self, spec: ReplicaSpec) -> BaseReplica:
        refused = [name for name in _RESERVATIONS if name not in self.honours and getattr(spec, name)]
        if refused:
            raise UnsupportedFeature(
                f"{type(self).__name__} does not support {', '.join(refused)} of a replica; leave it out"
            )
        running = self.replicas.get(spec.replica_id)
        if spec.replica_id in self.replicas and (running is None or not running._ended.done()):
            raise InvalidRequest(
                f"replica {spec.replica_id!r} is already running; stop it, or choose another id"
            )
        self.replicas[spec.replica_id] = None
        try:
            replica = await wait_for(self.launch(spec), spec.start_timeout_s)
        except BaseException as error:
            del self.replicas[spec.replica_id]
            if isinstance(error, TimeoutError):
                limit = f"{spec.start_timeout_s:g} s"
                raise EngineDead(f"replica {spec.replica_id!r} did not start within {limit}") from None
            raise
        self.keep(replica)
        return replica

    async def adopt(self) -> list[ReplicaHandle]:
        return []

    async def close(self) -> None:
        for replica in [replica for replica in self.replicas.values() if replica is not None]:
            await replica.stop()

    # --- for subclasses

    def keep(self, replica: BaseReplica) -> None:
        """Keep a running replica in ``replicas`` until it has ended; ``start`` does, ``adopt`` has to."""
        self.replicas[replica.spec.replica_id] = replica
        replica._ended.add_done_callback(lambda _: self._forget(replica))

    def _forget(self, replica: BaseReplica) -> None:
        if self.replicas.get(replica.spec.replica_id) is replica:
            del self.replicas[replica.spec.replica_id]

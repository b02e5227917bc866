"""An executor whose replicas are backends in this process."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from attrs import evolve
from sage_infer.compat import timeout
from sage_infer.contracts import ReplicaExit
from sage_infer.errors import BackendUnavailable, InvalidRequest, UnsupportedFeature
from sage_infer.schemas import InstanceDescriptor, ModelDescriptor, ReplicaSpec

from kit_reference.embedding import ReferenceEmbedder

__all__ = ["ReferenceExecutor", "ReferenceHandle", "toy_spec"]


class ReferenceHandle:
    """A backend and how it ended."""

    def __init__(self, executor: ReferenceExecutor, spec: ReplicaSpec, backend: Any) -> None:
        self.executor, self.spec, self.backend = executor, spec, backend
        self.descriptor = self.describe()
        self.exit: asyncio.Future[ReplicaExit] = asyncio.get_running_loop().create_future()

    def describe(self) -> InstanceDescriptor:
        return InstanceDescriptor(
            instance_id=self.spec.replica_id, generation=time.time_ns(), model_ids=(self.spec.model.model_id,),
            capability=self.backend.get_capability(), addresses=("inproc:",),
        )  # fmt: skip

    async def wait(self) -> ReplicaExit:
        return await asyncio.shield(self.exit)

    async def stop(self, *, grace_s: float = 10.0) -> ReplicaExit:
        if not self.exit.done():
            try:
                async with timeout(grace_s):
                    await self.backend.close()
                self.end("stopped")
            except TimeoutError:
                await self.kill()
        return self.exit.result()

    async def kill(self) -> ReplicaExit:
        if not self.exit.done():
            self.end("killed")
            await self.backend.close()
        return self.exit.result()

    def end(self, reason: str) -> None:
        self.exit.set_result(ReplicaExit(code=None, reason=reason))
        self.executor.replicas.pop(self.spec.replica_id, None)


class ReferenceExecutor:
    """Knows one backend, ``toy``."""

    def __init__(self) -> None:
        self.replicas: dict[str, ReferenceHandle | None] = {}  # None while it starts

    async def start(self, spec: ReplicaSpec) -> ReferenceHandle:
        self.check(spec)
        self.take(spec.replica_id)
        backend = self.open(spec)
        try:
            if spec.backend != "toy":
                raise BackendUnavailable(f"no backend {spec.backend!r}; there is toy")
            await backend.start()
        except BaseException:
            await self.give_up(spec.replica_id, backend)
            raise
        handle = self.replicas[spec.replica_id] = ReferenceHandle(self, spec, backend)
        return handle

    def open(self, spec: ReplicaSpec) -> Any:
        return ReferenceEmbedder()

    def check(self, spec: ReplicaSpec) -> None:
        refused = [name for name in ("server", "gpus") if getattr(spec, name)]
        if refused:
            raise UnsupportedFeature(f"replicas in this process have no {', '.join(refused)}")

    def take(self, replica_id: str) -> None:
        if replica_id in self.replicas:
            raise InvalidRequest(f"a replica {replica_id!r} runs already; stop it, or take another id")
        self.replicas[replica_id] = None

    async def give_up(self, replica_id: str, backend: Any) -> None:
        del self.replicas[replica_id]
        await backend.close()

    async def adopt(self) -> list[ReferenceHandle]:
        return []

    async def close(self) -> None:
        for handle in [handle for handle in self.replicas.values() if handle is not None]:
            await handle.stop()


def toy_spec(replica_id: str, **changes: Any) -> ReplicaSpec:
    """A replica that the executor can run."""

    model = ModelDescriptor(model_id="words", model_type="embedding", model_path="/")
    return evolve(ReplicaSpec(replica_id=replica_id, backend="toy", model=model), **changes)

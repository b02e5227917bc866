"""An ``Executor`` whose replicas live in the caller's process."""

import asyncio
import time

from sage_infer.backends import create_backend
from sage_infer.contracts import ReplicaExit
from sage_infer.errors import EngineDead, InvalidRequest, UnsupportedFeature
from sage_infer.schemas import InstanceDescriptor


class QuokkaExecutor:
    def __init__(self):
        self.replicas = {}  # by id; None while one starts

    async def start(self, spec):
        if asked := [name for name in ("server", "environment", "gpus", "memory_gb") if getattr(spec, name)]:
            raise UnsupportedFeature(f"a replica in this process has no {', '.join(asked)}; leave it out")
        if spec.replica_id in self.replicas:
            raise InvalidRequest(f"replica {spec.replica_id!r} runs already; stop it, or choose another id")
        self.replicas[spec.replica_id] = backend = None
        try:
            backend = create_backend(spec.backend, model=spec.model, **spec.options)
            await asyncio.wait_for(backend.start(), spec.start_timeout_s)
            replica = self.replicas[spec.replica_id] = Replica(self.replicas, spec, backend)
            return replica
        except BaseException as error:
            del self.replicas[spec.replica_id]
            if backend is not None:
                await backend.close()
            if isinstance(error, TimeoutError):
                raise EngineDead(f"{spec.replica_id} took over {spec.start_timeout_s:g} s to start") from None
            raise

    async def adopt(self):
        return []

    async def close(self):
        for replica in list(filter(None, self.replicas.values())):
            await replica.stop()


class Replica:
    def __init__(self, replicas, spec, backend):
        self.replicas, self.spec, self.backend = replicas, spec, backend
        self.ended = asyncio.get_running_loop().create_future()
        self.descriptor = InstanceDescriptor(
            instance_id=spec.replica_id,
            generation=time.time_ns(),
            model_ids=[spec.model.model_id],
            capability=backend.get_capability(),
            addresses=["inproc:"],
        )

    async def wait(self):
        return await asyncio.shield(self.ended)

    async def stop(self, *, grace_s=10.0, reason="stopped"):
        if not self.ended.done():
            try:
                await asyncio.wait_for(self.backend.close(), grace_s)
            except TimeoutError:
                reason = "killed"
        if not self.ended.done():
            self.replicas.pop(self.spec.replica_id, None)
            self.ended.set_result(ReplicaExit(code=None, reason=reason))
        return self.ended.result()

    async def kill(self):
        return await self.stop(grace_s=1.0, reason="killed")

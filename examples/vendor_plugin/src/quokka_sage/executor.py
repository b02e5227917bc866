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
        for asked in ("server", "environment", "gpus", "memory_gb"):
            if getattr(spec, asked):
                raise UnsupportedFeature(f"a replica in this process has no {asked} of its own; leave it out")
        if spec.replica_id in self.replicas:
            raise InvalidRequest(f"replica {spec.replica_id!r} runs already; stop it, or choose another id")
        self.replicas[spec.replica_id] = backend = None
        try:
            async with asyncio.timeout(spec.start_timeout_s):
                backend = create_backend(spec.backend, model=spec.model, **spec.options)
                await backend.start()
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
        for replica in [replica for replica in self.replicas.values() if replica]:
            await replica.stop()


class Replica:
    def __init__(self, replicas, spec, backend):
        self.replicas, self.spec, self.backend = replicas, spec, backend
        self.ended = asyncio.get_running_loop().create_future()
        self.descriptor = InstanceDescriptor(
            instance_id=spec.replica_id, generation=time.time_ns(), model_ids=[spec.model.model_id],
            capability=backend.get_capability(), addresses=["inproc:"],
        )  # fmt: skip

    async def wait(self):
        return await asyncio.shield(self.ended)

    async def stop(self, *, grace_s=10.0):
        return await self._end("stopped", grace_s)

    async def kill(self):
        return await self._end("killed", 1.0)

    async def _end(self, reason, grace_s):
        if not self.ended.done():
            try:
                await asyncio.wait_for(self.backend.close(), grace_s)
            except TimeoutError:
                reason = "killed"
        if not self.ended.done():
            self.replicas.pop(self.spec.replica_id, None)
            self.ended.set_result(ReplicaExit(code=None, reason=reason))
        return self.ended.result()

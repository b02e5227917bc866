"""Executor of a Ray cluster: one named, detached actor per replica, each in a placement group."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from ray.exceptions import ActorUnavailableError, RayError
from sage_infer.compat import timeout
from sage_infer.contracts import ReplicaExit, ReplicaHandle
from sage_infer.errors import (
    BY_CODE,
    BackendUnavailable,
    EngineDead,
    InvalidRequest,
    PluginFailed,
    SageInferError,
    UnsupportedFeature,
)
from sage_infer.schemas import InstanceDescriptor, ReplicaSpec
from sage_infer.schemas.codec import from_dict, to_dict
from sage_infer.sdk import BaseExecutor, BaseReplica

from sage_infer_ray.actor import BEAT_S, LEASE_S
from sage_infer_ray.cluster import Cluster, bundles_of, one_line

__all__ = ["RayExecutor"]

_LOOK_S = 0.25
_NOTICE_S = 1.0  # within which the loss of a process is noticed by a call
_GONE_S = 30.0  # within which an actor that was killed has left the cluster
_ANSWER_S = 10.0  # within which an actor answers that is not busy

T = TypeVar("T")


class RayReplica(BaseReplica):
    """A replica in an actor."""

    def __init__(
        self, executor: RayExecutor, actor: Any, spec: ReplicaSpec, state: Mapping[str, Any]
    ) -> None:
        super().__init__(spec)
        self.descriptor = from_dict(state["descriptor"], InstanceDescriptor)
        self.pid = int(state["pid"])
        self.actor, self._executor = actor, executor
        self._reason = ""
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def shut_down(self) -> None:
        self._reason = self._reason or "stopped"
        with suppress(RayError):
            await self.actor.stop.remote()
        await self.destroy()

    async def destroy(self) -> None:
        try:
            async with timeout(_NOTICE_S):
                await self.actor.beat.remote(self._executor.owner)
        except TimeoutError:
            pass
        except RayError as error:  # its process has ended, so Ray restarts it
            if not self._reason:
                self.ended(ReplicaExit(code=None, reason=one_line(error)))
                return
        self._reason = self._reason or "killed"
        await self._executor.remove(self.spec.replica_id)
        self.ended(ReplicaExit(code=None, reason=self._reason))

    async def _watch(self) -> None:
        try:
            await self.actor.hold.remote(self._executor.owner)
            reason = "taken over by another control plane"
            self._executor.release(self.spec.replica_id)
        except RayError as error:
            reason = one_line(error)
        if not self._reason:
            self.ended(ReplicaExit(code=None, reason=reason))


class RayExecutor(BaseExecutor):
    """Runs replicas on a Ray cluster.

    Each replica is a detached actor with the name ``sage/REPLICA_ID``, in a placement group of its own on one node.
    They end with ``close``. If this process dies without it, they continue for ``grace_s`` seconds, and are found by
    ``adopt`` of a later executor with the same namespace. Ray restarts the process of an actor
    that ended, on another node if its node is lost; the next ``start`` of the replica loads it there.

    Tokens do not travel through Ray: clients connect to the port that the ``server`` of the spec opens.

    Args:
        address: ``HOST:PORT`` of the cluster's head; by default ``RAY_ADDRESS``, or the cluster of this machine.
        namespace: namespace of the actors.
        grace_s: seconds that a replica outlives its executor; at least 5.
        place_s: seconds to wait for a node with enough free resources.
    """

    honours = ("server", "environment", "gpus", "memory_gb")

    def __init__(
        self,
        *,
        address: str | None = None,
        namespace: str = "sage",
        grace_s: float = 30.0,
        place_s: float = 30.0,
    ) -> None:
        super().__init__()
        self.owner = secrets.token_hex(8)
        self._cluster = Cluster(address, namespace)
        self._grace_s, self._place_s = grace_s, place_s
        self._actors: dict[str, Any] = {}
        self._connecting = asyncio.Lock()
        self._beating: asyncio.Task[None] | None = None

    async def launch(self, spec: ReplicaSpec) -> BaseReplica:
        if spec.server is None:
            raise UnsupportedFeature(
                "a replica on Ray needs a server, as tokens do not travel through Ray; set server"
            )
        bundles_of(spec)  # may refuse
        await self._connect()
        actor = await self._own_actor(spec)
        try:
            return await self._load(actor, spec)
        except BaseException:
            removing = asyncio.ensure_future(self.remove(spec.replica_id))
            while not removing.done():  # also if this is cancelled again
                with suppress(asyncio.CancelledError):
                    await asyncio.shield(removing)
            raise

    async def adopt(self) -> list[ReplicaHandle]:
        """Return the replicas of executors that died without ``close``, and remove those that cannot be used.

        Replicas whose executor lives are left alone; it takes a few seconds to know that one has died.
        """
        await self._connect()
        ids = [name for name in await _in_thread(self._cluster.ids) if name not in self.replicas]
        found = await asyncio.gather(*map(self._adopt, ids))
        return [replica for replica in found if replica is not None]

    async def close(self) -> None:
        running = [replica for replica in self.replicas.values() if replica is not None]
        await asyncio.gather(*(replica.stop() for replica in running))
        # Restarting ones, which no replica is left of.
        await asyncio.gather(*map(self.remove, list(self._actors)))
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait([self._beating])

    def release(self, replica_id: str) -> None:
        """Leave the actor of a replica to its new owner."""
        self._actors.pop(replica_id, None)

    async def remove(self, replica_id: str) -> None:
        """Kill the actor of a replica, and wait until it has left the cluster."""
        self._actors.pop(replica_id, None)
        until = time.monotonic() + _GONE_S
        while not await _in_thread(self._cluster.remove, replica_id):
            if time.monotonic() > until:
                raise EngineDead(f"the actor of replica {replica_id!r} did not end within {_GONE_S:g} s")
            await asyncio.sleep(_LOOK_S)

    async def _own_actor(self, spec: ReplicaSpec) -> Any:
        """The actor of a replica that Ray has restarted, or a new one."""
        actor = await _in_thread(self._cluster.find, spec.replica_id)
        if actor is None:
            actor = await _in_thread(self._cluster.create, spec, self._grace_s)
        else:
            state = await self._answer(lambda: actor.take.remote(self.owner), spec, may_restart=True)
            if "owned_s" in state:
                raise InvalidRequest(
                    f"replica {spec.replica_id!r} belongs to another control plane of the same Ray namespace; stop "
                    "that one, or choose another namespace in llm.executor_options"
                )
        self._actors[spec.replica_id] = actor
        return actor

    async def _load(self, actor: Any, spec: ReplicaSpec) -> RayReplica:
        state = await self._answer(lambda: actor.take.remote(self.owner), spec, may_restart=True)
        if state:  # it has not ended, but is to start anew
            await self.remove(spec.replica_id)
            actor = self._actors[spec.replica_id] = await _in_thread(
                self._cluster.create, spec, self._grace_s
            )
            await self._answer(lambda: actor.take.remote(self.owner), spec, may_restart=True)
        state = await self._answer(lambda: actor.load.remote(self.owner, to_dict(spec)), spec)
        if "failed" in state:
            raise _error(*state["failed"])
        return RayReplica(self, actor, spec, state)

    async def _answer(
        self, call: Callable[[], Any], spec: ReplicaSpec, *, may_restart: bool = False
    ) -> dict[str, Any]:
        """Call an actor, which may still wait for a node or, with ``may_restart``, for its new process.

        Raises:
            BackendUnavailable: no node has room for it.
            EngineDead: its process has ended.
        """
        answer = asyncio.wrap_future(call().future())
        placed_at = time.monotonic()
        try:
            while True:
                await asyncio.wait([answer], timeout=_LOOK_S)
                if answer.done() and may_restart and isinstance(answer.exception(), ActorUnavailableError):
                    await asyncio.sleep(_LOOK_S)
                    answer = asyncio.wrap_future(call().future())
                elif answer.done():
                    return dict(answer.result())
                now = time.monotonic()
                if await _in_thread(self._cluster.is_placed, spec.replica_id):
                    placed_at = now
                elif now - placed_at > self._place_s:
                    raise await _in_thread(self._cluster.no_room, spec, self._place_s)
        except RayError as error:
            hint = "; install the same wheels on every node" if "No module named" in str(error) else ""
            raise EngineDead(
                f"replica {spec.replica_id!r} ended before it was ready: {one_line(error)}{hint}"
            ) from None
        finally:
            answer.cancel()

    async def _adopt(self, replica_id: str) -> RayReplica | None:
        actor = await _in_thread(self._cluster.find, replica_id)
        if actor is None:
            return None
        try:
            async with timeout(_ANSWER_S + LEASE_S):
                state = await actor.take.remote(self.owner)
                if "owned_s" in state:
                    await asyncio.sleep(state["owned_s"] + BEAT_S)
                    state = await actor.take.remote(self.owner)
        except TimeoutError:
            return None  # its node is lost
        except RayError:
            state = {}
        if "owned_s" in state:
            return None
        if not state:
            await self.remove(replica_id)
            return None
        replica = RayReplica(self, actor, from_dict(state["spec"], ReplicaSpec), state)
        self._actors[replica_id] = actor
        self.keep(replica)
        return replica

    async def _connect(self) -> None:
        async with self._connecting:
            if self._beating is None:
                await _in_thread(self._cluster.connect)
                self._beating = asyncio.get_running_loop().create_task(self._beat())

    async def _beat(self) -> None:
        while True:
            for replica_id, actor in self._actors.items():
                if replica_id in self.replicas:  # else it waits for its next start, but not for ever
                    actor.beat.remote(self.owner)
            await asyncio.sleep(BEAT_S)


def _error(code: str, message: str) -> SageInferError:
    """The error of the contract with this code, if a message is all that it needs."""
    try:
        return BY_CODE.get(code, PluginFailed)(message)
    except TypeError:
        return PluginFailed(message)


async def _in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function that blocks; if this is cancelled, wait until it has returned.

    Raises:
        BackendUnavailable: Ray failed.
    """
    call = asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        await asyncio.wait([call])
        raise
    except SageInferError:
        raise
    except Exception as error:
        raise BackendUnavailable(
            f"the Ray cluster does not answer: {one_line(error)}; see `ray status` on its head"
        ) from error

"""Replicas that another process owns, in a gateway process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any

from sage_infer.compat import wait_for
from sage_infer.contracts import ReplicaExit, ReplicaHandle
from sage_infer.errors import EngineDead, SageInferError
from sage_infer.schemas import InstanceDescriptor, ReplicaSpec
from sage_infer.sdk import BaseExecutor, BaseReplica

from sage_llm.gateways.messages import AnnouncedReplica, Emptied
from sage_llm.manager.fleet import Fleet
from sage_llm.manager.replica import Drained, Replica
from sage_llm.replicas.local import LocalExecutor
from sage_llm.replicas.openai import is_remote
from sage_llm.tasks import Tasks

__all__ = ["Follower", "FollowingExecutor"]

_AGAIN_S = 1.0  # after which a connection that was lost is made again to the same process


class FollowedReplica(BaseReplica):
    """A replica that another process owns: ``stop`` and ``kill`` only leave it."""

    def __init__(self, spec: ReplicaSpec, descriptor: InstanceDescriptor, pid: int | None) -> None:
        super().__init__(spec)
        self.descriptor, self.pid = descriptor, pid

    async def shut_down(self) -> None:
        return None


class FollowingExecutor(BaseExecutor):
    """Starts nothing: ``start`` waits until the owner has the replica running.

    Clients of joined servers are this process's own.
    """

    honours = ("server", "environment", "device_ids", "gpus", "memory_gb", "group")

    def __init__(self) -> None:
        super().__init__()
        self.announced: dict[str, AnnouncedReplica] = {}
        self._news = asyncio.Event()
        self._left: dict[str, int] = {}  # generation of the last connection
        self._own = LocalExecutor()

    def announce(self, replicas: Iterable[AnnouncedReplica]) -> None:
        """Take over what the owner says about its replicas."""
        self.announced = {replica.spec.replica_id: replica for replica in replicas}
        for replica_id, handle in list(self.replicas.items()):
            known = self.announced.get(replica_id)
            if handle is not None and (known is None or known.generation != handle.descriptor.generation):
                reason = "" if known is None else known.reason
                handle.ended(ReplicaExit(code=None, reason=reason or "stopped"))
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def start(self, spec: ReplicaSpec) -> ReplicaHandle:  # type: ignore[override]  # or the handle of a joined server
        return await (self._own.start(spec) if is_remote(spec.model) else super().start(spec))

    async def launch(self, spec: ReplicaSpec) -> BaseReplica:
        asked_at = time.monotonic()
        while True:
            news, known = self._news, self.announced.get(spec.replica_id)
            if known is None or known.word == "failed":
                why = "it was stopped" if known is None else known.reason
                raise EngineDead(f"replica {spec.replica_id!r} does not run: {why}")
            if known.word == "running" and known.descriptor is not None:
                is_new = known.generation != self._left.get(spec.replica_id)
                if is_new or time.monotonic() - asked_at >= _AGAIN_S:
                    self._left[spec.replica_id] = known.generation
                    return FollowedReplica(known.spec, known.descriptor, known.pid)
            with suppress(TimeoutError):
                await wait_for(news.wait(), _AGAIN_S)

    async def close(self) -> None:
        await super().close()
        await self._own.close()


class Follower:
    """Keeps the replicas of a gateway process as their owner announces them.

    Args:
        fleet: the fleet of the gateway's control plane.
        executor: the executor of that fleet.
        emptied: tells the owner that this process has no request left on a replica.
        drain_s: time for requests to end on a replica that is to be stopped, in seconds.
    """

    def __init__(
        self, fleet: Fleet, executor: FollowingExecutor, emptied: Callable[[Emptied], object], drain_s: float
    ) -> None:
        self._fleet, self._executor, self._drain_s = fleet, executor, drain_s
        self._emptied = emptied
        self._busy: set[str] = set()
        self._tasks = Tasks()
        fleet.before_stop = self._before_stop

    async def start(self) -> None:
        """Connect to the replicas that run, and follow the announcements from then on."""
        known = self._executor.announced.values()
        await self._fleet.start([replica.spec for replica in known if replica.word == "running"])
        self._tasks.spawn(self._look())

    def follow(self) -> None:
        """Start, empty and forget replicas as announced."""
        announced = self._executor.announced
        for replica_id, known in announced.items():
            replica = self._fleet.replicas.get(replica_id)
            if known.word == "failed":
                if replica is not None and replica.word in ("starting", "pausing"):
                    replica.word, replica.reason = "failed", known.reason
            elif known.word == "stopping":
                self._spawn(replica_id, self._empty(replica, known))
            elif replica is None or replica.word in ("gone", "failed"):
                self._spawn(replica_id, self._start(replica, known))
        for replica in self._fleet.replicas.values():
            is_known = replica.replica_id in announced or is_remote(replica.spec.model)
            if not is_known and replica.word != "running":
                replica.word = "gone"

    async def close(self) -> None:
        await self._tasks.cancel()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_AGAIN_S)
            self.follow()

    def _spawn(self, replica_id: str, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` unless other work on the replica is still running."""
        if replica_id in self._busy:
            work.close()
            return
        self._busy.add(replica_id)
        self._tasks.spawn(self._finish(replica_id, work))

    async def _finish(self, replica_id: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            with suppress(SageInferError):  # the replica's word says what happened
                await work
        finally:
            self._busy.discard(replica_id)

    async def _start(self, replica: Replica | None, known: AnnouncedReplica) -> None:
        if replica is None or replica.word == "gone":
            await self._fleet.start([known.spec])
        else:
            await self._fleet.restart(replica)

    async def _empty(self, replica: Replica | None, known: AnnouncedReplica) -> None:
        """Leave a replica; then wait until it runs again, or is announced as gone."""
        instance = None if replica is None or replica.word != "running" else replica.instance
        if replica is None or instance is None or instance.generation != known.generation:
            nothing = Drained(replica_id=known.spec.replica_id, open=0, ended=0, migrated=0, took_s=0.0)
            self._emptied(Emptied(nothing, known.generation))
        else:
            await self._fleet.restart(replica, self._drain_s)

    async def _before_stop(self, replica: Replica, result: Drained) -> Drained:
        if replica.instance is not None:
            self._emptied(Emptied(result, replica.instance.generation))
        return result

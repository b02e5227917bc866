"""The replicas: started, watched, restarted, drained and stopped."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import attrs
from sage_infer.compat import wait_for
from sage_infer.contracts import Executor, ReplicaHandle
from sage_infer.errors import InvalidRequest, ModelNotFound, SageInferError
from sage_infer.schemas import ReplicaSpec

from sage_llm.manager.dispatch import Dispatcher
from sage_llm.manager.health import HealthLimits, judge
from sage_llm.manager.kv.hints import KVHints
from sage_llm.manager.live_instance import LiveInstance
from sage_llm.manager.replica import Drained, Replica, ReplicaWord
from sage_llm.manager.restarts import RestartLimits, Restarts
from sage_llm.replicas.adoption import adopted
from sage_llm.replicas.connect import connect
from sage_llm.replicas.openai import is_remote
from sage_llm.tasks import Tasks

__all__ = ["Fleet"]

log = logging.getLogger(__name__)

_LOOK_S = 0.1
_EXIT_S = 0.5  # within which the end of a process follows the loss of its connection
_RECONNECT_S = 5.0
_RETURN_S = 5.0  # an instance that was connected for a shorter time does not return without a restart
_LAG_S = 0.25
_RETRY_S = 2.0  # longest pause between two attempts to connect to a server of others
_AT_ONCE = 2  # requests that move to each other instance at a time
_HASTY_S = 1.0  # in which requests of a drained replica move in turns; then, the rest moves
_CATCH_UP_S = 5.0  # that moved requests have for their next token, before a start takes CPU time, too


class Fleet:
    """All replicas of a control plane.

    Args:
        executor: starts the replicas.
        dispatcher: gets their instances, and moves the requests of lost ones.

    Attributes:
        on_demand: models whose first replica is started when a request arrives.
        before_stop: awaited when no request is left on a replica that is to be stopped; gets and returns the result of
            the drain.
    """

    def __init__(
        self,
        executor: Executor,
        dispatcher: Dispatcher,
        *,
        health: HealthLimits | None = None,
        restarts: RestartLimits | None = None,
    ) -> None:
        self.replicas: dict[str, Replica] = {}
        self._executor, self._dispatcher = executor, dispatcher
        self._health, self._restarts = health or HealthLimits(), restarts or RestartLimits()
        self._slots = itertools.count()
        self._tasks = Tasks()
        self.hints = KVHints(dispatcher.placement, self._tasks)
        self._closed = False
        self._syncing: set[LiveInstance] = set()
        self.on_demand: set[str] = set()
        self.before_stop: Callable[[Replica, Drained], Awaitable[Drained]] | None = None
        self._watching: asyncio.Task[None] | None = None

    # --- starting

    async def start(self, specs: Sequence[ReplicaSpec]) -> None:
        """Start replicas, and wait until all are ready. The first call takes over those of an earlier control plane.

        Raises:
            SageInferError: one did not start; the others continue to start.
        """
        running: dict[str, ReplicaHandle] = {}
        if self._watching is None:
            self._watching = self._tasks.spawn(self._watch())
            running = await adopted(self._executor, specs)
        replicas = [Replica(spec, self._restarts_of(spec)) for spec in specs]
        for replica in replicas:
            known = self.replicas.get(replica.replica_id)
            if known is not None and known.word != "gone":
                raise InvalidRequest(f"replica {replica.replica_id!r} exists and is {known.word}")
            self.replicas[replica.replica_id] = replica
        await asyncio.gather(
            *(self._launch(replica, running.get(replica.replica_id)) for replica in replicas)
        )

    def _restarts_of(self, spec: ReplicaSpec) -> Restarts:
        """Servers of others are asked again and again, as that costs nothing, and used soon after their return."""
        if not is_remote(spec.model):
            return Restarts(self._restarts)
        longest_s = min(self._restarts.longest_s, _RETRY_S)
        return Restarts(attrs.evolve(self._restarts, longest_s=longest_s), ends=False)

    async def _launch(self, replica: Replica, running: ReplicaHandle | None = None) -> None:
        """Start a replica, or take over the running one."""
        replica.word = "starting"
        if running is not None:
            if await self._reaches(replica, running):
                if replica.instance is not None:
                    replica.instance.reason = "taken over from an earlier control plane"
                return
            await running.kill()
        try:
            handle = await self._executor.start(replica.spec)
        except SageInferError as error:
            replica.word, replica.reason, replica.ended_at = "failed", error.message, time.monotonic()
            raise
        if self._closed or replica.word != "starting":
            await handle.kill()
            return
        try:
            await self._connect(replica, handle)
        except BaseException as error:
            if isinstance(error, SageInferError):
                replica.word, replica.reason, replica.ended_at = "failed", error.message, time.monotonic()
            await handle.kill()
            raise

    async def _connect(self, replica: Replica, handle: ReplicaHandle) -> None:
        """Connect to a running replica, and give it requests."""
        connected = await connect(handle)
        if self._closed or not replica.is_coming:  # it was stopped meanwhile
            await connected.close()
            await handle.kill()
            return
        is_first = replica.instance is None
        instance = LiveInstance(next(self._slots), connected, replica.model_id)
        if not is_first:
            instance.move("probation", f"restarted after: {replica.reason}")
        replica.handle, replica.instance, replica.word = handle, instance, "running"
        instance.on_heard = self._dispatcher.placement.report
        connected.on_report(instance.heard)
        connected.on_lost(lambda reason: self.lose(instance, reason))
        if instance.word != "dead":  # it may be lost already
            self._dispatcher.placement.add(instance)
            connected.on_kv(lambda news: self._dispatcher.placement.kv(instance, news))
            self._dispatcher.pump()

    def expects(self, model_id: str) -> bool:
        """Whether an instance of the model serves, or will without an operator."""
        return model_id in self.on_demand or any(
            r.model_id == model_id and r.is_coming for r in self.replicas.values()
        )

    # --- loss and restart

    def lose(self, instance: LiveInstance, reason: str, *, may_return: bool = True) -> None:
        """An instance has ended: move its requests, and restart its replica after a pause.

        If only the connection was lost and ``may_return``, connect to the same replica again.
        """
        if instance.word == "dead":
            return
        was_placed = instance in self._dispatcher.placement.instances(instance.model_id)
        instance.move("dead", reason)
        if was_placed:
            self._dispatcher.placement.remove(instance)
        self._dispatcher.evacuate(instance, reason, is_crash=True)
        replica = self._replica_of(instance)
        if replica is None or self._closed:
            return
        replica.reason, replica.ended_at = reason, time.monotonic()
        if replica.word == "running":
            replica.word = "pausing"
            replica.task = self._tasks.spawn(self._restart(replica, instance, may_return))

    async def _restart(self, replica: Replica, instance: LiveInstance, may_return: bool) -> None:
        ready_s = time.monotonic() - instance.since_start
        handle = replica.handle
        if handle is not None and handle.backend is None and may_return and ready_s > _RETURN_S:
            await instance.connected.close()
            if await self._has_returned(replica, handle):
                return
        if handle is not None:
            ended = await handle.kill()
            code = "" if ended.code is None else f", exit {ended.code}"
            replica.reason = f"{replica.reason}{code}"
        await instance.connected.close()
        while not self._closed:
            pause = replica.restarts.pause(time.monotonic(), ready_s)
            if pause is None:
                replica.word = "failed"
                replica.reason = f"failed too often, not restarted; last: {replica.reason}"
                return
            await asyncio.sleep(pause)
            await self._dispatcher.placement.interruptions.until_restored(replica.model_id, _CATCH_UP_S)
            if replica.word != "pausing":
                return
            try:
                await self._launch(replica)
                return
            except SageInferError:
                replica.word, ready_s = "pausing", 0.0

    async def _has_returned(self, replica: Replica, handle: ReplicaHandle) -> bool:
        """Connect again to a replica whose process still runs. Returns whether that worked."""
        with suppress(TimeoutError):
            await wait_for(handle.wait(), _EXIT_S)
            return False
        return await self._reaches(replica, handle)

    async def _reaches(self, replica: Replica, handle: ReplicaHandle) -> bool:
        """Connect to a process that was not started just now. Returns whether it answered in time."""
        try:
            await wait_for(self._connect(replica, handle), _RECONNECT_S)
        except (SageInferError, TimeoutError):
            return False
        return True

    def _replica_of(self, instance: LiveInstance) -> Replica | None:
        return next((r for r in self.replicas.values() if r.instance is instance), None)

    # --- health

    async def _watch(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(_LOOK_S)
            now = time.monotonic()
            try:
                self._look(now, now - before - _LOOK_S)
            except Exception:  # without this task, no instance would ever be found dead
                log.exception("looking after the replicas failed")

    def _look(self, now: float, lag: float) -> None:
        """Judge each instance, and do what is due; this process was ``lag`` seconds late."""
        for replica in list(self.replicas.values()):
            if replica.instance is not None and replica.word == "running":
                if lag > _LAG_S:  # this process stood still, so no report could arrive
                    replica.instance.heard_at += lag
                    replica.instance.steps_at += lag
                self._apply(replica.instance, now)
        for instance in self._dispatcher.placement.out_of_sync():
            if instance not in self._syncing:
                self._syncing.add(instance)
                self._tasks.spawn(self._sync(instance))
        self._dispatcher.preempt(now)
        self._dispatcher.refuse_stranded(now)
        self._dispatcher.pump()
        self.hints.send(now)

    async def _sync(self, instance: LiveInstance) -> None:
        """Take a snapshot of an instance's KV blocks, after a gap in its events."""
        with suppress(SageInferError):
            snapshot = await instance.backend.kv_snapshot()
            found = attrs.evolve(snapshot, generation=instance.generation)
            self._dispatcher.placement.kv(instance, found)
        self._syncing.discard(instance)

    def _apply(self, instance: LiveInstance, now: float) -> None:
        verdict = judge(instance, now, self._health)
        if verdict is None:
            return
        word, reason = verdict
        if word == "dead":
            self.lose(instance, reason, may_return=False)
        else:
            instance.move(word, reason)
            if word == "lost":
                self._dispatcher.evacuate(instance, reason, is_crash=False)

    # --- operation

    def of(self, model_id: str) -> list[Replica]:
        """The replicas of a model, in order of their ids."""
        return [r for r in self.replicas.values() if r.model_id == model_id and r.word != "gone"]

    async def stop(self, replica: Replica) -> None:
        """Wait until a replica's requests have ended, then stop it."""
        await self._empty(replica, None, then="gone")

    def find(self, replica_id: str) -> Replica:
        """The replica with this id.

        Raises:
            ModelNotFound: there is none; the message lists the ids.
        """
        replica = self.replicas.get(replica_id)
        if replica is None or replica.word == "gone":
            known = ", ".join(r.replica_id for r in self.replicas.values() if r.word != "gone")
            raise ModelNotFound(f"no replica {replica_id!r}; replicas: {known or 'none'}")
        return replica

    async def drain(self, replica: Replica, deadline_s: float = 1.0) -> Drained:
        """Stop a replica without an error for its requests: they end there in time, or move to other instances.

        A request that cannot move ends there, however long it takes.

        Raises:
            InvalidRequest: no other replica of its model can take the requests.
        """
        if not any(r.is_coming for r in self.of(replica.model_id) if r is not replica):
            raise InvalidRequest(
                f"replica {replica.replica_id!r} is the only one of model {replica.model_id!r}; start another with "
                f"`sage llm scale {replica.model_id} 2` first"
            )
        return await self._empty(replica, deadline_s, then="gone")

    async def retire(self, replica: Replica, deadline_s: float | None) -> Drained:
        """Stop a replica that is not needed any more, also the only one of its model.

        Its requests end there in time, or move to other instances. Without a deadline, all end there.
        """
        return await self._empty(replica, deadline_s, then="gone", why="not needed any more")

    async def restart(self, replica: Replica, deadline_s: float = 0.0) -> Drained:
        """Drain a replica, then start it again; requests wait for it if it is the only one."""
        result = await self._empty(replica, deadline_s, then="starting")
        replica.restarts.reset()
        replica.instance = None  # it has not failed, and gets all requests of the next one that is restarted
        await self._dispatcher.placement.interruptions.until_restored(replica.model_id, _CATCH_UP_S)
        if replica.word == "starting":  # it may have been drained meanwhile
            await self._launch(replica)
        return result

    async def _empty(
        self,
        replica: Replica,
        deadline_s: float | None,
        *,
        then: ReplicaWord,
        why: str = "drained by an operator",
    ) -> Drained:
        started = time.monotonic()
        if replica.task is not None and replica.task.cancel():
            await asyncio.wait([replica.task])  # it may have a process, which it ends
        instance = replica.instance
        if replica.word != "running" or instance is None:
            if replica.handle is not None:
                await replica.handle.kill()
            replica.word = then
            return Drained(replica_id=replica.replica_id, open=0, ended=0, migrated=0, took_s=0.0)
        replica.word = "stopping"
        instance.move("draining", why)
        before = list(self._dispatcher.on(instance))
        await instance.until_idle(deadline_s)
        moved = 0
        if instance.word == "draining":
            moved = await self._move_off(instance, _HASTY_S if then == "gone" else _CATCH_UP_S)
            await instance.until_idle()
        if instance.word == "draining":
            self._dispatcher.placement.remove(instance)
            instance.move("dead", "drained")
        await instance.connected.close()
        result = Drained(
            replica_id=replica.replica_id,
            open=len(before),
            ended=len(before) - moved,
            migrated=moved,
            took_s=time.monotonic() - started,
        )
        if self.before_stop is not None:
            result = await self.before_stop(replica, result)
        if replica.handle is not None:
            await replica.handle.stop()
        replica.word, replica.reason, replica.ended_at = then, "drained", time.monotonic()
        return attrs.evolve(result, took_s=time.monotonic() - started)

    async def _move_off(self, instance: LiveInstance, within_s: float) -> int:
        """Move an instance's requests, few at a time for ``within_s`` seconds; returns how many."""
        placement, until = self._dispatcher.placement, time.monotonic() + within_s
        moved = 0
        for request in self._dispatcher.on(instance):
            others = sum(other.is_open for other in placement.instances(instance.model_id))
            if others:
                left_s = until - time.monotonic()
                await placement.interruptions.until_fewer(_AT_ONCE * others, instance, left_s)
            if instance.word != "draining":
                break
            if request.attempt is None or request.attempt.instance is not instance:
                continue
            if not request.ledger.obstacle and (
                "resume" in instance.features or not request.ledger.has_started
            ):
                self._dispatcher.move_planned(request)
                moved += 1
        return moved

    async def close(self) -> None:
        self._closed = True
        await self._tasks.cancel()
        for replica in self.replicas.values():
            if replica.instance is not None:
                await replica.instance.connected.close()
            replica.word = "gone"
        await self._executor.close()

"""Keeps the number of one model's replicas as its policy wants it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from attrs import define
from sage_infer.compat import timeout
from sage_infer.errors import Overloaded, SageInferError
from sage_infer.schemas.replica import ReplicaRole

from sage_llm.manager.calls.questions import BatchCalls
from sage_llm.manager.dispatch import Dispatcher
from sage_llm.manager.fleet import Fleet
from sage_llm.manager.models import ServedModel
from sage_llm.manager.replica import Replica
from sage_llm.manager.restarts import RestartLimits, Restarts
from sage_llm.manager.scaling.events import ScaleEvents
from sage_llm.scaling.meter import WorkMeter, pools
from sage_llm.scaling.settings import Autoscale
from sage_llm.scaling.types import PoolMemory, ScaleMemory, ScaleView
from sage_llm.tasks import Tasks

__all__ = ["ModelScaler"]

_COMING = ("starting", "running", "pausing")
_HOUR_S = 3600.0


@define(eq=False)
class _Start:
    """A replica that is being started."""

    replica_id: str
    begun: float
    task: asyncio.Task[None] | None = None
    is_needed: bool = True


class ModelScaler:
    """The replicas of one model.

    Args:
        model: returns the model as it is served now.
        settings: bounds, policy and limits.
        restarts: pauses after failed starts; they never end.
        drain_s: time for requests to end on a replica that is stopped, before they move.
        start_s: how long its replicas took to start; 0 if unknown.
    """

    def __init__(
        self,
        model: Callable[[], ServedModel],
        settings: Autoscale,
        fleet: Fleet,
        dispatcher: Dispatcher,
        calls: BatchCalls,
        *,
        restarts: RestartLimits,
        drain_s: float,
        start_s: float = 0.0,
    ) -> None:
        self._model, self.settings = model, settings
        self._fleet, self._dispatcher, self._calls = fleet, dispatcher, calls
        self._limits, self._drain_s = restarts, drain_s
        self.model_id = model().descriptor.model_id
        self._has_prefill = model().prefill_replicas > 0
        self.events = ScaleEvents(self.model_id)
        self.start_s = start_s
        self.replica_s = 0.0  # for which replicas have run
        self._meter = WorkMeter(settings.requests)
        self._memory = ScaleMemory(
            PoolMemory(target=len(self._coming("whole"))), PoolMemory(target=len(self._coming("prefill")))
        )
        self._restarts = Restarts(restarts, ends=False)
        self._starts: dict[str, _Start] = {}
        self._stopping: set[Replica] = set()
        self._retry_at = self._next_at = self._accounted_at = self._asked_until = 0.0
        self._reason = ""
        self._decided_at = time.monotonic()
        self._tasks = Tasks()

    def change(self, settings: Autoscale) -> None:
        """Scale within other bounds, or with other parameters."""
        self.settings = settings
        self._meter = WorkMeter(settings.requests)
        self._next_at = 0.0

    async def stop(self) -> None:
        """Withdraw the starts, and wait until stopped replicas have ended."""
        for start in self._starts.values():
            self._withdraw(start)
        await self._tasks.wait()

    async def close(self) -> None:
        await self._tasks.cancel()

    # --- state

    def _coming(self, pool: str) -> list[Replica]:
        """Replicas of this machine that serve, or will without a decision."""
        return [
            r
            for r in self._fleet.of(self.model_id)
            if r.word in _COMING and (r.spec.role == "prefill") == (pool == "prefill")
        ]

    @property
    def desired(self) -> int:
        return self._memory.whole.target + self._memory.prefill.target

    @property
    def actual(self) -> int:
        """Replicas that accept requests."""
        return sum(instance.is_open for instance in self._dispatcher.placement.instances(self.model_id))

    @property
    def is_failing(self) -> bool:
        """Whether the last start has failed, and none has succeeded since."""
        return self._retry_at > 0.0

    @property
    def rests(self) -> bool:
        """Whether it is no fault that no replica runs: the next request starts one."""
        return self.settings.least == 0 and not self.is_failing

    def row(self) -> dict[str, Any]:
        """The state as data."""
        now, settings = time.monotonic(), self.settings
        cost = settings.cost_per_hour
        return {
            "model": self.model_id,
            "min": settings.least,
            "max": settings.affordable,
            "desired": self.desired,
            "prefill": self._memory.prefill.target if self._has_prefill else None,
            "actual": self.actual,
            "starting": len(self._starts),
            "load": self._memory.whole.level / self._memory.whole.target
            if self._memory.whole.target
            else None,
            "reason": self._reason,
            "decided_s": now - self._decided_at,
            "retry_s": max(self._retry_at - now, 0.0) if self.is_failing else None,
            "start_s": self.start_s or None,
            "replica_hours": self.replica_s / _HOUR_S,
            "cost": self.replica_s / _HOUR_S * cost if cost else None,
            "events": self.events.rows(),
        }

    # --- requests without a replica

    def ready_in(self, now: float) -> float:
        """Expected time until a replica is ready, in seconds; a first start of unknown duration counts 0."""
        begun = [start.begun for start in self._starts.values()]
        if begun:
            return max(self.start_s - (now - min(begun)), 0.0)
        return max(self._retry_at - now, 0.0) + self.start_s

    def stranded(self, waited_s: float) -> SageInferError | None:
        """The error of a request that has waited so long without a replica; None if it may continue to wait."""
        now = time.monotonic()
        left, ready_in = self.settings.wait_s - waited_s, self.ready_in(now)
        if left > 0 and (self._starts or ready_in <= left):
            return None
        ready_in = max(ready_in, 1.0)  # the smallest Retry-After
        self._asked_until = now + ready_in + self.settings.policy.idle_s  # it will be sent again
        why = f" ({self._reason})" if self.is_failing else ""
        return Overloaded(
            f"no replica of model {self.model_id!r} runs{why}; one is expected in {ready_in:.0f} s, longer than the "
            f"request may wait ({self.settings.wait_s:g} s); send it again then",
            retry_after=ready_in,
        )

    def _open(self, now: float) -> tuple[int, float]:
        """Requests that run or wait, and how long the oldest one without output has waited."""
        arrived = []
        count = self._calls.waiting[self.model_id]
        for request in self._dispatcher.open.values():
            if request.model_id == self.model_id:
                count += 1
                if request.first_at is None:
                    arrived.append(request.arrived)
        for call in self._dispatcher.calls.open.values():
            if call.model_id == self.model_id:
                count += 1
                arrived.append(call.arrived)
        if not count and now < self._asked_until and not self.actual:
            count = 1
        return count, now - min(arrived, default=now)

    # --- decisions

    def look(self, now: float) -> None:
        """Decide, if it is time to, and carry the decision out."""
        self._account(now)
        may_start = now >= self._retry_at
        is_waking = not self.desired and may_start and self._open(now)[0] > 0
        if now < self._next_at and not is_waking:
            return
        self._next_at = now + self.settings.interval_s
        self._find_failed()
        before = self._memory
        plan = self.settings.policy.plan(self._view(now, may_start=now >= self._retry_at), before)
        self._memory = plan.memory
        if plan.reason:
            old = before.whole.target, before.prefill.target
            new = plan.whole, plan.prefill
            self._decided(f"{self._counts(*old)} → {self._counts(*new)}: {plan.reason}")
            self.events.add("down" if sum(new) < sum(old) else "up", self._reason)
        self._reconcile("prefill", plan.prefill, now)
        self._reconcile("whole", plan.whole, now)

    def _counts(self, whole: int, prefill: int) -> str:
        return f"{prefill}:{whole}" if self._has_prefill else str(whole)

    def _decided(self, reason: str) -> None:
        self._reason, self._decided_at = reason, time.monotonic()

    def _account(self, now: float) -> None:
        if self._accounted_at:
            running = sum(r.word not in ("gone", "failed") for r in self._fleet.of(self.model_id))
            self.replica_s += running * (now - self._accounted_at)
        self._accounted_at = now

    def _view(self, now: float, *, may_start: bool) -> ScaleView:
        placement = self._dispatcher.placement
        instances = [i for i in placement.instances(self.model_id) if i.is_open]
        snapshot = placement.builder.snapshot(now)
        views = [view for i in instances if (view := snapshot.instances[i.slot]) is not None]
        group = snapshot.groups.get(self.model_id)
        computed = {
            (i.instance_id, i.generation): i.report.prompt_tokens for i in instances if i.report is not None
        }
        work = self._meter.measure(now, views, computed, 0.0 if group is None else group.waiting_tokens)
        prefill = sum(view.role == "prefill" for view in views)
        count, wait_s = self._open(now)
        whole, second = pools(
            work,
            ready=len(views) - prefill,
            prefill=prefill if self._has_prefill else None,
            open_requests=count,
            wait_s=wait_s,
        )
        return ScaleView(
            now, whole, second, self.settings.least, self.settings.affordable, self.start_s, may_start
        )

    def _find_failed(self) -> None:
        """Replicas that the fleet no longer restarts are replaced, after a pause."""
        for replica in self._fleet.of(self.model_id):
            if replica.word == "failed" and replica.replica_id not in self._starts and not self.is_failing:
                self._failed(replica.replica_id, replica.reason)

    # --- execution

    def _reconcile(self, pool: str, wanted: int, now: float) -> None:
        """Start or stop replicas until there are as many as wanted."""
        found = [r for r in self._coming(pool) if r not in self._stopping]
        if len(found) < wanted and now >= self._retry_at:
            for replica in self._fleet.of(self.model_id):
                if replica.word == "failed":
                    replica.word = "gone"
            for _ in range(wanted - len(found)):
                self._start(pool, now)
        for replica in _surplus(found, len(found) - wanted):
            self._stop(replica)

    def _start(self, pool: str, now: float) -> None:
        role: ReplicaRole | None = "prefill" if pool == "prefill" else None
        used = {r.replica_id for r in self._fleet.of(self.model_id)} | set(self._starts)
        number = 0
        while (spec := self._model().spec(number, role)).replica_id in used:
            number += 1
        if number >= self.settings.affordable:
            return  # memory is planned for so many: first, those that are being stopped have to end
        start = self._starts[spec.replica_id] = _Start(spec.replica_id, now)
        start.task = self._tasks.spawn(self._run(start, spec))

    async def _run(self, start: _Start, spec: Any) -> None:
        """Start a replica within the deadline."""
        reason, is_late, deadline_s = "", False, self.settings.deadline_s
        try:
            async with timeout(deadline_s):
                await self._fleet.start([spec])
        except TimeoutError:
            reason, is_late = f"not ready within {deadline_s:g} s", True
        except SageInferError as error:
            reason = error.message
        except asyncio.CancelledError:
            if start.is_needed:  # by ``close``
                raise
        finally:
            del self._starts[start.replica_id]
        replica = self._fleet.replicas.get(start.replica_id)
        if not start.is_needed or (not reason and (replica is None or replica.word == "gone")):
            if replica is not None:
                replica.word = "gone"
            self.events.add("withdrawn", f"{start.replica_id}: no longer needed")
        elif reason:
            if replica is not None:
                replica.word, replica.reason, replica.ended_at = "failed", reason, time.monotonic()
            self._failed(start.replica_id, reason, is_late=is_late)
        else:
            took = time.monotonic() - start.begun
            self.start_s = took
            self._retry_at = 0.0
            self._restarts.reset()
            self.events.add("ready", f"{start.replica_id}: after {took:.1f} s")

    def _failed(self, replica_id: str, reason: str, *, is_late: bool = False) -> None:
        """Withdraw what is not satisfied, and pause before the next start."""
        now = time.monotonic()
        pause = self._restarts.pause(now, 0.0) or self._limits.longest_s
        self._retry_at = now + pause
        self._memory = ScaleMemory(
            attrs.evolve(self._memory.whole, target=len(self._coming("whole"))),
            attrs.evolve(self._memory.prefill, target=len(self._coming("prefill"))),
        )
        self._decided(
            f"{replica_id}: {reason}; the plan is withdrawn, next start in {pause:g} s at the earliest"
        )
        self.events.add("withdrawn" if is_late else "failed", self._reason)

    def _stop(self, replica: Replica) -> None:
        start = self._starts.get(replica.replica_id)
        if start is not None and self._withdraw(start):
            return
        self._stopping.add(replica)
        self._tasks.spawn(self._drain(replica))

    def _withdraw(self, start: _Start) -> bool:
        """Cancel a start, unless its replica runs already: that one may have requests and is drained."""
        replica = self._fleet.replicas.get(start.replica_id)
        if start.task is None or (replica is not None and replica.word == "running"):
            return False
        start.is_needed = False
        return start.task.cancel()

    async def _drain(self, replica: Replica) -> None:
        try:
            others = [r for r in self._coming("whole") if r is not replica and r not in self._stopping]
            drained = await self._fleet.retire(replica, self._drain_s if others else None)
            self.events.add(
                "stopped",
                f"{replica.replica_id}: {drained.ended} requests ended, {drained.migrated} migrated",
            )
        finally:
            self._stopping.discard(replica)


def _surplus(replicas: Sequence[Replica], count: int) -> list[Replica]:
    """The replicas to stop: those that do not run, then those with the fewest requests, later ones first."""

    def cost(at: int) -> tuple[bool, int, int]:
        instance = replicas[at].instance
        runs = replicas[at].word == "running"
        return runs, len(instance.attempts) + len(instance.calls) if runs and instance is not None else 0, -at

    return [replicas[at] for at in sorted(range(len(replicas)), key=cost)[: max(count, 0)]]

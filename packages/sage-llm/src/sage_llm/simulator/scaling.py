"""Simulated instances that are started and stopped as a scaling policy of the control plane wants it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from attrs import frozen

from sage_llm.scaling.meter import WorkMeter, pools
from sage_llm.scaling.settings import Autoscale
from sage_llm.scaling.types import PoolMemory, ScaleMemory, ScaleView
from sage_llm.simulator.engine import SimulatedInstance
from sage_llm.simulator.gateway import Gateway
from sage_llm.simulator.job import Job

__all__ = ["Change", "Host", "Scaling"]

_DRAIN_S = 1.0  # in which requests may end on an instance that is stopped, before they move


@frozen
class Change:
    """A decision about the number of instances.

    Attributes:
        at: time of the decision.
        instances: number of instances from then on.
        reason: why.
    """

    at: float
    instances: int
    reason: str


class Host(Protocol):
    """The run whose instances are scaled."""

    def schedule(self, at: float, call: Callable[[Any, int], None], what: Any) -> None: ...
    def open(self, slot: int) -> None:
        """An instance is ready."""
        ...

    def drain(self, slot: int) -> None:
        """An instance accepts no further requests."""
        ...

    def close(self, slot: int) -> None:
        """An instance ends; what is on it moves."""
        ...


class Scaling:
    """The number of instances of one run.

    Args:
        start_s: time from the decision to start an instance until it is ready.
        host: starts and stops the instances.
        instances: all that may run; those below ``settings.least`` run from the start.
    """

    def __init__(
        self,
        settings: Autoscale,
        start_s: float,
        host: Host,
        instances: list[SimulatedInstance],
        gateways: list[Gateway],
    ) -> None:
        self._settings, self._start_s, self._host = settings, start_s, host
        self._instances, self._gateways = instances, gateways
        self._meter = WorkMeter(settings.requests)
        self.ready = set(range(settings.least))
        self._starting: set[int] = set()
        self._draining: set[int] = set()
        self._memory = ScaleMemory(PoolMemory(target=settings.least))
        self._counts: list[tuple[float, int]] = [(0.0, settings.least)]
        self._silent: dict[Job, None] = {}  # without a token, in order of their arrival
        self._open = 0
        self.changes: list[Change] = []
        self.is_last = False  # no request will arrive any more

    @property
    def is_starting(self) -> bool:
        """Whether an instance is being started, or requests that arrived during a start still wait."""
        oldest = next(iter(self._silent), None)
        return bool(self._starting) or not self.ready or (oldest is not None and not oldest.is_ready)

    def hours(self, until: float) -> float:
        """Instance hours until a time; instances that start or are drained count."""
        total = 0.0
        for (at, count), (end, _) in zip(self._counts, [*self._counts[1:], (until, 0)], strict=True):
            total += count * max(min(end, until) - at, 0.0)
        return total / 3600.0

    # --- requests

    def arrived(self, job: Job, now: float) -> None:
        self._open += 1
        self._silent[job] = None
        if not self._memory.whole.target:
            self._decide(now)

    def first_token(self, job: Job) -> None:
        self._silent.pop(job, None)

    def ended(self, job: Job) -> None:
        self._open -= 1
        self._silent.pop(job, None)

    # --- decisions

    def look(self, now: float) -> None:
        """Decide now, and again after the interval, until nothing is left to do."""
        self._decide(now)
        if (
            not self.is_last
            or self._open
            or self._memory.whole.target > self._settings.least
            or self._draining
        ):
            self._host.schedule(
                now + self._settings.interval_s, self._look_again, now + self._settings.interval_s
            )

    def _look_again(self, now: float, version: int) -> None:
        self.look(now)

    def _decide(self, now: float) -> None:
        seen = [gateway.seen(now) for gateway in self._gateways]
        views = [view for view in seen[0][0] if view.slot in self.ready]
        work = self._meter.measure(
            now, views, {i.slot: i.computed for i in self._instances}, sum(waiting for _, waiting in seen)
        )
        oldest = next(iter(self._silent), None)
        whole, _ = pools(
            work,
            ready=len(views),
            prefill=None,
            open_requests=self._open,
            wait_s=0.0 if oldest is None else now - oldest.arrived,
        )
        settings = self._settings
        view = ScaleView(now, whole, None, settings.least, settings.affordable, self._start_s)
        plan = settings.policy.plan(view, self._memory)
        self._memory = plan.memory
        if plan.reason:
            self.changes.append(Change(now, plan.whole, plan.reason))
            self._carry_out(plan.whole, now)

    def _carry_out(self, wanted: int, now: float) -> None:
        for _ in range(wanted - len(self.ready) - len(self._starting)):
            slot = self._free()
            self._starting.add(slot)
            self._host.schedule(now + self._start_s, self._started, (slot, now + self._start_s))
        for _ in range(len(self.ready) + len(self._starting) - wanted):
            if self._starting:
                self._starting.discard(max(self._starting))
                continue
            slot = min(
                self.ready, key=lambda s: (len(self._instances[s].jobs) + len(self._instances[s].queue), -s)
            )
            self.ready.discard(slot)
            self._draining.add(slot)
            self._host.drain(slot)
            self._host.schedule(now + _DRAIN_S, self._stopped, (slot, now + _DRAIN_S))
        self._count(now)

    def _free(self) -> int:
        """The first instance that does not run: the registry of a gateway assigns its slots in this order."""
        used = self.ready | self._starting | self._draining
        return next(slot for slot in range(len(self._instances)) if slot not in used)

    def _started(self, what: tuple[int, float], version: int) -> None:
        slot, now = what
        if slot in self._starting:
            self._starting.discard(slot)
            self.ready.add(slot)
            self._host.open(slot)
            self._count(now)

    def _stopped(self, what: tuple[int, float], version: int) -> None:
        slot, now = what
        self._draining.discard(slot)
        self._host.close(slot)
        self._count(now)

    def _count(self, now: float) -> None:
        self._counts.append((now, len(self.ready) + len(self._starting) + len(self._draining)))

"""Discrete events: requests arrive, instances step, reports reach gateways, faults happen."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator
from typing import Any

from sage_infer_serve.bench.report import Distribution

from sage_llm.manager.health import HealthLimits
from sage_llm.policies.base import OrderPolicy, PlacementPolicy
from sage_llm.simulator.cache import Found
from sage_llm.simulator.cluster import Cluster
from sage_llm.simulator.directory import Directory
from sage_llm.simulator.engine import SimulatedInstance
from sage_llm.simulator.faults import Fault
from sage_llm.simulator.gateway import Gateway, descriptor
from sage_llm.simulator.hosts import Host
from sage_llm.simulator.job import Job
from sage_llm.simulator.metrics import Measured, Result
from sage_llm.simulator.scaling import Scaling
from sage_llm.simulator.schemas import Row
from sage_llm.simulator.traces import Trace
from sage_llm.simulator.variants import policy_text
from sage_llm.types import Decision, State

__all__ = ["simulate"]

_POINTS = 120
_SLO_S = 1.0
_PROBATION_S = 2.0
_LARGE = 64  # instances above which waiting requests are not looked at after each event
_PAUSE_S = 0.02


def simulate(
    trace: Trace,
    cluster: Cluster,
    place: PlacementPolicy,
    order: OrderPolicy,
    *,
    progress: Callable[[float], None] | None = None,
) -> Result:
    """Run a trace on a cluster. The same arguments yield the same result.

    Args:
        progress: called with the share of requests that have arrived.
    """
    return _Run(trace, cluster, place, order, progress).result()


class _Run:
    def __init__(
        self,
        trace: Trace,
        cluster: Cluster,
        place: PlacementPolicy,
        order: OrderPolicy,
        progress: Callable[[float], None] | None,
    ) -> None:
        self._trace, self._cluster, self._policy = trace, cluster, place
        self._progress = progress
        self._events: list[tuple[float, int, Callable[..., None], Any, int]] = []
        self._count = 0
        self._speed = cluster.speed_up(trace)
        model = cluster.model
        self._directory = Directory(1 + len(model.lower), cluster.report_delay_s)
        hosts: list[Host | None] = [
            Host(cluster.contention) if cluster.contention else None
            for _ in range(-(-cluster.most // cluster.per_host))
        ]
        self._instances = [
            SimulatedInstance(
                slot, model, trace.block, self._directory, self._wake, self._started, self._first, self._ended,
                hosts[slot // cluster.per_host],
            )
            for slot in range(cluster.most)
        ]  # fmt: skip
        self._gateways = [
            Gateway(place, order, model, trace.block, self._directory, self._sent)
            for _ in range(cluster.routers)
        ]
        self._down: set[int] = set()  # instances that have crashed and not restarted
        self._reported = [0.0] * cluster.most
        self._is_large = cluster.most > _LARGE
        self._pumped_at, self._is_pumping = -1.0, False
        self._scaling: Scaling | None = None
        if cluster.autoscale is not None:
            self._scaling = Scaling(cluster.autoscale, cluster.start_s, self, self._instances, self._gateways)
        self._ready_requests = self._ready_in_time = 0  # outside of starts
        self._touched: set[int] = set()  # gateways whose requests moved on
        self._now = 0.0
        expected = max(trace.summary.seconds / self._speed, 1e-3)
        self._measured = Measured(expected / _POINTS)

    def result(self) -> Result:
        began = time.process_time()
        for instance in self._instances:
            if self._scaling is None or instance.slot in self._scaling.ready:
                self._add(instance, "ready")
        for fault in self._cluster.faults:
            self._at(fault.at, self._crash if fault.is_crash else self._stall, fault)
        arrivals = self._jobs()
        self._arrive_next(arrivals)
        if self._scaling is not None:
            self._scaling.look(0.0)
        events, measured = self._events, self._measured
        while events:
            now, _, call, what, version = heapq.heappop(events)
            while now >= measured.next_at:
                measured.sample([i.queued for i in self._instances], sum(map(len, self._gateways)))
            self._now = now
            call(what, version)
            if self._touched:
                self._pump(now)
        return self._result(time.process_time() - began)

    def _add(self, instance: SimulatedInstance, state: State) -> None:
        """The present generation of an instance appears in all gateways."""
        name = self._id(instance.slot)
        identity = descriptor(name, instance.generation, self._cluster.model, self._trace.block)
        for number, gateway in enumerate(self._gateways):
            gateway.add(identity, self._now, state)
            gateway.report(instance.report(name, self._now), self._now)
            self._touched.add(number)

    # --- scaling

    def schedule(self, at: float, call: Callable[..., None], what: Any) -> None:
        self._at(at, call, what)

    def open(self, slot: int) -> None:
        self._add(self._instances[slot], "ready")

    def drain(self, slot: int) -> None:
        for gateway in self._gateways:
            gateway.change(slot, "draining", self._now)

    def close(self, slot: int) -> None:
        for gateway in self._gateways:
            gateway.change(slot, "dead", self._now)
        self._move(self._instances[slot].crash(self._now))

    # --- events

    def _at(self, at: float, call: Callable[..., None], what: Any, version: int = 0) -> None:
        self._count += 1
        heapq.heappush(self._events, (at, self._count, call, what, version))

    def _pump(self, now: float) -> None:
        """Let the touched gateways send what they can; in a large cluster, at most every 20 ms."""
        if self._is_large and now < self._pumped_at + _PAUSE_S:
            if not self._is_pumping:
                self._is_pumping = True
                self._at(self._pumped_at + _PAUSE_S, self._pump_later, None)
            return
        self._pumped_at = now
        for number in self._touched:
            self._gateways[number].pump(now)
        self._touched.clear()

    def _pump_later(self, what: None, version: int) -> None:
        self._is_pumping = False

    def _jobs(self) -> Iterator[Job]:
        block, routers = self._trace.block, self._cluster.routers
        for number, row in enumerate(self._trace):
            yield _job(number, row, self._speed, block, number % routers)

    def _arrive_next(self, arrivals: Iterator[Job]) -> None:
        job = next(arrivals, None)
        if job is not None:
            self._at(job.arrived + self._cluster.overhead_s, self._arrive, (job, arrivals))
        elif self._scaling is not None:
            self._scaling.is_last = True

    def _arrive(self, what: tuple[Job, Iterator[Job]], version: int) -> None:
        job, arrivals = what
        if self._progress is not None and job.number % 256 == 0:
            self._progress(job.number / self._trace.summary.requests)
        self._measured.prompt_tokens += job.prompt_tokens
        self._measured.blocks += -(-job.prompt_tokens // self._trace.block)
        gateway = self._gateways[job.router]
        gateway.enqueue(job, self._name(job), self._now)
        if self._scaling is not None:
            job.is_ready = not self._scaling.is_starting
            self._scaling.arrived(job, self._now)
        if len(gateway) == 1:
            gateway.pump(self._now)  # no other request waits, so it is looked at now
        else:
            self._touched.add(job.router)
        self._arrive_next(arrivals)

    def _wake(self, at: float, instance: SimulatedInstance) -> None:
        self._at(at, self._step, instance, instance.version)

    def _step(self, instance: SimulatedInstance, version: int) -> None:
        if version != instance.version:
            return
        instance.advance(self._now)
        slot, cluster = instance.slot, self._cluster
        if self._now - self._reported[slot] >= cluster.report_interval_s or not instance.busy:
            self._reported[slot] = self._now
            report = instance.report(self._id(slot), self._now)
            if cluster.report_delay_s:
                self._at(self._now + cluster.report_delay_s, self._receive, report)
            else:
                self._receive(report, 0)

    def _receive(self, report: Any, version: int) -> None:
        for number, gateway in enumerate(self._gateways):
            gateway.report(report, self._now)
            if len(gateway):
                self._touched.add(number)

    # --- what instances and gateways say

    def _sent(self, job: Job, decision: Decision) -> None:
        if decision.kind == "refuse":
            self._measured.refused += 1
            if self._scaling is not None:
                self._scaling.ended(job)
            return
        job.slot = decision.slot
        job.attempts += 1
        self._instances[job.slot].submit(job, self._now)

    def _started(self, job: Job, found: Found, uncached: int, now: float) -> None:
        measured = self._measured
        measured.computed_tokens += uncached
        if job.attempts == 1:
            measured.begun_blocks += -(-job.prompt_tokens // self._trace.block)
            measured.hit_blocks += found.device
            measured.lower_blocks += sum(found.tiers)

    def _first(self, job: Job, now: float) -> None:
        self._gateways[job.router].first_token(self._name(job))
        if job.first_at < 0:
            job.first_at = now
            ttft = now - job.arrived
            self._measured.ttft.append(ttft)
            step = self._cluster.model.step
            in_time = ttft <= _SLO_S + step.base_s + step.per_prompt * job.prompt_tokens
            self._measured.in_time += in_time
            self._ready_requests += job.is_ready
            self._ready_in_time += job.is_ready and in_time
            if self._scaling is not None:
                self._scaling.first_token(job)
        self._touched.add(job.router)

    def _ended(self, job: Job, now: float) -> None:
        measured = self._measured
        self._gateways[job.router].left(self._name(job))
        if self._scaling is not None:
            self._scaling.ended(job)
        measured.finished += 1
        measured.output_tokens += job.output_tokens
        measured.last_at = now
        if job.output_tokens > 1:
            measured.tpot.append((now - job.first_at) / (job.output_tokens - 1))
        self._touched.add(job.router)

    def _id(self, slot: int) -> str:
        return f"model/{slot}"

    def _name(self, job: Job) -> str:
        return f"{self._cluster.seed}-{job.number}"

    # --- faults

    def _crash(self, fault: Fault, version: int) -> None:
        instance = self._instances[fault.slot]
        if fault.slot in self._down:
            return
        self._down.add(fault.slot)
        for gateway in self._gateways:
            gateway.change(fault.slot, "dead", self._now)
        self._move(instance.crash(self._now))
        self._at(self._now + fault.seconds, self._restart, fault)

    def _restart(self, fault: Fault, version: int) -> None:
        instance = self._instances[fault.slot]
        self._down.discard(fault.slot)
        self._add(instance, "probation")
        for gateway in self._gateways:
            gateway.change(fault.slot, "probation", self._now, open_limit=1)
        self._at(self._now + _PROBATION_S, self._trust, fault, instance.generation)

    def _stall(self, fault: Fault, version: int) -> None:
        instance, limits = self._instances[fault.slot], HealthLimits()
        if fault.slot in self._down:
            return
        instance.stall(self._now, fault.seconds)
        generation = instance.generation
        if fault.seconds > limits.suspect_s:
            self._at(self._now + limits.suspect_s, self._suspect, fault, generation)
            self._at(self._now + fault.seconds, self._trust, fault, generation)
        if fault.seconds > limits.lost_s:
            self._at(self._now + limits.lost_s, self._lose, fault, generation)

    def _suspect(self, fault: Fault, generation: int) -> None:
        if self._is_same(fault, generation):
            for gateway in self._gateways:
                gateway.change(fault.slot, "suspect", self._now)

    def _lose(self, fault: Fault, generation: int) -> None:
        if self._is_same(fault, generation):
            self._move(self._instances[fault.slot].drop(self._now))

    def _trust(self, fault: Fault, generation: int) -> None:
        if self._is_same(fault, generation):
            for number, gateway in enumerate(self._gateways):
                gateway.change(fault.slot, "ready", self._now)
                self._touched.add(number)

    def _is_same(self, fault: Fault, generation: int) -> bool:
        return fault.slot not in self._down and self._instances[fault.slot].generation == generation

    def _move(self, jobs: list[Job]) -> None:
        """Let requests that have lost their instance wait for another one."""
        for job in jobs:
            self._measured.moved += 1
            gateway, name = self._gateways[job.router], self._name(job)
            gateway.left(name)
            gateway.enqueue(job, name, self._now)
            self._touched.add(job.router)

    # --- the end

    def _result(self, cpu_s: float) -> Result:
        measured, cluster = self._measured, self._cluster
        computed = [instance.computed for instance in self._instances]
        seconds = measured.last_at or 1.0
        return Result(
            policy=policy_text(self._policy),
            settings=cluster.named(),
            speed_up=self._speed,
            requests=self._trace.summary.requests,
            finished=measured.finished,
            refused=measured.refused,
            moved=measured.moved,
            ttft_s=Distribution.of(measured.ttft),
            tpot_s=Distribution.of(measured.tpot),
            hit=measured.hit_blocks / max(measured.blocks, 1),
            lower=measured.lower_blocks / max(measured.blocks, 1),
            saved=1.0 - measured.computed_tokens / max(measured.prompt_tokens, 1),
            balance=max(computed) * len(computed) / max(sum(computed), 1),
            slo=measured.in_time / max(len(measured.ttft), 1),
            slo_ready=self._ready_in_time / max(self._ready_requests, 1),
            instance_hours=cluster.instances * seconds / 3600
            if self._scaling is None
            else self._scaling.hours(seconds),
            changes=() if self._scaling is None else tuple(self._scaling.changes),
            prompt_tokens_per_s=measured.prompt_tokens / seconds,
            output_tokens_per_s=measured.output_tokens / seconds,
            seconds=seconds,
            cpu_s=cpu_s,
            decisions=sum(gateway.decisions for gateway in self._gateways),
            series=measured.series(),
            ttft_samples=Measured.quantiles(measured.ttft),
            tpot_samples=Measured.quantiles(measured.tpot),
        )


def _job(number: int, row: Row, speed: float, block: int, router: int) -> Job:
    return Job(
        number,
        row.at / speed,
        row.prompt_tokens,
        row.output_tokens,
        row.keys,
        -(-(row.prompt_tokens + row.output_tokens) // block),
        row.session,
        router,
    )

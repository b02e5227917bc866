"""Chains beside bursts of chats in simulated time, with the policies, the queue and the table of the control plane."""

from __future__ import annotations

import heapq
import itertools
import random
from typing import Any

import attrs
import pytest
from llm_cluster import instance
from sage_llm.chains import ChainStep, ChainTable
from sage_llm.policies import admission, order
from sage_llm.queue import WaitingQueue
from sage_llm.tenants import TenantTable
from sage_llm.types import Decision, Group, RequestView, Snapshot

STEPS = (("embed", 0.05), ("rank", 0.1), ("chat", 0.5))
PLACES = {"embed": 1, "rank": 1, "chat": 2}
CHAT_S, BURST, LOAD, DEADLINE_S, SECONDS = 2.0, 8, 0.8, 1.95, 600.0
RATE = LOAD * PLACES["chat"] / (STEPS[-1][1] + CHAT_S)  # chains per second, and as many chats


class Simulation:
    """Three models in simulated time. ``together`` uses chains, otherwise each step is scheduled apart."""

    def __init__(self, *, together: bool, seed: int) -> None:
        self.together, self.table, self.admission = together, ChainTable(), admission(always=0)
        self.queues = {model: WaitingQueue(order("balanced"), TenantTable()) for model in PLACES}
        self.free = dict(PLACES)
        self.events: list[tuple[float, int, str, Any]] = []
        self.count = itertools.count()
        self.steps: dict[str, tuple[ChainStep | None, float]] = {}
        self.in_time = self.chains = self.refused_late = 0
        numbers = random.Random(seed)
        for kind, size in (("chain", 1), ("chats", BURST)):
            now = 0.0
            while (now := now + numbers.expovariate(RATE / size)) < SECONDS:
                self.at(now, kind, now)

    def at(self, when: float, kind: str, what: Any) -> None:
        heapq.heappush(self.events, (when, next(self.count), kind, what))

    def snapshot(self, now: float) -> Snapshot:
        groups = {}
        for model, queue in self.queues.items():
            waiting = sum(view.prompt_tokens for view in queue)
            chains = sum(view.prompt_tokens for view in queue if view.chain_since is not None)
            rate = 1000.0 * PLACES[model]  # a token is a millisecond of one place
            groups[model] = Group(
                mask=1,
                size=1,
                rate=rate,
                fastest=rate,
                waiting=len(queue),
                waiting_tokens=waiting,
                chain_tokens=chains,
            )
        return Snapshot(now, (instance(0, models=tuple(PLACES), rate=2000.0),), groups)

    def run(self) -> float:
        while self.events:
            now, _, kind, what = heapq.heappop(self.events)
            if kind == "chain":
                self.chains += 1
                self.step(now, f"rag/{self.chains}", 0, what)
            elif kind == "chats":
                for _ in range(BURST):
                    self.push(
                        now,
                        RequestView(str(next(self.count)), "chat", prompt_tokens=2000, arrived=now),
                        CHAT_S,
                    )
            else:
                self.ended(now, *what)
            for model, queue in self.queues.items():
                while self.free[model] and (taken := queue.take(now, go)) is not None:
                    view, self.free[model] = taken[0], self.free[model] - 1
                    self.at(now + self.steps[view.id][1], "ended", (view, now))
        return self.in_time / self.chains

    def step(self, now: float, name: str, index: int, began: float) -> None:
        model, took = STEPS[index]
        view = RequestView(f"{name}:{index}:{began!r}", model, prompt_tokens=int(took * 1000), arrived=now)
        step = None
        if self.together:
            step = self.table.begin("", name, model, now, deadline=began + DEADLINE_S)
            view = attrs.evolve(
                view, chain=name, deadline=step.deadline, chain_step=step.index, chain_since=step.since,
                left_s=step.left_s, expected_s=step.expected_s, later=step.later,
            )  # fmt: skip
            if self.admission.admit(view, self.snapshot(now)).kind == "refuse":
                self.refused_late += index > 0
                self.table.ended(step, now, None)
                return
        self.push(now, view, took, step)

    def push(self, now: float, view: RequestView, took: float, step: ChainStep | None = None) -> None:
        self.steps[view.id] = step, took
        self.queues[view.model].push(view, self.snapshot(now))

    def ended(self, now: float, view: RequestView, dispatched: float) -> None:
        self.free[view.model] += 1
        step, _ = self.steps.pop(view.id)
        if step is not None:
            self.table.ended(step, now, now - dispatched)
        name, _, rest = view.id.partition(":")
        if rest:
            index, _, began = rest.partition(":")
            if int(index) + 1 < len(STEPS):
                self.step(now, name, int(index) + 1, float(began))
            else:
                self.in_time += now - float(began) <= DEADLINE_S + 1e-9


def go(view: RequestView) -> Decision:
    return Decision("dispatch", view.id, 0, uncached=view.prompt_tokens)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_more_chains_end_in_time_than_with_steps_apart(seed: int) -> None:
    chains = Simulation(together=True, seed=seed)
    together, apart = chains.run(), Simulation(together=False, seed=seed).run()
    assert together >= 1.2 * apart, (together, apart)
    assert chains.refused_late == 0

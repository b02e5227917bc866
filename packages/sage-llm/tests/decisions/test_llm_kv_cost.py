"""The default placement: computed tokens against queued ones, and what an instance may not take."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from sage_llm.policies import KVCost
from sage_llm.types import Group, InstanceView, RequestView, Snapshot, Step

MODEL = "m"


def cluster(*views: InstanceView, kv: dict[int, int] | None = None, **changes: Any) -> Snapshot:
    """A snapshot of ready instances of one model."""
    mask = sum(1 << view.slot for view in views)
    group = Group(
        mask=mask,
        least=tuple(v.slot for v in sorted(views, key=lambda v: (v.queue_s, v.slot))),
        size=len(views),
        fastest=max(v.rate for v in views),
        rate=sum(v.rate for v in views),
        shortest_s=min(v.queue_s for v in views),
        rho=changes.pop("rho", 0.0),
    )
    return Snapshot(now=0.0, instances=views, groups={MODEL: group}, kv=kv or {}, **changes)


def instance(slot: int, **changes: Any) -> InstanceView:
    return InstanceView(slot, f"{MODEL}/{slot}", models=(MODEL,), rate=1000.0, **changes)


def request(blocks: int = 10, **changes: Any) -> RequestView:
    keys = tuple(range(1, blocks + 1))
    return RequestView("r", MODEL, prompt_tokens=blocks * 100, keys=keys, block=100, **changes)


def test_a_holder_is_preferred_until_its_queue_costs_more() -> None:
    kv = dict.fromkeys(range(1, 9), 0b01)
    busy = cluster(instance(0, queued_tokens=700.0), instance(1), kv=kv)
    assert KVCost().place(request(), busy).slot == 0
    busier = cluster(instance(0, queued_tokens=900.0), instance(1), kv=kv)
    decision = KVCost().place(request(), busier)
    assert (decision.slot, decision.reuse, decision.uncached) == (1, 0, 1000)


def test_load_raises_the_weight_of_computed_tokens() -> None:
    kv = dict.fromkeys(range(1, 9), 0b01)
    loaded = cluster(instance(0, queued_tokens=1500.0), instance(1), kv=kv, rho=0.75)
    decision = KVCost().place(request(), loaded)
    assert (decision.slot, decision.alpha, decision.reuse) == (0, 4.0, 800)
    assert KVCost(alpha_max=1.5).place(request(), loaded).slot == 1
    assert KVCost(alpha=1.0).place(request(), loaded).slot == 1


def test_the_deepest_holder_wins_at_equal_queues() -> None:
    kv = {key: 0b111 if key < 4 else 0b110 if key < 7 else 0b100 for key in range(1, 10)}
    decision = KVCost().place(request(), cluster(*map(instance, range(4)), kv=kv))
    assert (decision.slot, decision.uncached) == (2, 100)


def test_an_untrusted_index_is_ignored() -> None:
    kv = dict.fromkeys(range(1, 11), 0b01)
    snapshot = cluster(instance(0, queued_tokens=1.0), instance(1), kv=kv, kv_valid=0b10)
    assert KVCost().place(request(), snapshot).slot == 1


def test_kv_is_never_over_committed() -> None:
    full = instance(0, kv_total=40, kv_reserved=10, page=32)
    decision = KVCost().place(request(), cluster(full))
    assert (decision.kind, decision.slot, decision.blocks) == ("wait", 0, 32)
    free = attrs.evolve(full, kv_reserved=8)
    assert KVCost().place(request(), cluster(free)).kind == "dispatch"
    never = KVCost().place(request(max_tokens=500), cluster(free))
    assert (never.kind, never.reason) == ("refuse", "too_large")
    assert "lower max_tokens" in never.message


def test_an_instance_whose_streams_would_miss_their_target_is_avoided() -> None:
    strict = instance(0, tpot_limit=0.05, step=Step(0.01, 1e-4, 0.0, 0.0), running=3)
    other = instance(1, queued_tokens=500.0)
    assert KVCost().place(request(), cluster(strict, other)).slot == 1
    assert KVCost().place(request(), cluster(strict)).slot == 0


def test_a_limit_of_open_requests_is_respected() -> None:
    trial = instance(0, state="probation", open=1, open_limit=1)
    assert KVCost().place(request(), cluster(trial, instance(1, queued_tokens=900.0))).slot == 1
    assert KVCost().place(request(), cluster(trial)).kind == "wait"


@pytest.mark.parametrize(("state", "kind"), [("dead", "refuse"), ("starting", "wait"), ("draining", "wait")])
def test_no_instance_to_send_to(state: Any, kind: str) -> None:
    snapshot = attrs.evolve(cluster(instance(0, state=state)), groups={})
    assert KVCost().place(request(), snapshot).kind == kind


def test_a_model_that_nobody_serves_is_refused() -> None:
    decision = KVCost().place(RequestView("r", "other"), cluster(instance(0)))
    assert (decision.kind, decision.reason) == ("refuse", "unavailable")
    assert "'other'" in decision.message

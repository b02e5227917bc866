"""Placement policies: properties of all of them, and what each one prefers."""

from __future__ import annotations

import copy
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_cluster import BLOCK, any_speed, cluster, instance, request, requests, snapshots
from sage_infer.errors import InvalidRequest
from sage_llm.policies import POLICIES, placement
from sage_llm.policies.base import PlacementPolicy
from sage_llm.policies.prefix import deepest
from sage_llm.types import RequestView, Snapshot, Step

every_policy = pytest.mark.parametrize("name", POLICIES["placement"])


@every_policy
@any_speed(40)
@given(data=st.data())
def test_every_policy_decides_the_same_and_never_over_commits(name: str, data: st.DataObject) -> None:
    policy, wanted, snapshot = placement(name), data.draw(requests()), data.draw(snapshots())
    before = copy.deepcopy((wanted, snapshot))
    decision = policy.place(wanted, snapshot)
    assert decision == placement(name).place(wanted, copy.deepcopy(snapshot)), "the same decision"
    assert (wanted, snapshot) == before, "nothing was changed"
    assert decision.request == wanted.id
    assert len(decision.candidates) <= 4
    assert decision.predicted_ttft >= 0
    if decision.kind == "dispatch":
        view = snapshot.instances[decision.slot]
        assert view is not None
        assert view.state in ("ready", "probation")
        assert not wanted.excluded >> decision.slot & 1
        assert not wanted.adapter or wanted.adapter in view.adapters
        assert not view.open_limit or view.open < view.open_limit
        if view.kv_total:
            assert decision.blocks * view.page >= wanted.prompt_tokens + wanted.max_tokens
            assert view.kv_reserved + decision.blocks <= view.kv_total
        if view.role == "prefill":
            assert not any(
                v.role != "prefill"
                and v.state in ("ready", "probation")
                and not wanted.excluded >> v.slot & 1
                for v in snapshot.instances
                if v is not None
            )
    if decision.kind == "refuse":
        assert decision.reason
        assert decision.message


@every_policy
def test_a_cluster_without_instances_refuses(name: str) -> None:
    decision = placement(name).place(request(), Snapshot(0.0))
    assert (decision.kind, decision.reason) == ("refuse", "unavailable")


@every_policy
def test_a_request_that_fits_nowhere_is_refused(name: str) -> None:
    decision = placement(name).place(request(max_tokens=10_000), cluster(instance(0, kv_total=40)))
    assert (decision.kind, decision.reason) == ("refuse", "too_large")
    assert "1280 tokens" in decision.message


@every_policy
def test_a_request_waits_while_all_are_excluded(name: str) -> None:
    assert placement(name).place(request(excluded=1), cluster(instance(0))).kind == "wait"


@every_policy
def test_an_adapter_nobody_has_is_named(name: str) -> None:
    decision = placement(name).place(request(adapter="poet"), cluster(instance(0)))
    assert (decision.kind, decision.reason) == ("refuse", "unavailable")
    assert "'poet'" in decision.message


@any_speed(40)
@given(snapshot=snapshots(), wanted=requests())
def test_the_search_of_kv_cost_finds_the_optimum(snapshot: Snapshot, wanted: RequestView) -> None:
    """Branch and bound against the cost of every instance, where there are no lower tiers."""
    snapshot = attrs.evolve(snapshot, lower=())
    decision = placement("kv-cost").place(wanted, snapshot)
    if not decision.candidates:
        return
    slow = attrs.evolve(snapshot, kv={})
    all_costs = {}
    for view in snapshot.instances:
        assert view is not None
        only = attrs.evolve(wanted, excluded=~(1 << view.slot))
        depth = deepest(snapshot.kv.get, wanted.keys, 1 << view.slot & snapshot.kv_valid)
        rest = attrs.evolve(only, prompt_tokens=max(wanted.prompt_tokens, 1))
        alone = placement("kv-cost").place(rest, slow)
        if alone.candidates and not wanted.excluded >> view.slot & 1:
            uncached = max(wanted.prompt_tokens - depth * BLOCK, 1)
            saved = decision.alpha * (alone.candidates[0].uncached - uncached) / view.rate
            all_costs[view.slot] = alone.candidates[0].cost - saved
    best = decision.candidates[0]
    avoided = {view.slot for view in snapshot.instances if view is not None and _avoided(wanted, view)}
    free = {slot: cost for slot, cost in all_costs.items() if slot not in avoided} or all_costs
    assert best.cost == pytest.approx(min(free.values()))


def _avoided(wanted: RequestView, view: Any) -> bool:
    chunk = min(wanted.prompt_tokens, view.chunk)
    step = view.step.predict(chunk, view.running + 1, view.context_tokens + wanted.prompt_tokens)
    slow = view.tpot_limit and view.step.base_s and step > view.tpot_limit
    return bool((view.open_limit and view.open >= view.open_limit) or slow)


def place(name: str, wanted: RequestView, snapshot: Snapshot, **values: Any) -> int:
    policy: PlacementPolicy = placement(name, **values)
    decision = policy.place(wanted, snapshot)
    assert decision.policy == policy.name
    return decision.slot


def test_round_robin_takes_turns_and_passes_over_full_instances() -> None:
    views = [instance(0), instance(1, open=1, open_limit=1), instance(2)]
    turns = [place("round-robin", request(), cluster(*views, decisions=n)) for n in range(4)]
    assert turns == [0, 2, 0, 2]


def test_least_tokens_looks_at_the_queue_only() -> None:
    kv = dict.fromkeys(range(1, 11), 0b01)
    snapshot = cluster(instance(0, queued_tokens=10.0), instance(1), kv=kv)
    assert place("least-tokens", request(), snapshot) == 1
    equal = cluster(instance(0, running=3), instance(1, running=1))
    assert place("least-tokens", request(), equal) == 1


def test_power_of_two_spreads_and_takes_the_cheaper_of_its_two() -> None:
    views = [instance(slot, queued_tokens=0.0 if slot == 3 else 9000.0) for slot in range(8)]
    counts = [place("power-of-two", request(id=f"r{n}"), cluster(*views)) for n in range(200)]
    assert 25 <= counts.count(3) <= 100
    assert len(set(counts)) == 8
    assert place("power-of-two", request(), cluster(instance(0))) == 0


def test_affinity_returns_to_the_session_unless_it_is_behind() -> None:
    views = [instance(slot, queued_tokens=500.0) for slot in range(3)]
    at = {"places": {"s": 1}}
    assert place("affinity", request(session="s"), cluster(*views, **at)) == 1
    behind = [*views[:1], instance(1, queued_tokens=5000.0), instance(2)]
    assert place("affinity", request(session="s"), cluster(*behind, **at)) == 2
    assert place("affinity", request(session="s"), cluster(*behind, **at), max_wait_s=10) == 1
    first = {place("affinity", request(session=f"t{n}"), cluster(*views)) for n in range(40)}
    assert first == {0, 1, 2}
    same = {place("affinity", request(id=f"r{n}"), cluster(*views)) for n in range(20)}
    assert len(same) == 1, "equal beginnings meet"


def test_affinity_moves_few_sessions_when_an_instance_is_added() -> None:
    views = [instance(slot) for slot in range(4)]
    before = [place("affinity", request(session=f"t{n}"), cluster(*views)) for n in range(100)]
    after = [place("affinity", request(session=f"t{n}"), cluster(*views, instance(4))) for n in range(100)]
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {4}
    assert len(moved) < 40


def test_cost_takes_the_cheapest_instance_that_meets_the_targets() -> None:
    fast = instance(0, rate=4000.0, cost_per_hour=8.0, decode_rate=400.0)
    slow = instance(1, rate=1000.0, cost_per_hour=1.0, decode_rate=100.0)
    wanted = request(out_q50=100.0)
    assert place("cost", wanted, cluster(fast, slow)) == 1
    assert place("cost", attrs.evolve(wanted, slo_ttft=0.5), cluster(fast, slow)) == 0
    assert place("cost", wanted, cluster(fast, slow), ttft_s=0.5) == 0
    steps = attrs.evolve(slow, step=Step(0.1))
    assert place("cost", attrs.evolve(wanted, slo_tpot=0.05), cluster(fast, steps)) == 0
    unpriced = cluster(instance(0, queued_tokens=10.0), instance(1))
    assert place("cost", wanted, unpriced) == 1


def test_adaptive_follows_the_situation() -> None:
    kv = dict.fromkeys(range(1, 11), 0b01)
    busy = [instance(0, queued_tokens=100.0, reported_at=99.9), instance(1, reported_at=99.9)]
    chosen = placement("adaptive").place(request(), cluster(*busy, kv=kv, now=100.0))
    assert (chosen.policy, chosen.slot) == ("kv-cost", 0)
    chosen = placement("adaptive").place(request(), cluster(*busy, now=100.0))
    assert (chosen.policy, chosen.slot) == ("least-tokens", 1)
    chosen = placement("adaptive").place(request(), cluster(*busy, kv=kv, now=102.0))
    assert chosen.policy == "power-of-two"
    short = request(1, block=32, prompt_tokens=32)
    chosen = placement("adaptive").place(short, cluster(*busy, kv=kv, now=100.0))
    assert chosen.policy == "least-tokens", "too little is cached"


def test_prices_may_be_configured() -> None:
    fast, slow = instance(0, rate=4000.0), instance(1)
    assert place("cost", request(), cluster(fast, slow), prices="m/0=8 m/*=1") == 1
    assert place("cost", request(), cluster(fast, slow), prices="m/*=1") == 0
    assert placement("cost:prices=m/0=8 m/*=1").place(request(), cluster(fast, slow)).slot == 1
    with pytest.raises(InvalidRequest, match="PATTERN=PRICE"):
        placement("cost", prices="m/0")
    with pytest.raises(InvalidRequest, match="PATTERN=PRICE"):
        placement("cost", prices="m/0=cheap")


def test_topology_prefers_near_instances_while_they_keep_up() -> None:
    near = instance(0, host="rack1-a", queued_tokens=30.0)
    far = instance(1, host="rack2-b")
    assert place("topology", request(), cluster(near, far), near="gate rack1-*") == 0
    assert place("topology", request(), cluster(near, far)) == 1
    late = attrs.evolve(near, queued_tokens=900.0)
    assert place("topology", request(), cluster(late, far), near="rack1-*") == 1
    assert place("topology", request(), cluster(late, far), near="rack1-*", far_s=2.0) == 0


def test_lower_tiers_count_in_part() -> None:
    views = [instance(0, queued_tokens=100.0), instance(1, queued_tokens=100.0), instance(2)]
    tiers = (dict.fromkeys(range(1, 9), 1), dict.fromkeys(range(1, 9), 2))
    decision = placement("kv-cost").place(request(), cluster(*views, lower=tiers))
    assert (decision.slot, decision.candidates[0].loaded, decision.uncached) == (0, 800, 200)
    assert decision.candidates[0].cost == pytest.approx((200 + 0.25 * 800 + 100) / 1000)
    nothing = placement("kv-cost", credit_dram=0, credit_ssd=0).place(request(), cluster(*views, lower=tiers))
    assert nothing.slot == 2


def test_wide_prefixes_go_to_the_least_loaded_holder() -> None:
    views = [instance(slot, queued_tokens=float(1000 - slot)) for slot in range(64)]
    kv = dict.fromkeys(range(1, 6), (1 << 63) - 1)
    snapshot = cluster(*views, kv=kv)
    group = attrs.evolve(snapshot.groups["m"], least=tuple(range(63, 55, -1)))
    decision = placement("kv-cost").place(request(), attrs.evolve(snapshot, groups={"m": group}))
    assert (decision.slot, decision.uncached) == (62, 500)


def test_if_none_of_the_least_loaded_is_eligible_others_are_tried() -> None:
    views = [instance(slot) for slot in range(64)]
    snapshot = cluster(*views)
    group = attrs.evolve(snapshot.groups["m"], least=tuple(range(8)))
    decision = placement("kv-cost").place(request(excluded=255), attrs.evolve(snapshot, groups={"m": group}))
    assert decision.slot == 8

"""Groups of many instances, and the speed of a queue."""

from __future__ import annotations

import random

import pytest
from llm_cluster import descriptor, instance, report, request
from sage_llm.groups import Members
from sage_llm.loads import InstanceLoad, OpenRequest
from sage_llm.policies.base import blocks_needed, wait_kv
from sage_llm.registry import InstanceRegistry
from sage_llm.speeds import Speeds


def test_a_large_group_knows_its_least_loaded_instances_per_speed() -> None:
    """Against sorting, over random changes of load, speed, KV and membership."""
    rng = random.Random(1)
    members = Members()
    for _ in range(600):
        slot = rng.randrange(40)
        view = instance(
            slot,
            rate=rng.choice([1000.0, 1100.0, 8000.0]),
            queued_tokens=float(rng.randrange(5000)),
            kv_total=100,
            kv_reserved=rng.randrange(100),
            role=rng.choice(["general", "general", "general", "prefill"]),
            adapters=rng.choice([(), ("x",)]),
        )
        members.put(slot, None if rng.random() < 0.1 else view)
        group = members.group(0.0)
        whole = [v for v in members.views.values() if v.role != "prefill"] or list(members.views.values())
        assert group.mask == sum(1 << v.slot for v in whole)
        assert (group.size, group.rate) == (len(whole), pytest.approx(sum(v.rate for v in whole)))
        assert group.kv_free == (sum(v.kv_total - v.kv_reserved for v in whole) if whole else -1)
        assert group.adapters.get("x", 0) == sum(1 << v.slot for v in whole if v.adapters)
        assert group.shortest_s == min((v.queue_s for v in whole), default=0.0)
        slow = sorted((v.queue_s, v.slot) for v in whole if v.rate < 2000)
        fast = sorted((v.queue_s, v.slot) for v in whole if v.rate > 2000)
        kept = 8 if len(whole) > 16 else 16
        assert group.least == tuple(s for _, s in slow[:kept]) + tuple(s for _, s in fast[:kept])


def test_the_speed_of_a_queue_is_measured_while_it_lasts() -> None:
    members = Members()
    members.put(0, instance(0))
    members.waits("kept", 5000.0, 0.0)
    for second in range(10):
        members.waits(f"r{second}", 300.0, float(second))
        members.leaves(f"r{second}", second + 0.5)
        members.leaves(f"r{second}", second + 0.5)
    assert members.group(1.0).drain == 0.0, "too early to tell"
    group = members.group(10.0)
    assert (group.waiting, group.waiting_tokens, group.drain) == (1, 5000.0, 300.0)
    members.waits("kept", 4000.0, 10.0)
    members.waits("gone", 100.0, 10.0)
    members.leaves("gone", None)
    assert members.group(40.0).drain == 0.0, "nothing has left for 20 s"
    assert members.group(40.0).waiting_tokens == 4000.0
    members.leaves("kept", 40.0)
    members.waits("next", 100.0, 50.0)
    assert members.group(51.0).drain == 0.0, "a new queue"


def test_a_time_without_instances_says_nothing_about_the_speed_of_a_queue() -> None:
    members = Members()
    members.put(0, instance(0))
    members.waits("kept", 5000.0, 0.0)
    members.waits("first", 300.0, 0.0)
    members.leaves("first", 1.0)
    assert members.group(3.0).drain == 100.0
    members.put(0, instance(0))
    assert members.group(3.0).drain == 100.0
    members.put(0, None)
    members.put(0, instance(0))
    assert members.group(15.0).drain == 0.0, "the speed of the instances counts until the queue has its own"
    members.waits("next", 600.0, 15.0)
    members.leaves("next", 16.0)
    assert members.group(18.0).drain == 200.0


def test_the_strictest_tpot_target_of_running_requests_counts() -> None:
    registry = InstanceRegistry()
    load = InstanceLoad(registry.add(descriptor("m/0"), 0.0, "ready"), speeds=Speeds(1000.0), chunk=512)
    for name, tpot in (("a", 0.1), ("b", 0.05), ("c", 0.0)):
        load.dispatched(name, OpenRequest(0.0, 10.0, 20, 1, tpot))
        assert load.view().tpot_limit == (0.1 if name != "a" else 0.0)
        load.first_token("a")
    load.first_token("b")
    load.first_token("c")
    assert load.view().tpot_limit == 0.05
    load.reports(report("m/0", running=3), 1.0)
    assert load.view().tpot_limit == 0.05
    assert load.ended("b")
    assert not load.ended("b")
    assert load.view().tpot_limit == 0.1


def test_blocks_are_waited_for_at_the_speed_of_their_release() -> None:
    view = instance(0, kv_total=100, kv_reserved=95, kv_release=2.0, page=100)
    assert blocks_needed(request(9), view) == 9
    assert wait_kv(9, view) == 2.0
    assert wait_kv(5, view) == 0.0
    assert wait_kv(101, view) == float("inf")
    assert wait_kv(9, instance(0, kv_total=100, kv_reserved=95)) == 5.0
    assert wait_kv(9, instance(0)) == 0.0
    assert blocks_needed(request(9, kind="embed"), view) == 0
    assert blocks_needed(request(9, max_tokens=500, reserve=100), view) == 10
    assert blocks_needed(request(9, max_tokens=500), view) == 14

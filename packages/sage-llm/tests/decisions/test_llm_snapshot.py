"""Registry and snapshots: generations, states, and loads that follow from open requests and reports."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from llm_cluster import MODEL, descriptor, report
from sage_infer.errors import InvalidRequest
from sage_llm.policies import KVCost
from sage_llm.registry import InstanceRegistry
from sage_llm.snapshot import SnapshotBuilder
from sage_llm.types import RequestView


@pytest.fixture
def registry() -> InstanceRegistry:
    registry = InstanceRegistry()
    for name in ("m/0", "m/1"):
        registry.add(descriptor(name), 0.0, "ready")
    return registry


@pytest.fixture
def builder(registry: InstanceRegistry) -> SnapshotBuilder:
    builder = SnapshotBuilder(registry, rate=1000.0)
    for name in ("m/0", "m/1"):
        builder.report(report(name), 1.0)
    return builder


def request(name: str = "r", **changes: Any) -> RequestView:
    return RequestView(name, MODEL, prompt_tokens=320, max_tokens=320, out_q50=10, **changes)


def test_a_later_generation_replaces_an_earlier_one(registry: InstanceRegistry) -> None:
    old = registry.get("m/0")
    new = registry.add(descriptor("m/0", 2), 5.0, "probation")
    assert new.slot == old.slot
    assert registry.current("m/0", 1) is None
    assert not registry.change(old, "dead", 6.0)
    assert new.state == "probation"
    with pytest.raises(InvalidRequest, match="larger generation"):
        registry.add(descriptor("m/0", 2), 7.0)


def test_a_dead_instance_does_not_return_in_its_generation(registry: InstanceRegistry) -> None:
    instance = registry.get("m/0")
    assert registry.change(instance, "dead", 1.0, "exit -9")
    assert not registry.change(instance, "dead", 1.0)
    with pytest.raises(InvalidRequest, match="larger generation"):
        registry.change(instance, "ready", 2.0)


def test_unknown_instances_are_named(registry: InstanceRegistry) -> None:
    with pytest.raises(InvalidRequest, match="m/0, m/1"):
        registry.get("m/7")


def test_slots_are_reused(registry: InstanceRegistry) -> None:
    registry.remove(registry.get("m/0"))
    assert "m/0" not in registry
    assert registry.add(descriptor("m/2"), 0.0).slot == 0
    assert registry.at(9) is None
    assert [i.instance_id for i in registry] == ["m/1", "m/2"]
    assert len(registry) == 2


def test_only_placeable_instances_are_in_a_group(
    registry: InstanceRegistry, builder: SnapshotBuilder
) -> None:
    assert builder.snapshot(1.0).groups[MODEL].mask == 0b11
    registry.change(registry.get("m/0"), "suspect", 2.0)
    assert builder.snapshot(2.0).groups[MODEL].mask == 0b10
    registry.change(registry.get("m/0"), "ready", 2.5)
    registry.remove(registry.get("m/1"))
    snapshot = builder.snapshot(3.0)
    assert (snapshot.groups[MODEL].mask, snapshot.instances[1]) == (0b01, None)


def test_prefill_instances_take_whole_requests_only_alone(registry: InstanceRegistry) -> None:
    registry.add(descriptor("p/0", role="prefill"), 0.0, "ready")
    builder = SnapshotBuilder(registry)
    group = builder.snapshot(0.0).groups[MODEL]
    assert group.mask == 0b011
    for name in ("m/0", "m/1"):
        registry.change(registry.get(name), "dead", 1.0)
    assert builder.snapshot(1.0).groups[MODEL].mask == 0b100


def test_load_follows_from_open_requests(builder: SnapshotBuilder) -> None:
    sent = request(tenant="a")
    builder.waits(sent, 1.0)
    waiting = builder.snapshot(1.0)
    assert waiting.groups[MODEL].waiting_tokens == 320
    decision = KVCost().place(sent, waiting)
    builder.dispatched(sent, decision, 1.0)
    snapshot = builder.snapshot(1.0)
    view = snapshot.instances[decision.slot]
    assert view is not None
    assert (view.queued_tokens, view.kv_reserved, view.open, view.running) == (320, 20, 1, 0)
    assert snapshot.groups[MODEL].waiting_tokens == 0
    assert snapshot.groups[MODEL].kv_free == 180
    assert snapshot.groups[MODEL].rho == pytest.approx(320 / 40_000)
    builder.first_token("r")
    builder.first_token("r")
    view = builder.snapshot(1.1).instances[decision.slot]
    assert view is not None
    assert (view.queued_tokens, view.running, view.context_tokens) == (0, 1, 330)
    builder.ended(sent)
    builder.ended(sent)
    view = builder.snapshot(1.2).instances[decision.slot]
    assert view is not None
    assert (view.queued_tokens, view.kv_reserved, view.open, view.running) == (0, 0, 0, 0)


def test_a_bound_request_counts_where_it_waits(builder: SnapshotBuilder) -> None:
    builder.waits(request(), 1.0, slot=1)
    view = builder.snapshot(1.0).instances[1]
    assert view is not None
    assert (view.bound_tokens, view.queued_tokens, view.queue_s) == (320, 0, 0.32)
    assert KVCost().place(request("other"), builder.snapshot(1.0)).slot == 0
    builder.ended(request())
    view = builder.snapshot(1.0).instances[1]
    assert view is not None
    assert view.bound_tokens == 0


def test_reports_add_what_others_use(builder: SnapshotBuilder) -> None:
    sent = request()
    builder.dispatched(sent, KVCost().place(sent, builder.snapshot(1.0)), 1.0)
    builder.report(
        report("m/0", 2, running=3, waiting_prompt_tokens=500, kv_blocks_free=50, running_context_tokens=90),
        2.0,
    )
    view = builder.snapshot(2.0).instances[0]
    assert view is not None
    assert (view.queued_tokens, view.running, view.context_tokens) == (500, 3, 90)
    assert view.kv_reserved == 50  # 20 of ours, 30 of others
    builder.first_token("r")
    view = builder.snapshot(2.0).instances[0]
    assert view is not None
    assert view.queued_tokens == 180


def test_a_report_just_after_a_dispatch_does_not_hide_it(builder: SnapshotBuilder) -> None:
    sent = request()
    builder.dispatched(sent, KVCost().place(sent, builder.snapshot(1.0)), 1.0)
    builder.report(report("m/0", 2), 1.01)
    view = builder.snapshot(1.01).instances[0]
    assert view is not None
    assert view.queued_tokens == 320
    builder.first_token("r")
    view = builder.snapshot(1.01).instances[0]
    assert view is not None
    assert view.queued_tokens == 0


def test_reports_of_earlier_lives_and_late_ones_are_ignored(builder: SnapshotBuilder) -> None:
    assert not builder.report(report("m/0", generation=0), 2.0)
    assert not builder.report(report("m/9"), 2.0)
    builder.report(report("m/0", 5, waiting_prompt_tokens=50), 2.0)
    builder.report(report("m/0", 4, waiting_prompt_tokens=900), 2.1)
    view = builder.snapshot(2.1).instances[0]
    assert view is not None
    assert view.queued_tokens == 50


def test_rates_are_measured(builder: SnapshotBuilder) -> None:
    for seq in range(2, 60):
        builder.report(
            report(
                "m/0",
                seq,
                prompt_tokens=seq * 4000,
                output_tokens=seq * 50,
                waiting_prompt_tokens=10_000,
                running=4,
            ),
            float(seq),
        )
        builder.measured(1, 500, 1.0)
    first, second = builder.snapshot(60.0).instances
    assert first is not None
    assert second is not None
    assert first.rate == pytest.approx(4000, rel=0.15)
    assert first.decode_rate == pytest.approx(50, rel=0.01)
    assert second.rate == pytest.approx(500, rel=0.15)
    builder.report(report("m/0", 60, step_s=0.02, running=2), 61.0)
    first = builder.snapshot(61.0).instances[0]
    assert first is not None
    assert first.step.base_s == 0.02


def test_an_old_decision_never_over_commits(builder: SnapshotBuilder) -> None:
    snapshot = builder.snapshot(1.0)
    old = KVCost().place(request(), snapshot)
    for index in range(5):
        builder.dispatched(request(f"r{index}"), old, 1.0)
    with pytest.raises(ValueError, match="0 of 100 unreserved"):
        builder.dispatched(request("late"), old, 1.0)
    with pytest.raises(ValueError, match="slot 7"):
        builder.dispatched(request("late"), attrs.evolve(old, slot=7), 1.0)


def test_sessions_remember_their_instance(builder: SnapshotBuilder) -> None:
    sent = request(session="s")
    decision = KVCost().place(sent, builder.snapshot(1.0))
    builder.dispatched(sent, decision, 1.0)
    assert builder.snapshot(1.0).places["s"] == decision.slot

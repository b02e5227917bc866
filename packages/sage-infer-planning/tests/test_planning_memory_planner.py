"""Plans: none asks a device for more than it has, and a refusal says by how much."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from planning_catalogue import CARDS, CATALOGUE
from sage_infer.errors import OutOfMemory
from sage_infer.schemas import HardwareProfile, MemoryTierSpec
from sage_infer.schemas.capability import SharingMode
from sage_infer_planning.estimate import GIB, Demand, Workload, estimate_demand
from sage_infer_planning.memory_planner import (
    Device,
    MemoryPlan,
    demand_met,
    devices_of,
    less,
    plan_memory,
)

MODES: st.SearchStrategy[SharingMode] = st.sampled_from(["exclusive", "mps", "time_slice"])
SIZES = st.integers(0, 100 * GIB)
DEMANDS = st.lists(
    st.builds(
        Demand,
        model_id=st.uuids().map(str),
        weights=SIZES,
        kv_least=st.integers(0, GIB),
        kv_wanted=st.integers(GIB, 50 * GIB),
        activations=st.integers(0, 4 * GIB),
        overhead=st.integers(0, GIB),
        weight=st.floats(0.1, 10),
        spread=st.integers(1, 3),
    ),
    max_size=6,
    unique_by=lambda demand: demand.model_id,
)
DEVICES = st.lists(st.integers(1, 100), min_size=1, max_size=4).map(
    lambda sizes: [
        Device(name=f"cuda:{i}", total=size * GIB, usable=int(0.95 * size * GIB))
        for i, size in enumerate(sizes)
    ]
)


def planned_or_refused(
    devices: Sequence[Device], demands: Sequence[Demand], mode: SharingMode
) -> MemoryPlan | str:
    """The plan, or the message of its refusal."""
    try:
        return plan_memory(devices, demands, mode)
    except OutOfMemory as refused:
        return refused.message


@given(DEVICES, DEMANDS, MODES)
def test_no_plan_exceeds_a_device(devices: list[Device], demands: list[Demand], mode: SharingMode) -> None:
    plan = planned_or_refused(devices, demands, mode)
    if isinstance(plan, str):
        assert any(demand.model_id in plan for demand in demands)
        assert "too little" in plan or "devices: " in plan
        return
    assert {share.model_id for share in plan.shares} == {demand.model_id for demand in demands}
    for device in devices:
        assert plan.used(device.name) <= device.usable
        if mode == "exclusive":
            assert sum(share.device == device.name for share in plan.shares) <= 1
    for demand in demands:
        shares = plan.shares_of(demand.model_id)
        assert len({share.device for share in shares}) == len(shares) == demand.spread
        assert len({share.kv for share in shares}) == 1
        share, demand = shares[0], demand.part
        assert demand.kv_least <= share.kv <= max(demand.kv_wanted, demand.kv_least)


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("mode", ["exclusive", "mps", "time_slice"])
@given(st.lists(st.sampled_from(sorted(CATALOGUE)), min_size=1, max_size=4, unique=True))
def test_no_plan_of_real_models_exceeds_a_real_card(card: str, mode: SharingMode, names: list[str]) -> None:
    profile = CARDS[card]
    devices = devices_of(profile)
    assert devices
    run = Workload(overhead_bytes=GIB, max_sequence_length=8192)
    demands = [estimate_demand(name, CATALOGUE[name][0], run) for name in names]
    plan = planned_or_refused(devices, demands, mode)
    if isinstance(plan, str):
        assert "too little" in plan or "exclusive" in plan
        return
    for device in devices:
        assert plan.used(device.name) <= device.total


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_weights_are_counted_as_published(name: str) -> None:
    shape, parameters = CATALOGUE[name]
    assert shape.parameters == pytest.approx(parameters, rel=0.01)


def test_what_an_llm_and_an_embedder_get_of_24_gib() -> None:
    llama, _ = CATALOGUE["Llama-3.1-8B"]
    bge, _ = CATALOGUE["bge-m3"]
    card = Device(name="cuda:0", total=24 * GIB, usable=int(24 * GIB * 0.95))
    run = Workload(max_sequence_length=8192, overhead_bytes=GIB)
    plan = plan_memory(
        [card], [estimate_demand("llama", llama, run), estimate_demand("bge", bge, run)], "time_slice"
    )
    (llm,), (embedder,) = plan.shares_of("llama"), plan.shares_of("bge")
    assert llm.weights / GIB == pytest.approx(14.96, abs=0.05)  # 8.03e9 weights of 2 bytes
    assert llm.kv >= 8192 * 131072  # a sequence of full length, at 128 KiB a token
    assert embedder.kv == 0
    assert plan.used("cuda:0") <= card.usable


def test_a_refusal_says_by_how_much_and_what_would_fit() -> None:
    llama, _ = CATALOGUE["Llama-3.1-8B"]
    card = Device(name="cuda:0", total=12 * GIB, usable=12 * GIB)
    demand = estimate_demand("llama", llama, Workload(max_sequence_length=8192, overhead_bytes=GIB))
    with pytest.raises(OutOfMemory) as refused:
        plan_memory([card], [demand], "time_slice")
    assert f"{(demand.least - card.usable) / GIB:.2f} GiB too little" in refused.value.message
    assert "what would fit: 8-bit weights instead of 16-bit ones" in refused.value.message


def test_a_refusal_names_the_length_that_fits() -> None:
    llama, _ = CATALOGUE["Llama-3.1-8B"]
    card = Device(name="cuda:0", total=20 * GIB, usable=19 * GIB)
    run = Workload(max_sequence_length=32768, max_batch_size=1, overhead_bytes=GIB)
    with pytest.raises(OutOfMemory) as refused:
        plan_memory([card], [estimate_demand("llama", llama, run)], "time_slice")
    found = re.search(r"max_sequence_length (\d+)", refused.value.message)
    assert found is not None
    fitting = evolve(run, max_sequence_length=int(found[1]))
    assert plan_memory([card], [estimate_demand("llama", llama, fitting)], "time_slice").shares
    said = evolve(run, kv_bytes=6 * GIB)
    with pytest.raises(OutOfMemory, match=r"a KV cache of 2\.\d\d GiB"):
        plan_memory([card], [estimate_demand("llama", llama, said)], "time_slice")


def test_exclusive_wants_a_device_each() -> None:
    card = Device(name="cuda:0", total=GIB, usable=GIB)
    small = [Demand(model_id=name, weights=1) for name in ("a", "b")]
    with pytest.raises(OutOfMemory, match=r"exclusive requires a device of its own.*time_slice or mps"):
        plan_memory([card], small, "exclusive")
    assert len(plan_memory([card], small, "mps").shares) == 2


def test_a_model_stays_on_its_own_devices() -> None:
    cards = [Device(name=f"cuda:{i}", total=GIB, usable=GIB) for i in range(2)]
    plan = plan_memory(cards, [Demand(model_id="a", weights=1, devices=("cuda:1",))], "mps")
    assert plan.shares[0].device == "cuda:1"
    with pytest.raises(OutOfMemory, match="no device with known memory among npu:0; devices: cuda:0, cuda:1"):
        plan_memory(cards, [Demand(model_id="a", weights=1, devices=("npu:0",))], "mps")


def test_a_new_model_is_placed_beside_those_that_stay_where_they_are() -> None:
    cards = [Device(name="cuda:0", total=30, usable=30), Device(name="cuda:1", total=28, usable=28)]
    stays = Demand(model_id="stays", weights=8, devices=("cuda:0",))
    plan = plan_memory(cards, [stays, Demand(model_id="new", weights=25)], "mps")
    assert plan.shares_of("new")[0].device == "cuda:1"


def test_in_turns_only_the_largest_activations_count() -> None:
    card = Device(name="cpu", total=10, usable=10)
    demands = [Demand(model_id=name, weights=2, activations=4) for name in ("a", "b")]
    assert plan_memory([card], demands, "time_slice").used("cpu") == 8
    with pytest.raises(OutOfMemory):
        plan_memory([card], demands, "mps")


def test_left_over_memory_goes_by_weight_as_far_as_it_is_wanted() -> None:
    card = Device(name="cpu", total=100, usable=100)
    plan = plan_memory(
        [card],
        [
            Demand(model_id="big", weights=10, kv_wanted=1000, weight=3),
            Demand(model_id="small", weights=10, kv_wanted=1000, weight=1),
            Demand(model_id="modest", weights=10, kv_wanted=6, weight=1),
        ],
        "time_slice",
    )
    kv = {share.model_id: share.kv for share in plan.shares}
    assert kv == {"modest": 6, "small": 16, "big": 48}


@given(DEVICES, DEMANDS, MODES)
def test_what_is_loaded_is_planned_again_as_it_is(
    devices: list[Device], demands: list[Demand], mode: SharingMode
) -> None:
    plan = planned_or_refused(devices, demands, mode)
    if isinstance(plan, str):
        return
    met = [demand_met(plan.shares_of(demand.model_id), demand.weight) for demand in demands]
    again = plan_memory(devices, met, mode)
    assert sorted(again.shares, key=repr) == sorted(plan.shares, key=repr)


def test_what_models_take_beyond_their_plan_is_not_given_again() -> None:
    device = Device(name="cpu", total=100, usable=95)
    assert less(device, 20).usable == 75
    assert less(device, -20) == device
    assert less(device, 200).usable == 0


def test_a_model_on_several_devices() -> None:
    cards = [Device(name=f"cuda:{i}", total=size, usable=size) for i, size in enumerate((100, 80, 90))]
    wide = Demand(model_id="wide", weights=100, kv_wanted=1000, activations=5, overhead=5, spread=2)
    plan = plan_memory(cards, [wide, Demand(model_id="small", weights=60)], "time_slice")
    assert [(s.device, s.weights, s.kv, s.total) for s in plan.shares_of("wide")] == [
        ("cuda:0", 50, 30, 90),
        ("cuda:2", 50, 30, 90),
    ]
    assert plan.shares_of("small")[0].device == "cuda:1"
    with pytest.raises(
        OutOfMemory, match=r"on each of 4 devices .*fewer than 4 devices with known memory; devices:"
    ):
        plan_memory(cards, [evolve(wide, spread=4)], "mps")
    with pytest.raises(OutOfMemory, match="requires 2 devices of its own"):
        plan_memory(cards, [evolve(wide, weights=40), evolve(wide, model_id="b")], "exclusive")


def test_main_memory_is_what_the_process_may_use() -> None:
    tier = MemoryTierSpec(tier="dram", name="host", capacity_bytes=64 * GIB, usable_bytes=8 * GIB)
    (device,) = devices_of(HardwareProfile(memory_tiers=(tier,)))
    assert (device.name, device.total) == ("cpu", 8 * GIB)
    assert device.usable < 8 * GIB


class TestFractions:
    """``memory_fraction``: a budget of each device's memory, in which weights and KV must fit."""

    CARD = Device(name="cuda:0", total=20 * GIB, usable=19 * GIB)

    def test_bound_what_a_model_gets(self) -> None:
        hungry = Demand(model_id="a", weights=2 * GIB, kv_least=GIB, kv_wanted=100 * GIB, fraction=0.5)
        other = Demand(model_id="b", weights=GIB, kv_wanted=100 * GIB, fraction=0.2)
        plan = plan_memory([self.CARD], [hungry, other], "mps")
        assert plan.shares_of("a")[0].total == int(0.5 * 19 * GIB)
        assert plan.shares_of("b")[0].total == int(0.2 * 19 * GIB)

    def test_that_add_up_to_more_than_one_are_refused(self) -> None:
        models = [Demand(model_id=i, weights=GIB, fraction=f) for i, f in (("a", 0.7), ("b", 0.4))]
        with pytest.raises(
            OutOfMemory, match=r"'b' has memory_fraction 0\.4, too much .* cuda:0 \('a' 0\.7\)"
        ):
            plan_memory([self.CARD], models, "time_slice")
        second = Device(name="cuda:1", total=20 * GIB, usable=19 * GIB)
        plan = plan_memory([self.CARD, second], models, "time_slice")
        assert {plan.shares_of(i)[0].device for i in "ab"} == {"cuda:0", "cuda:1"}

    def test_in_which_the_weights_do_not_fit_are_refused_with_what_would(self) -> None:
        large = Demand(model_id="a", weights=8 * GIB, weight_bits=16, fraction=0.25)
        with pytest.raises(OutOfMemory, match=r"0\.25 of cuda:0 is 4\.75 GiB: 3\.25 GiB too little; .*8-bit"):
            plan_memory([self.CARD], [large], "time_slice")

    @pytest.mark.parametrize("fractions", [(0.7, 0.3), (0.1, 0.2, 0.3, 0.4), (1.0,)])
    def test_that_add_up_to_one_fit(self, fractions: tuple[float, ...]) -> None:
        models = [
            Demand(model_id=str(i), weights=1, kv_wanted=GIB * 99, fraction=f)
            for i, f in enumerate(fractions)
        ]
        plan = plan_memory([self.CARD], models, "mps")
        assert plan.used("cuda:0") <= self.CARD.usable

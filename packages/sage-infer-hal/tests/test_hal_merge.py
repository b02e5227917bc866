"""Profiles of one machine become one; profiles of two machines do not."""

from __future__ import annotations

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import (
    AcceleratorDescriptor,
    AcceleratorPartition,
    CpuDescriptor,
    Figure,
    HardwareProfile,
    LinkProfile,
    MemoryTierSpec,
    NumaNode,
)
from sage_infer_hal import merge_profiles

GIB = 1 << 30
TOPOLOGY = AcceleratorDescriptor(
    hardware_backend="cuda", vendor="NVIDIA", model="unknown", index=0, numa_node=1
)
LISTING = AcceleratorDescriptor(
    hardware_backend="cuda", vendor="NVIDIA", model="H100", index=0, uuid="GPU-1", pci_address="0000:c1:00.0",
    memory_bytes=80 * GIB, peak_tflops={"fp16": Figure(value=989, source="sheet")},
)  # fmt: skip
LINK = LinkProfile(source="cuda:0", target="cuda:1", kind="nvlink", vendor_code="NV12")


def one(*devices: AcceleratorDescriptor, **parts: object) -> HardwareProfile:
    return HardwareProfile(accelerators=devices, **parts)  # type: ignore[arg-type]


def test_what_one_does_not_know_another_fills_in() -> None:
    (device,) = merge_profiles([one(TOPOLOGY), one(LISTING)]).accelerators
    assert device == evolve(LISTING, numa_node=1)
    assert merge_profiles([one(LISTING), one(TOPOLOGY)]).accelerators == (device,)


def test_devices_of_several_detectors_are_in_order() -> None:
    npu = evolve(LISTING, hardware_backend="ascend", index=1)
    merged = merge_profiles([one(LISTING), one(npu), one(evolve(npu, index=0))])
    assert [(a.hardware_backend, a.index) for a in merged.accelerators] == [
        ("ascend", 0),
        ("ascend", 1),
        ("cuda", 0),
    ]


@pytest.mark.parametrize(("field", "value"), [("uuid", "GPU-2"), ("pci_address", "0000:d5:00.0")])
def test_two_identities_of_one_device_are_two_machines(field: str, value: str) -> None:
    with pytest.raises(InvalidRequest, match=f"cuda:0 has the {field} .* of different machines"):
        merge_profiles([one(LISTING), one(evolve(LISTING, **{field: value}))])


def test_a_contradiction_keeps_the_first_and_is_noted() -> None:
    merged = merge_profiles([one(LISTING), one(evolve(LISTING, model="H200", numa_node=1))])
    assert (merged.accelerators[0].model, merged.accelerators[0].numa_node) == ("H100", 1)
    assert merged.notes == ("cuda:0: model is H100 and H200; the first is kept",)


def test_sizes_that_tools_round_differently_are_no_contradiction() -> None:
    merged = merge_profiles([one(LISTING), one(evolve(LISTING, memory_bytes=80 * GIB - GIB // 2))])
    assert merged.accelerators == (LISTING,)
    assert merged.notes == ()
    far = merge_profiles([one(LISTING), one(evolve(LISTING, memory_bytes=40 * GIB))])
    assert "memory_bytes" in far.notes[0]


def test_peak_rates_are_united() -> None:
    other = evolve(
        LISTING, peak_tflops={"fp16": Figure(value=1, source="x"), "int8": Figure(value=2, source="x")}
    )
    (device,) = merge_profiles([one(LISTING), one(other)]).accelerators
    assert {name: figure.value for name, figure in device.peak_tflops.items()} == {"fp16": 989, "int8": 2}


def test_partitions_that_differ_are_noted() -> None:
    part = AcceleratorPartition(index=0)
    devices = [evolve(LISTING, partitions=[part]), evolve(LISTING, partitions=[part, evolve(part, index=1)])]
    merged = merge_profiles([one(device) for device in devices])
    assert merged.notes == ("cuda:0: partitions is 1 entries and 2 entries; the first is kept",)


def test_links_are_filled_and_contradicted_in_the_same_way() -> None:
    fast = evolve(LINK, vendor_code=None, nominal_gbs=Figure(value=300, source="a"))
    faster = evolve(fast, nominal_gbs=Figure(value=450, source="b"))
    merged = merge_profiles([one(links=[LINK]), one(links=[fast]), one(links=[faster])])
    assert merged.links == (evolve(LINK, nominal_gbs=fast.nominal_gbs),)
    assert merged.notes == ("cuda:0 → cuda:1: nominal_gbs is 300 (a) and 450 (b); the first is kept",)


def test_an_address_becomes_the_device_that_is_there() -> None:
    links = [
        LinkProfile(source="cuda:1", target="pci:0000:c1:00.0", kind="nvlink"),
        LinkProfile(source="pci:0000:99:00.0", target="cuda:1", kind="nvlink"),
    ]
    merged = merge_profiles([one(links=links), one(LISTING)])
    assert [(link.source, link.target) for link in merged.links] == [
        ("cuda:1", "cuda:0"),
        ("pci:0000:99:00.0", "cuda:1"),
    ]


def test_an_address_of_two_chips_stays_an_address() -> None:
    links = [LinkProfile(source="npu:5", target="pci:0000:c1:00.0", kind="other")]
    chips = [evolve(LISTING, index=i, uuid=None) for i in (0, 1)]
    assert merge_profiles([one(*chips, links=links)]).links == tuple(links)


def test_hosts_are_merged_too() -> None:
    cpu = CpuDescriptor(vendor="A", model="B", architecture="x86_64", sockets=2)
    node = NumaNode(index=1, cpus="0-3")
    tier = MemoryTierSpec(tier="dram", name="host", capacity_bytes=GIB)
    merged = merge_profiles(
        [
            one(cpus=[cpu], numa_nodes=[node], memory_tiers=[tier], sources=["a"], notes=["n"]),
            one(
                cpus=[evolve(cpu, cores=8, sockets=4)],
                numa_nodes=[evolve(node, index=0), evolve(node, memory_bytes=GIB, cpus="4-7")],
                memory_tiers=[evolve(tier, usable_bytes=1, capacity_bytes=2 * GIB)],
                sources=["a", "b"],
                notes=["n"],
            ),
        ]
    )
    assert merged.cpus == (evolve(cpu, cores=8),)
    assert [(n.index, n.memory_bytes) for n in merged.numa_nodes] == [(0, None), (1, GIB)]
    assert merged.memory_tiers == (evolve(tier, usable_bytes=1),)
    assert merged.sources == ("a", "b")
    assert merged.notes == (
        "n",
        f"host: capacity_bytes is {GIB} and {2 * GIB}; the first is kept",
        "B: sockets is 2 and 4; the first is kept",
        "numa:1: cpus is 0-3 and 4-7; the first is kept",
    )


devices = st.builds(
    AcceleratorDescriptor,
    hardware_backend=st.sampled_from(["cuda", "npu"]),
    vendor=st.just("V"),
    model=st.sampled_from(["unknown", "M"]),
    index=st.integers(0, 3),
    numa_node=st.none() | st.integers(0, 1),
    memory_bytes=st.none() | st.just(GIB),
)
profiles = st.builds(
    HardwareProfile,
    accelerators=st.lists(devices, unique_by=lambda a: (a.hardware_backend, a.index), max_size=4).map(tuple),
    sources=st.just(("s",)),
)


@given(st.lists(profiles, max_size=4))
def test_merging_neither_loses_nor_invents_a_device_and_again_changes_nothing(
    several: list[HardwareProfile],
) -> None:
    merged = merge_profiles(several)
    keys = [(a.hardware_backend, a.index) for a in merged.accelerators]
    assert keys == sorted({(a.hardware_backend, a.index) for p in several for a in p.accelerators})
    assert merge_profiles([merged, *several]).accelerators == merged.accelerators
    assert merge_profiles([merged]) == merged

"""The machine as text and as a drawing."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
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
from sage_infer_hal.drawing.pairs import fabrics, link_matrix, single_links
from sage_infer_hal.drawing.svg import draw
from sage_infer_hal.drawing.text import figures, link_table, numa_table, tier_table, tree
from sage_infer_hal.drawing.words import rate, size

GIB = 1 << 30
SVG = "{http://www.w3.org/2000/svg}"


def npu(index: int, **facts: object) -> AcceleratorDescriptor:
    given = {"model": "N<1>", "memory_bytes": 64 * GIB, "numa_node": index // 2} | facts
    return AcceleratorDescriptor(hardware_backend="npu", vendor="V", index=index, **given)  # type: ignore[arg-type]


def link(a: str, b: str, code: str | None, kind: str = "hccs", **facts: object) -> LinkProfile:
    return LinkProfile(source=a, target=b, kind=kind, vendor_code=code, **facts)  # type: ignore[arg-type]


def joined(count: int, code: Callable[[int, int], str]) -> list[LinkProfile]:
    return [
        link(f"npu:{a}", f"npu:{b}", code(a, b), "pcie" if code(a, b) in ("SYS", "PIX") else "hccs")
        for a, b in itertools.permutations(range(count), 2)
    ]


SPEED = Figure(value=63.0, source="table", confidence="medium")
MACHINE = HardwareProfile(
    accelerators=[
        npu(0, pci_address="0000:c1:00.0", compute_capability="910B3", board="B0",
            peak_tflops={"fp16": SPEED, "int8": SPEED}, memory_bandwidth_gbs=SPEED,
            partitions=[AcceleratorPartition(index=0, profile="half", memory_bytes=32 * GIB)]),
        npu(1), npu(2), npu(3, numa_node=None),
    ],
    links=[
        *joined(4, lambda a, b: "HCCS"),
        link("numa:0", "numa:1", None, "numa", distance=21), link("numa:1", "numa:0", None, "numa", distance=21),
        link("host", "npu:0", None, "pcie", nominal_gbs=SPEED), link("npu:0", "nic:0", "PIX", "pcie", latency_us=SPEED),
    ],
    memory_tiers=[
        MemoryTierSpec(tier="ssd", name="/", capacity_bytes=2048 * GIB, filesystem="ext4", device="nvme0n1",
                       measured_read_gbs=SPEED, measured_write_gbs=SPEED,
                       measured_random_read_iops=Figure(value=62_400, source="m"),
                       measured_random_write_iops=Figure(value=950, source="m")),
        MemoryTierSpec(tier="dram", name="host", capacity_bytes=256 * GIB, usable_bytes=64 * GIB,
                       measured_copy_gbs=SPEED),
        *(MemoryTierSpec(tier="hbm", name=f"npu:{i}", capacity_bytes=64 * GIB, nominal_gbs=SPEED) for i in range(4)),
    ],
    cpus=[CpuDescriptor(vendor="A", model="C&1", architecture="aarch64", sockets=1, cores=4, threads=8,
                        usable_threads=2, quota_cpus=1.5, isa=["sve"])],
    numa_nodes=[NumaNode(index=0, cpus="0-3", usable_cpus="0-1", memory_bytes=128 * GIB), NumaNode(index=1)],
    sources=["s"],
)  # fmt: skip


def test_tree() -> None:
    assert list(tree(MACHINE)) == [
        "machine",
        "├─ cpu: C&1 (A, aarch64), 1 socket, 4 cores, 8 threads, 2 usable, time of 1.5 CPUs granted; sve",
        "├─ numa:0: CPUs 0-3, usable 0-1, 128.0 GiB",
        "│  ├─ npu:0: N<1>, 64.0 GiB, 0000:c1:00.0, 910B3, board B0, pcie 63.0 GB/s",
        "│  │  └─ part 0: half, 32.0 GiB",
        "│  └─ npu:1: N<1>, 64.0 GiB",
        "├─ numa:1: no CPUs",
        "│  └─ npu:2: N<1>, 64.0 GiB",
        "└─ NUMA node unknown",
        "   └─ npu:3: N<1>, 64.0 GiB",
    ]


def test_tree_of_devices_alone_and_of_nothing() -> None:
    device = npu(0, numa_node=None, cpu_affinity="0-3", memory_bytes=None)
    assert list(tree(HardwareProfile(accelerators=[device]))) == ["machine", "└─ npu:0: N<1>, CPUs 0-3"]
    assert list(tree(HardwareProfile(accelerators=[npu(0)])))[1] == "└─ numa:0"
    assert list(tree(HardwareProfile())) == ["machine: no hardware found"]


def test_tables() -> None:
    table = link_table(MACHINE)
    assert table is not None
    (columns, rows), meanings = table
    assert list(columns) == ["", "npu:0", "npu:1", "npu:2", "npu:3", "nic:0"]
    assert rows[0] == ["npu:0", "X", "HCCS", "HCCS", "HCCS", "PIX"]
    assert rows[1][5] == "-"
    assert meanings == []
    assert numa_table(MACHINE) == (("", "numa:0", "numa:1"), [["numa:0", "X", "21"], ["numa:1", "21", "X"]])
    columns, tiers = tier_table(MACHINE)
    assert [row[0] for row in tiers] == ["hbm"] * 4 + ["dram", "ssd"]
    assert dict(zip(columns, tiers[5], strict=True)) == {
        "TIER": "ssd", "NAME": "/", "CAPACITY": "2.0 TiB", "USABLE": "-", "NOMINAL": "-", "READ": "63.0 GB/s",
        "WRITE": "63.0 GB/s", "COPY": "-", "4K READ": "62k/s", "4K WRITE": "950/s", "WHERE": "ext4 on nvme0n1",
    }  # fmt: skip
    assert link_table(HardwareProfile()) is None
    assert numa_table(HardwareProfile()) is None


def test_codes_are_explained_by_what_they_carry() -> None:
    profile = HardwareProfile(
        accelerators=[npu(0), npu(1)],
        links=[
            link("npu:0", "npu:1", None, "xgmi", nominal_gbs=SPEED, measured_gbs=evolve(SPEED, value=50.0))
        ],
    )
    table = link_table(profile)
    assert table is not None
    assert table[1] == [
        "xgmi: 50.0 GB/s each way, measured (table)",
        "xgmi: 63.0 GB/s each way, nominal (table)",
    ]


def test_every_figure_is_listed_with_its_source() -> None:
    rows = figures(MACHINE)
    assert ("npu:0", "peak fp16", "63 TFLOP/s", "medium", "table") in rows
    assert ("npu:0", "peak int8", "63 TOP/s", "medium", "table") in rows
    assert ("npu:0", "memory bandwidth", "63.0 GB/s", "medium", "table") in rows
    assert ("npu:0 → nic:0", "latency", "63 µs", "medium", "table") in rows
    assert ("ssd /", "random 4 KiB reads", "62k/s", "high", "m") in rows
    assert ("hbm npu:0-3", "nominal bandwidth", "63.0 GB/s", "medium", "table") in rows  # four that are alike
    assert len(rows) == 3 + 2 + 5 + 1


def test_devices_that_are_alike_share_their_figures() -> None:
    devices = [
        evolve(npu(i), peak_tflops={"fp16": SPEED if i < 3 else evolve(SPEED, value=7.0)}) for i in range(5)
    ]
    rows = figures(HardwareProfile(accelerators=devices))
    assert [row[:3] for row in rows if row[1] == "peak fp16"] == [
        ("npu:0-2", "peak fp16", "63 TFLOP/s"),
        ("npu:3-4", "peak fp16", "7 TFLOP/s"),
    ]


def test_words() -> None:
    assert [size(n) for n in (None, 1 << 20, 3 << 29, 5 << 40)] == ["-", "1.0 MiB", "1.5 GiB", "5.0 TiB"]
    assert rate(None) == "-"


# --- groups of accelerators


def groups(links: list[LinkProfile], count: int) -> tuple[list[tuple[str, int]], int]:
    matrix = link_matrix(HardwareProfile(accelerators=[npu(i) for i in range(count)], links=links))
    found = fabrics(matrix)
    return [(group.code, len(group.members)) for group in found], len(single_links(matrix, found))


def test_all_joined_to_all_is_one_group() -> None:
    assert groups(joined(8, lambda a, b: "NV18"), 8) == ([("NV18", 8)], 0)


def test_dies_of_one_package_inside_a_group() -> None:
    assert groups(joined(8, lambda a, b: "SIO" if a // 2 == b // 2 else "HCCS_SW"), 8) == (
        [("HCCS_SW", 8)],
        4,
    )


def test_two_groups_over_pcie() -> None:
    assert groups(joined(8, lambda a, b: "HCCS" if a // 4 == b // 4 else "SYS"), 8) == (
        [("HCCS", 4), ("HCCS", 4)],
        0,
    )


def test_pairs_and_rings_are_single_links() -> None:
    assert groups(joined(4, lambda a, b: "NV4" if a // 2 == b // 2 else "SYS"), 4) == ([], 2)
    assert groups(joined(5, lambda a, b: "XL" if (a - b) % 5 in (1, 4) else "SYS"), 5) == ([], 5)


def test_one_direction_only_is_a_single_link() -> None:
    assert groups([link("npu:0", "npu:1", "HCCS")], 2) == ([], 1)
    assert groups([link("npu:0", "npu:1", "HCCS"), link("npu:1", "npu:0", "SYS", "pcie")], 2) == ([], 1)


def test_the_better_of_two_links_is_shown() -> None:
    links = [
        link("npu:0", "npu:1", "SYS", "pcie"),
        link("npu:0", "npu:1", "HCCS"),
        link("npu:0", "npu:1", "PIX", "pcie"),
    ]
    matrix = link_matrix(HardwareProfile(accelerators=[npu(0), npu(1)], links=links))
    assert matrix.cells["npu:0", "npu:1"].vendor_code == "HCCS"


# --- the drawing


def texts(document: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(document).iter(f"{SVG}text")]


def test_a_drawing_names_everything() -> None:
    shown = texts(draw(MACHINE))
    for text in (
        "4 × N<1> · C&1 (8 threads)", "numa:0", "numa:1", "NUMA node unknown", "CPUs 0-3 · 128.0 GiB", "npu:3",
        "1 parts",
        "0000:c1:00.0", "HCCS: 4 devices, fully connected", "21", "PIX", "Memory tiers",
        "hbm  npu:0 … npu:3  4 × 64.0 GiB", "dram  host  256.0 GiB, 64.0 GiB usable",
        "read 63.0 GB/s, write 63.0 GB/s, 4 KiB 62k/s", "nominal 63.0 GB/s",
    ):  # fmt: skip
        assert text in shown, text


def test_a_drawing_of_single_links_names_both_directions() -> None:
    links = [
        link("npu:0", "npu:1", "HCCS"), link("npu:1", "npu:0", "HCCS_SW"), link("npu:2", "npu:3", "SIO"),
        link("npu:1", "npu:2", "XX", "pcie"),
    ]  # fmt: skip
    shown = texts(
        draw(HardwareProfile(accelerators=[npu(i, model="unknown") for i in range(4)], links=links))
    )
    assert "HCCS ⇄ HCCS_SW" in shown
    assert "SIO ⇄ ?" in shown
    assert "4 × device of unknown model" in shown


def test_long_names_are_cut_and_kept_as_titles() -> None:
    document = draw(
        HardwareProfile(accelerators=[npu(0, model="An accelerator with a name that is very long")])
    )
    titles = [element.text for element in ElementTree.fromstring(document).iter(f"{SVG}title")]
    assert "An accelerator with a name that is very long" in titles


@pytest.mark.parametrize("count", [0, 1, 4, 5, 16])
def test_everything_is_on_the_page(count: int) -> None:
    devices = [npu(i, numa_node=i // 8) for i in range(count)]
    root = ElementTree.fromstring(
        draw(HardwareProfile(accelerators=devices, links=joined(count, lambda a, b: "HCCS")))
    )
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    boxes = [b for b in root.iter(f"{SVG}rect") if b.attrib["width"] != "100%"]
    for box in boxes:
        assert float(box.attrib["x"]) + float(box.attrib["width"]) <= width
        assert float(box.attrib["y"]) + float(box.attrib["height"]) <= height


@given(st.lists(st.sampled_from(["HCCS", "SYS", "PIX", "SIO"]), min_size=12, max_size=12))
def test_any_wiring_is_drawn(codes: list[str]) -> None:
    pairs = dict(zip(itertools.permutations(range(4), 2), codes, strict=True))
    links = joined(4, lambda a, b: pairs[a, b])
    assert ElementTree.fromstring(draw(evolve(MACHINE, links=tuple(links)))).tag == f"{SVG}svg"

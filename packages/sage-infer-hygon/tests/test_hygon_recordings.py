"""Every recording of hy-smi and rocm-smi, against what a person reads in it; and outputs that no recording shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from sage_infer.errors import ToolOutputError
from sage_infer.schemas import HardwareProfile
from sage_infer_hal.detection import UNCOUNTED
from sage_infer_hygon.recordings import read

DATA = Path(__file__).parent / "data"
MIB = 2**20
AMD_TOPOLOGY = "_format-proxy-rocm-smi-showtopo-amd-mi300-class-x8.txt"


def profile(name: str) -> HardwareProfile:
    return read((DATA / name).read_text("utf-8"), name=name)


def test_every_recording_is_read_here() -> None:
    tested = Path(__file__).read_text("utf-8")
    missing = [path.name for path in DATA.glob("[!S]*.*") if path.name not in tested]
    assert missing == []


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("hy-smi-300w-x4-mode-na-dtk24.04.txt", 4),
        ("hy-smi-8w-x8-loaded.txt", 8),
        ("hy-smi-bw-800w-x8-decenc.txt", 8),
        ("hy-smi-k100ai-400w-x8-full.txt", 8),
        ("hy-smi-k100ai-x4of8-dtk24.04.1.txt", 4),
        ("hy-smi-mig-table-bw.txt", 2),
        ("rocm-smi-old-280w-x4.txt", 4),
    ],
)
def test_tables_show_numbers_only(name: str, count: int) -> None:
    found = profile(name)
    assert [(a.index, a.model, a.memory_bytes) for a in found.accelerators] == [
        (index, "unknown", None) for index in range(count)
    ]
    assert found.notes[0] == "this output does not show: names, memory, bus ids"
    assert found.sources == ("hy-smi",)


def test_a_divided_card_is_noted() -> None:
    assert profile("hy-smi-mig-table-bw.txt").notes[1:] == (
        UNCOUNTED,
        "divided into instances (MIG), which this output does not show: hygon:1",
    )


def test_product_names_of_eight() -> None:
    found = profile("hy-smi-a-excerpt-k100ai-x8.txt")
    assert [(a.index, a.model) for a in found.accelerators] == [(index, "K100_AI") for index in range(8)]
    assert found.accelerators[0].peak_tflops["int8"].value == 392
    assert found.accelerators[0].compute_capability == "gfx928"
    assert found.notes == ("this output does not show: memory, bus ids", UNCOUNTED)


def test_available_memory_is_not_the_devices_memory() -> None:
    found = profile("hy-smi-showmemavailable-k100ai-x8.txt")
    assert [(a.index, a.memory_bytes) for a in found.accelerators] == [(index, None) for index in range(8)]
    assert found.notes[1] == "available memory is the free memory, not the device's total"


def test_used_memory_is_not_the_devices_memory() -> None:
    found = profile("rocm-smi-use-vram-text-x8.txt")
    assert [(a.index, a.memory_bytes) for a in found.accelerators] == [(index, None) for index in range(8)]


def test_csv_counts_cards_from_one() -> None:
    found = profile("rocm-smi-use-memuse-csv-x4-dtk22.10.txt")
    assert [a.index for a in found.accelerators] == [1, 2, 3, 4]
    assert found.notes[1:] == (UNCOUNTED, "the first card shown is number 1; HIP counts devices from 0")


def test_json_of_bus_ids_with_serial_and_slot_behind_them() -> None:
    found = profile("hy-smi-json-showbus-bw.json")
    assert [(a.index, a.pci_address) for a in found.accelerators] == [
        (0, "0000:09:00.0"),
        (1, "0000:36:00.0"),
    ]


def test_json_of_memory() -> None:
    found = profile("hy-smi-json-showmeminfo-bw.json")
    assert [(a.index, a.memory_bytes) for a in found.accelerators] == [(0, 65520 * MIB), (1, 65520 * MIB)]


def test_json_of_names_leaves_the_chip_of_a_bw_open() -> None:
    found = profile("hy-smi-json-showproductname-bw.json")
    assert [(a.index, a.model, dict(a.peak_tflops)) for a in found.accelerators] == [
        (0, "BW", {}),
        (1, "BW", {}),
    ]
    assert "BW1000, BW1100, BW150" in found.notes[1]


def test_json_of_unique_ids() -> None:
    found = profile("hy-smi-json-showuniqueid-bw.json")
    assert [(a.index, a.uuid) for a in found.accelerators] == [(0, "TCA24620040801"), (1, "TAP34123070901")]


def test_the_driver_alone() -> None:
    found = profile("hy-smi-showdriverversion-bw.txt")
    assert found.accelerators == ()
    assert found.sources == ("hy-smi", "Hygon driver 6.3.31-V1.5.0a")


def test_amds_topology_is_no_hygon_machine() -> None:
    with pytest.raises(
        ToolOutputError, match=r"line 2: expected DCU or HCU: this is the output of AMD's rocm-smi"
    ):
        profile(AMD_TOPOLOGY)


def test_the_same_topology_with_hygons_labels() -> None:
    lines = (DATA / AMD_TOPOLOGY).read_text("utf-8").replace("GPU", "HCU").splitlines()
    text = "\n".join(line for line in lines if "AMD" not in line).replace("XGMI", "HSW")
    text = text.replace("Numa Node: 1", "Numa Node\t 1")  # as newer releases print it
    found = read(text, name="topo.txt")
    assert [a.numa_node for a in found.accelerators] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert len(found.links) == 56
    assert {(link.kind, link.vendor_code, link.hops) for link in found.links} == {("other", "HSW", 1)}
    assert ("hygon:0", "hygon:7") in {(link.source, link.target) for link in found.links}


# --- outputs that no recording shows

PCIE = """\
=============================== Link Type between two HCUs ===============================
       HCU0         HCU1
HCU0   0            PCIE
HCU1   XGMI         0
======================================= Numa Nodes =======================================
HCU[0]          : (Topology) Numa Node: 0
HCU[1]          : (Topology) Numa Node: -1
"""
TEXT = """\
DCU[0]		: Card Series:		Z100SM
DCU[0]		: Card Vendor:		HYGON
DCU[0]		: PCI Bus: 0000:04:00.0
DCU[0]		: vram Total Memory (B): 34342961152
DCU[0]		: vram Total Used Memory (B): 5828608
DCU[0]		: GFX Version: gfx906
DCU[0]		: Temperature (Sensor edge) (C): 40.0
DCU[0]		: Temperature (Sensor mem) (C): 41.0
"""


def test_a_link_table_without_hops_that_is_not_symmetric() -> None:
    found = read(PCIE, name="topo.txt")
    assert [(link.source, link.kind, link.hops) for link in found.links] == [
        ("hygon:0", "pcie", None), ("hygon:1", "xgmi", None),
    ]  # fmt: skip
    assert "not symmetric" in found.notes[-1]
    assert [a.numa_node for a in found.accelerators] == [0, None]


def test_text_of_dtk_with_bytes() -> None:
    found = read(TEXT, name="a.txt")
    (card,) = found.accelerators
    assert (card.model, card.pci_address, card.memory_bytes) == ("Z100SM", "0000:04:00.0", 34342961152)
    assert card.compute_capability == "gfx906"


def test_labels_of_amd_are_taken_where_the_vendor_is_hygon() -> None:
    assert read(TEXT.replace("DCU[", "GPU["), name="a.txt").accelerators[0].model == "Z100SM"


def test_names_in_csv() -> None:
    text = 'device,Card series,Card vendor\ncard0,K100_AI,"Chengdu C-3000 IC Design Co., Ltd."\n'
    found = read(text, name="c.csv")
    assert [(a.index, a.model) for a in found.accelerators] == [(0, "K100_AI")]


def test_no_card_is_an_empty_machine() -> None:
    found = read("WARNING: No DCUs found\n", name="none.txt")
    assert (found.accelerators, found.notes) == ((), ("WARNING: No DCUs found",))


TABLE = (DATA / "rocm-smi-old-280w-x4.txt").read_text("utf-8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TABLE.replace("30.0c  38.0W", "38.0W  30.0c"), "line 4: expected a value under Temp"),
        (TABLE.replace("1    30.0c", "30.0c"), "line 5: expected a number and 7 cells under DCU Temp"),
        (TABLE.replace("1    30.0c", "0    30.0c"), "lists hygon:0 more than once"),
        (TABLE.replace("DCU", "GPU"), "this is the output of AMD's rocm-smi"),
        (TEXT.replace("HYGON", "Advanced Micro Devices, Inc. [AMD/ATI]"), "AMD's rocm-smi"),
        (TEXT.replace("HYGON", "Somebody"), "line 2: expected a card that Hygon made"),
        (TEXT.replace("0000:04:00.0", "there"), "line 3: expected a bus id such as 0000:09:00.0"),
        (TEXT.replace("34342961152", "32 GB"), "line 4: expected a whole number for 'vram total memory (b)'"),
        (TEXT + "DCU[0]\t\t: Card Series: K100\n", "one value of 'card series' for DCU[0]"),
        (TEXT + "DCU[1] : nothing\n", "line 9: expected a key and its value"),
        (PCIE.replace("Numa Node: 0", "Numa Node: x"), "the number of a NUMA node"),
        (PCIE.replace("PCIE", "15  "), "the table of link types holds '15'"),
        (PCIE + PCIE, "one section 'Link Type between two HCUs'"),
        ('{"card0": {"PCI Bus": "x"}}', "a bus id such as"),
        ('{"card0": {"Card Vendor": "Advanced Micro Devices, Inc."}}', "AMD's rocm-smi"),
        ('{"card0": 1,\n"card1": {}}', "card0 must be an object"),
        ('{"card0": {', "expected JSON"),
        ("device,DCU use (%)\ncard0", "line 2: expected a card and 1 cells under device"),
        ("device,DCU use (%)\ncard0,1\ncard0,1", "one line for card0"),
    ],
)  # fmt: skip
def test_errors_name_the_line(text: str, message: str) -> None:
    with pytest.raises(ToolOutputError) as caught:
        read(text, name="rec.txt")
    assert str(caught.value).startswith("rec.txt: ")
    assert message in str(caught.value)

"""Every recording of xpu-smi, against what a person reads in it; and outputs that no recording shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from sage_infer.errors import ToolOutputError
from sage_infer.schemas import HardwareProfile
from sage_infer.schemas.codec import to_json
from sage_infer_kunlunxin.chips import CHIPS
from sage_infer_kunlunxin.recordings import read

DATA = Path(__file__).parent / "data"
GIB = 2**30


def profile(name: str) -> HardwareProfile:
    return read((DATA / name).read_text("utf-8"), name=name)


def devices(found: HardwareProfile) -> list[tuple[int, str, str | None, float | None]]:
    return [
        (a.index, a.model, a.pci_address, a.memory_bytes and a.memory_bytes / GIB) for a in found.accelerators
    ]


def test_every_recording_is_read_here() -> None:
    tested = Path(__file__).read_text("utf-8")
    missing = [path.name for path in DATA.glob("*.txt") if path.name not in tested]
    assert missing == []


@pytest.mark.parametrize(
    ("name", "driver", "buses"),
    [
        ("xpu-smi-p800-oam-x8-v5.0.21.26.txt", "5.0.21.26", "52 55 63 66 9a 9b aa ab"),
        ("xpu_smi-p800-oam-x8-v5.0.21.21.txt", "5.0.21.21", "03 05 63 65 83 85 a3 a5"),
    ],
)
def test_eight_p800(name: str, driver: str, buses: str) -> None:
    found = profile(name)
    assert devices(found) == [(n, "P800 OAM", f"0000:{bus}:00.0", 96) for n, bus in enumerate(buses.split())]
    assert found.sources == ("xpu-smi 5.0.21", f"Kunlunxin driver {driver}")
    assert found.notes == ()
    assert found.accelerators[0].peak_tflops["fp16"].confidence == "low"


def test_list_of_uuids() -> None:
    found = profile("xpu-smi-L-p800-x8.txt")
    assert devices(found) == [(index, "P800 OAM", None, None) for index in range(8)]
    assert [a.uuid for a in found.accelerators] == [
        "GPU-ed733bb8-c4a8-5bb5-9431-14512597fc12",
        "GPU-b3509946-0bc6-5744-bd7c-a0b87dadef02",
        "GPU-09d75c76-1b13-5686-a3d2-a9647e48f619",
        "GPU-9429f5bd-7d13-5cc5-b1b4-c05ddc572f57",
        "GPU-b7942319-362e-5a53-a8eb-a2d06fbe84f6",
        "GPU-f396486d-9850-50e4-81c4-50f2e9f6ca87",
        "GPU-9e24d168-db57-5cd9-8cfb-aea4ae898897",
        "GPU-4922595e-feb9-5762-9082-d8fd7f11abf5",
    ]


def test_query_of_one_of_two() -> None:
    found = profile("xpu-smi-q-p800-pcie.txt")
    assert devices(found) == [(0, "P800 PCIe", "0000:01:00.0", 96)]  # and not the 96 MiB of L3
    (card,) = found.accelerators
    assert (card.uuid, card.board) == ("GPU-420716f2-9928-5108-a5b2-e6b7cf36b37c", None)
    assert "02K0MA0258D0007R" not in to_json(found)
    assert found.sources == ("xpu-smi 10.2", "Kunlunxin driver 5.0.21.26")
    assert found.notes == ("2 XPUs are attached, and this output describes 1",)


def test_line_for_programs() -> None:
    found = profile("xpu_smi-m-p800-oam-x2.txt")
    assert devices(found) == [(0, "P800 OAM", "0000:03:00.0", 96), (1, "P800 OAM", "0000:05:00.0", 96)]
    assert [a.board for a in found.accelerators] == [None, None]
    assert "02K15K624CV" not in to_json(found)


def test_r300_with_masked_serials() -> None:
    found = profile("xpu_smi-r300-x2-rt4.31.txt")
    assert devices(found) == [(0, "R300", "0000:53:00.0", 32), (1, "R300", "0000:56:00.0", 32)]
    assert [a.board for a in found.accelerators] == [None, None]
    assert found.sources == ("xpu-smi 4.31", "Kunlunxin driver 4.0")


def test_topology_of_two_meshes_with_cross_links_of_which_one_is_printed_one_way() -> None:
    found = profile("xpu-smi-topo-m-p800-x8-nic5-hypercube.txt")
    assert [(a.index, a.numa_node, a.cpu_affinity) for a in found.accelerators] == [
        *((n, 0, "0-51,104-155") for n in range(4)), *((n, 1, "52-103,156-207") for n in range(4, 8)),
    ]  # fmt: skip
    codes = {(link.source, link.target): link.vendor_code for link in found.links}
    for a in range(8):
        for b in range(8):
            if a == b:
                continue
            near = a // 4 == b // 4 or (abs(a - b) == 4 and (a, b) != (0, 4))
            assert codes[f"kunlunxin:{a}", f"kunlunxin:{b}"] == ("XL" if near else "SYS"), (a, b)
    nics = [f"nic:mlx5_{n}" for n in range(5)]
    assert [codes["kunlunxin:0", nic] for nic in nics] == ["NODE", "PIX", "NODE", "SYS", "SYS"]
    assert [codes["kunlunxin:3", nic] for nic in nics] == ["NODE", "NODE", "PIX", "SYS", "SYS"]
    assert [codes["kunlunxin:7", nic] for nic in nics] == ["SYS", "SYS", "SYS", "NODE", "PIX"]
    assert {link.kind for link in found.links if link.vendor_code == "XL"} == {"xpu-link"}
    assert {link.kind for link in found.links if link.vendor_code != "XL"} == {"pcie"}
    assert found.notes[-1] == (
        "the link table is not symmetric, both directions are kept: "
        "kunlunxin:0 → kunlunxin:4 SYS, kunlunxin:4 → kunlunxin:0 XL"
    )


# --- outputs that no recording shows

K200 = """\
Runtime Version: 4.0
Driver Version: 4.0
  DEVICES
-------------------------------------------------------------------------------------------------------
| DevID |   PCI Addr   | Model |        SN        |    INODE   | State | UseRate |     L3     |    Memory     |
-------------------------------------------------------------------------------------------------------
|     0 | 0000:06:00.0 | K200  | 0200210302000998 | /dev/xpu0  |     N |     0 % | 14 / 16 MB | 504 / 8064 MB |
|     1 | 0000:06:00.0 | K200  | 0200210302000998 | /dev/xpu1  |     N |     0 % | 14 / 16 MB | 504 / 8064 MB |
-------------------------------------------------------------------------------------------------------
"""
DIVIDED = """\
| DevID |   PCI Addr   | Model       |    INODE   |    L3     |    Memory   |
|     0 | 0000:01:00.0 | R200-PF     | /dev/xpu0  | 0 / 63 MB | 0 / 13568 MB|
|     1 | 0000:01:01.0 | R200-VF-5G  | /dev/xpu1  | 0 / 15 MB | 0 / 4006 MB |
"""
TABLE = (DATA / "xpu_smi-p800-oam-x8-v5.0.21.21.txt").read_text("utf-8")
QUERY = (DATA / "xpu-smi-q-p800-pcie.txt").read_text("utf-8")
MACHINE = (DATA / "xpu_smi-m-p800-oam-x2.txt").read_text("utf-8")
TOPOLOGY = (DATA / "xpu-smi-topo-m-p800-x8-nic5-hypercube.txt").read_text("utf-8")


def test_two_devices_of_a_k200_share_address_and_board() -> None:
    found = read(K200, name="k200.txt")
    assert devices(found) == [(n, "K200", "0000:06:00.0", 8064 / 1024) for n in (0, 1)]
    assert {a.board for a in found.accelerators} == {"board 0"}
    assert "0200210302000998" not in to_json(found)


def test_a_divided_card_is_not_counted_beside_its_parts() -> None:
    found = read(DIVIDED, name="vf.txt")
    assert devices(found) == [(1, "R200-VF-5G", "0000:01:01.0", 4006 / 1024)]
    assert found.notes == (
        "kunlunxin:0 (R200-PF) is divided and only controls its parts; it is left out",
        "the sections below DEVICES are missing: devices at the end may be, too",
    )


def test_a_table_without_l3_line() -> None:
    lines = [line for line in TABLE.splitlines() if "L3-Usage" not in line and "Disabled |" not in line]
    assert devices(read("\n".join(lines), name="t.txt")) == devices(read(TABLE, name="t.txt"))


def test_uuid_in_brackets() -> None:
    found = read("XPU 0: P800 OAM (UUID: GPU-ed733bb8-c4a8-5bb5-9431-14512597fc12)", name="l.txt")
    assert found.accelerators[0].uuid == "GPU-ed733bb8-c4a8-5bb5-9431-14512597fc12"


def test_numbers_by_order_where_all_are_described() -> None:
    text = QUERY.replace("Attached XPUs                             : 2", "Attached XPUs : 1")
    lines = [line for line in text.splitlines() if "Minor Number" not in line]
    assert [a.index for a in read("\n".join(lines), name="q.txt").accelerators] == [0]


def test_network_cards_without_a_legend_keep_their_label() -> None:
    found = read(" XPU0 NIC0\nXPU0 X PIX\nNIC0 PIX X\n", name="t.txt")
    assert [(link.source, link.target) for link in found.links] == [
        ("kunlunxin:0", "nic:NIC0"), ("nic:NIC0", "kunlunxin:0"),
    ]  # fmt: skip


def test_no_card_is_an_empty_machine() -> None:
    found = read("No devices were found\n", name="none.txt")
    assert (found.accelerators, found.notes) == ((), ("No devices were found",))
    head = "\n".join(TABLE.splitlines()[:8])
    with pytest.raises(ToolOutputError, match=r"xpu-smi 5.0.21, line 8: expected a row of a device"):
        read(head, name="empty.txt")


INTEL = """\
+-----------+--------------------------------------------------------------------------------------+
| Device ID | Device Information                                                                   |
+-----------+--------------------------------------------------------------------------------------+
| 0         | Device Name: Intel(R) Data Center GPU Max 1550                                       |
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (INTEL, "line 2: expected an output of Kunlunxin's xpu-smi; this one is of Intel's tool"),
        (TABLE.replace("00000000:03:00.0", "03-00"), "xpu-smi 5.0.21, line 9: expected a bus id"),
        (TABLE.replace("0MiB / 98304MiB", "98304MiB"), "line 10: expected memory as used / total"),
        (TABLE.replace("|   1  P800 OAM           N/A ", "|   1  P800 OAM               "), "a persistence mode"),
        (TABLE.replace("|   1  P800 OAM ", "|   0  P800 OAM "), "lists kunlunxin:0 more than once"),
        (K200.replace("/dev/xpu1", "/dev/xpu7"), "line 8: expected the device node /dev/xpu1"),
        (K200.replace("| K200  ", "| 200   "), "a device's number and its model"),
        (K200.replace("| /dev/xpu0  ", ""), "line 7: expected 9 cells under DevID"),
        (QUERY.replace("Bus Id                            : 00000000:01:00.0", "Bus Id : 00000000:02:00.0"),
         "the bus id of the heading"),
        (QUERY.replace("Minor Number                          : 0", "Minor Number : one"), "a number"),
        (QUERY.replace("Minor Number ", "Minor "), "a Minor Number below"),
        (QUERY.replace(": 98304 MiB", ": 96 GB"), "a total in MiB"),
        (QUERY + "    Product Name : other\n", "Product Name once for a device"),
        ("XPU 0: P800 OAM\n", "XPU, its number, its name and its UUID"),
        (MACHINE.replace(" 96 90440", " 90440"), "the name in quotes as field 22"),
        (MACHINE.replace("90440 98304", "98304 90440"), "used and total MiB as fields 18 and 19"),
        (MACHINE.replace('OAM" 0', "OAM 0", 1), "fields, the name in quotes"),
        (TOPOLOGY.replace("0-51,104-155 0", "0-51,104-155 zero"), "a NUMA node under NUMA Affinity"),
    ],
)  # fmt: skip
def test_errors_name_version_and_line(text: str, message: str) -> None:
    with pytest.raises(ToolOutputError) as caught:
        read(text, name="rec.txt")
    assert str(caught.value).startswith("rec.txt: ")
    assert message in str(caught.value)


def test_rates_are_of_precisions_that_the_chip_has_and_names_are_of_one_chip() -> None:
    for chip in CHIPS:
        assert not chip.precisions or set(chip.tflops) <= set(chip.precisions), chip.names
    names = [name for chip in CHIPS for name in chip.names]
    assert len(set(names)) == len(names)

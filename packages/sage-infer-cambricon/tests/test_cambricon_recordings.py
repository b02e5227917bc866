"""Every recording of cnmon, against what a person reads in it; and outputs that no recording shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sage_infer.errors import ToolOutputError
from sage_infer.schemas import HardwareProfile
from sage_infer_cambricon.chips import CHIPS
from sage_infer_cambricon.recordings import read
from sage_infer_hal.detection import NO_PROCESSES, UNCOUNTED

DATA = Path(__file__).parent / "data"
MIB = 2**20


def profile(name: str) -> HardwareProfile:
    return read((DATA / name).read_text("utf-8"), name=name)


def devices(found: HardwareProfile) -> list[tuple[int, str, str | None, float | None]]:
    return [
        (a.index, a.model, a.pci_address, a.memory_bytes and a.memory_bytes / MIB) for a in found.accelerators
    ]


def test_every_recording_is_read_here() -> None:
    tested = Path(__file__).read_text("utf-8")
    missing = [path.name for path in DATA.glob("[!S]*.*") if path.name not in tested]
    assert missing == []


def test_two_mlu370_x4() -> None:
    found = profile("cnmon-mlu370-x4-x2-v5.10.10.txt")
    assert devices(found) == [
        (0, "MLU370-X4", "0000:1b:00.0", 23308), (1, "MLU370-X4", "0000:36:00.0", 23308),
    ]  # fmt: skip
    assert found.sources == ("cnmon 5.10.10", "Cambricon driver 5.10.10")
    assert found.notes == (NO_PROCESSES,)


def test_a_mlu370_x8_card_is_two_devices_with_half_of_its_figures() -> None:
    found = profile("cnmon-mlu370-x8-x2-v5.10.13.txt")
    assert devices(found) == [
        (0, "MLU370-X8", "0000:39:00.0", 23374), (1, "MLU370-X8", "0000:3d:00.0", 23374),
    ]  # fmt: skip
    assert found.sources == ("cnmon 5.10.13", "Cambricon driver 5.10.13")
    assert found.notes == ("an MLU370-X8 card is two devices; `lspci -tv` shows which two share a card",)
    assert found.accelerators[0].peak_tflops["int8"].value == 128
    assert found.accelerators[0].memory_bandwidth_gbs is not None
    assert found.accelerators[0].memory_bandwidth_gbs.value == 307


def test_masked_names_and_sizes_stay_unknown() -> None:
    found = profile("cnmon-mluxxx-masked-x8-v5.10.31.txt")
    buses = ("4f", "53", "6f", "73", "af", "b3", "cf", "d3")
    assert devices(found) == [(n, "MLUXXX-XX", f"0000:{bus}:00.0", None) for n, bus in enumerate(buses)]
    assert found.memory_tiers == ()
    assert found.notes == (
        "the name of card 0, 1, 2, 3, 4, 5, 6, 7 is masked",
        "the memory of card 0, 1, 2, 3, 4, 5, 6, 7 is not a number",
    )


def test_info_of_an_excerpt_says_what_is_missing() -> None:
    found = profile("cnmon-info-excerpt-mlu370-s4-v4.20.18.txt")
    assert devices(found) == [(0, "MLU370-S4", None, 23308)]
    assert found.sources == ("cnmon 4.20.18", "Cambricon driver 4.20.18")
    assert found.notes == ("card 0: the recording does not show its bus id, its UUID", UNCOUNTED)


def test_info_with_uuid_and_pci() -> None:
    found = profile("cnmon-info-excerpt-mlu370-x4-v5.10.22.txt")
    assert devices(found) == [(0, "MLU370-X4", "0000:01:00.0", 23308)]  # and not a process's 15829 MiB
    assert found.accelerators[0].uuid == "77013006-2457-0000-0000-000000000000"
    assert found.notes == (UNCOUNTED,)


def test_rings_join_eight_devices() -> None:
    found = profile("device-plugin-cntopo.json")
    assert [a.index for a in found.accelerators] == list(range(8))
    pairs = {
        (5, 4), (5, 1), (5, 0), (5, 7), (4, 1), (4, 0), (4, 6), (1, 0),
        (1, 3), (0, 2), (7, 6), (7, 3), (7, 2), (6, 3), (6, 2), (3, 2),
    }  # fmt: skip
    assert {(link.source, link.target) for link in found.links} == {
        (f"cambricon:{a}", f"cambricon:{b}") for one, other in pairs for a, b in ((one, other), (other, one))
    }
    assert {(link.kind, link.vendor_code) for link in found.links} == {("mlu-link", "interlaken")}
    assert found.notes[1] == (
        "joined by several ports: cambricon:0–cambricon:1 (2), cambricon:2–cambricon:3 (2), "
        "cambricon:4–cambricon:5 (2), cambricon:6–cambricon:7 (2)"
    )


def test_answers_of_libcndev() -> None:
    found = profile("device-plugin-mock.json")
    assert devices(found) == [
        *((n, "MLU290", f"0000:0c:0d.{n + 1}", 16384) for n in range(7)), (7, "MLU290", None, 16384),
    ]  # fmt: skip
    assert [a.uuid for a in found.accelerators] == [
        f"{n}0001012-1916-0000-0000-000000000000" for n in range(1, 9)
    ]
    assert "cambricon:7: [0, 12, 13, 8] is no PCI address" in found.notes  # there is no function 8
    # Port 5 of devices 0 and 1 is up and leads to a uuid that starts with "d": none of these.
    assert "MLU-Links to devices that are not listed: 2" in found.notes
    ends = {
        index: {link.target for link in found.links if link.source == f"cambricon:{index}"}
        for index in (0, 4)
    }
    assert ends[0] == {f"cambricon:{n}" for n in (1, 2, 3, 4)}
    assert ends[4] == {f"cambricon:{n}" for n in (0, 5, 6, 7)}


# --- outputs that no recording shows

V4 = """\
+------------------------------------------------------------------------------+
| CNMON v4.20.11                                                               |
+-------------------------------+----------------------+-----------------------+
| Card  VF  Name       Firmware | Inited        Driver | Util        Ecc-Error |
| Fan   Temp      Pwr:Usage/Cap |         Memory-Usage |         vMemory-Usage |
|===============================+======================+=======================|
| 0     /   MLU370-X4    v1.1.6 | On          v4.20.11 | 0%          N/A       |
|  0%   32C         30 W/ 150 W |     0 MiB/ 23308 MiB | 10240 MiB/1048576 MiB |
+-------------------------------+----------------------+-----------------------+
"""
V5 = (DATA / "cnmon-mlu370-x8-x2-v5.10.13.txt").read_text("utf-8")
JSON = {
    "CnmonInfo": [
        {
            "CardNum": 0,
            "ProductName": "MLU590-M9",
            "UUID": "00000000-0000-0000-0000-5a0000000001",
            "PhysicalMemUsage": {"Total": "98304", "Used": "0"},
            "PCI": {"DomainID": "0000", "Bus": "4F", "Device": "00", "Function": "0"},
        },
        {"CardNum": "1", "ProductName": "MLU590-M9", "UUID": "N/A", "PCI": {"DomainID": 0, "Bus": 0x53}},
    ]
}


def test_cnmon_4_has_no_bus_ids_and_its_virtual_memory_is_not_the_devices() -> None:
    found = read(V4, name="v4.txt")
    assert devices(found) == [(0, "MLU370-X4", None, 23308)]
    assert found.sources == ("cnmon 4.20.11",)


def test_parts_of_a_divided_card_are_no_cards() -> None:
    found = read(V5.replace("| 1     /   MLU370-X8 ", "| 0     1   MLU370-X8 "), name="vf.txt")
    assert [a.index for a in found.accelerators] == [0]
    assert found.notes[0] == "card 0 is divided; its part 1 (MLU370-X8) is left out"


def test_json_of_info() -> None:
    found = read(json.dumps(JSON, indent=4), name="cnmon_info.json")
    assert devices(found) == [(0, "MLU590-M9", "0000:4f:00.0", 98304), (1, "MLU590-M9", None, None)]
    assert [a.uuid for a in found.accelerators] == ["00000000-0000-0000-0000-5a0000000001", None]


def test_a_link_table_of_mlus() -> None:
    found = read(
        "     MLU0 MLU1 MLU2 CPU Affinity\nMLU0 X MLK SYS 0-31\nMLU1 MLK X NEW 0-31\nMLU2 SYS N/A X 32-63",
        name="t",
    )
    assert {(link.source, link.target): (link.kind, link.vendor_code) for link in found.links} == {
        ("cambricon:0", "cambricon:1"): ("mlu-link", "MLK"),
        ("cambricon:0", "cambricon:2"): ("pcie", "SYS"),
        ("cambricon:1", "cambricon:0"): ("mlu-link", "MLK"),
        ("cambricon:1", "cambricon:2"): ("other", "NEW"),
        ("cambricon:2", "cambricon:0"): ("pcie", "SYS"),
    }


def test_no_card_is_an_empty_machine() -> None:
    found = read("There is no device.\n", name="none.txt")
    assert (found.accelerators, found.notes) == ((), ("There is no device.",))
    with pytest.raises(ToolOutputError, match=r"cnmon 5.10.13, line 6: expected a row of a device"):
        read("\n".join(V5.splitlines()[:6]), name="empty.txt")


def changed(**card: Any) -> str:
    return json.dumps({"CnmonInfo": [JSON["CnmonInfo"][0] | card]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (V5.replace("0000:39:00.0", "0x39"), "cnmon 5.10.13, line 7: expected a bus id such as 0000:39:00.0"),
        (V5.replace("0 MiB/ 23374 MiB |", "0 / 23374      |", 1), "line 8: expected memory as used MiB/ total MiB"),
        (V5.replace("MLU370-X8    v1.1.6", "              v1.1.6"), "line 7: expected Card, VF, Name, Firmware"),
        (V5.replace("MLU370-X8 ", "3700000-8 ", 1), "a product name such as MLU370-X8"),
        (V5.replace("| 1     / ", "| 0     / "), "lists cambricon:0 more than once"),
        (V5.replace("Memory-Usage |", "Memory       |"), "a heading with Memory-Usage"),
        ("Card 0\nCard 0\n", "line 2: expected card 0 once"),
        ("Card 0\n  Product Name : A1\n  Product Name : A2\n", "Product Name once for a card"),
        ("Card 0\n  UUID : no\n", "line 2: expected a UUID"),
        ("Card 0\n  Physical Memory Usage :\n    Total : much\n", "line 3: expected a total in MiB"),
        ("Card 0\n PCI :\n  Domain ID : 0\n  Bus num : q\n  Device : 0\n  Function : 0\n", "the parts of a bus id"),
        ('{"CnmonInfo": [1]}', "each member of CnmonInfo must be an object"),
        ('{"CnmonInfo": {}}', "CnmonInfo must be a list"),
        ('{"CnmonInfo": [', "line 1: expected JSON"),
        ('{"CnmonInfo": [], "CnmonInfo": []}', "the key 'CnmonInfo' is repeated"),
        (changed(CardNum=None), "CardNum must be a whole number"),
        (changed(PhysicalMemUsage={"Total": "many"}), "PhysicalMemUsage.Total must be a whole number"),
        (changed(PCI={"DomainID": "0", "Bus": "zz", "Device": "0", "Function": "0"}), "the parts of a bus id in hex"),
        ('[{"info_by_ring": []}]', "must be a ring with info_by_host"),
        ('{"pcie_info": [],\n"uuid": [],\n"num": 1, "type": [20]}', "uuid must be a list of 1"),
    ],
)  # fmt: skip
def test_errors_name_version_and_line(text: str, message: str) -> None:
    with pytest.raises(ToolOutputError) as caught:
        read(text, name="rec.txt")
    assert str(caught.value).startswith("rec.txt: ")
    assert message in str(caught.value)


RINGS: list[dict[str, Any]] = json.loads((DATA / "device-plugin-cntopo.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device_num": 3}, "ordinal_list must be a list of 3"),
        ({"info_by_host": {"ordinal_list": [5, 9]}}, "must have ordinal 9 at rank 1"),
        ({"info_by_ring": RINGS[0]["info_by_ring"][:1]}, "info_by_ring must be a list of 2"),
        ({"info_by_ring": RINGS[0]["info_by_ring"][::-1]}, "must have a member of rank 0"),
        ({"info_by_ring": [m | {"send_port_id": []} for m in RINGS[0]["info_by_ring"]]}, "send_port_link_mode"),
        ({"info_by_ring": [m | {"send_port_id": [], "send_port_link_mode": []} for m in RINGS[0]["info_by_ring"]]},
         "ordinal 5 must have ports of one mode"),
    ],
)  # fmt: skip
def test_a_ring_that_contradicts_itself(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ToolOutputError, match=message):
        read(json.dumps([RINGS[0] | change, *RINGS[1:]]), name="rings.json")


def test_two_rings_of_one_pair_must_agree() -> None:
    other = json.loads(
        json.dumps(RINGS[0])
        .replace("[2, 5]", "[3, 4, 5]")
        .replace('["interlaken", "interlaken"]', '["a", "a", "a"]')
    )
    with pytest.raises(ToolOutputError, match="the rings of cambricon:5 and cambricon:4 differ"):
        read(json.dumps([*RINGS, other]), name="rings.json")


def test_a_heading_without_rows_is_an_error() -> None:
    name = "cnmon-header-only.txt"
    with pytest.raises(ToolOutputError, match=r"cnmon 5.10.22, line 7: expected a row of a device"):
        read((DATA / "cases" / name).read_text("utf-8"), name=name)


def test_rates_are_of_precisions_that_the_chip_has_and_names_are_of_one_chip() -> None:
    for chip in CHIPS:
        assert not chip.precisions or set(chip.tflops) <= set(chip.precisions), chip.names
    names = [name for chip in CHIPS for name in chip.names]
    assert len(set(names)) == len(names)

"""Every recording of npu-smi, against what a person reads in it; and outputs that no recording shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from sage_infer.errors import ToolOutputError
from sage_infer.schemas import HardwareProfile
from sage_infer.schemas.codec import to_json
from sage_infer_ascend.npu_smi_details import NO_NUMBER
from sage_infer_ascend.recordings import read

DATA = Path(__file__).parent / "data"
GIB = 2**30
MIB = 2**20


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


# --- npu-smi info


def test_310p3_with_the_old_layout_has_ddr_and_no_hbm_column() -> None:
    found = profile("npu-smi-info-310p3-x1-v22.0.2.txt")
    assert devices(found) == [(0, "310P3", "0000:5e:00.0", 21534 / 1024)]
    assert found.sources == ("npu-smi 22.0.0", "Ascend driver 22.0.2")
    (chip,) = found.accelerators
    assert chip.peak_tflops["fp16"].value == 70
    assert chip.peak_tflops["fp16"].confidence == "low"
    assert "Atlas 300I Duo" in chip.peak_tflops["fp16"].source
    assert found.memory_tiers[0].name == "ascend:0"


def test_910a_npu_4_is_device_0() -> None:
    found = profile("npu-smi-info-910a-x1-v22.0.3.txt")
    assert devices(found) == [(0, "910A", "0000:81:00.0", 21534 / 1024)]
    assert (
        found.accelerators[0].peak_tflops == {}
    )  # 21 GiB are no 910A of 32 GB: its figures are another chip's


def test_910b2c_two_cards_with_an_empty_process_table() -> None:
    found = profile("npu-smi-info-910b2c-x2-v23.0.3.txt")
    assert devices(found) == [(0, "910B2C", "0000:5a:00.0", 64), (1, "910B2C", "0000:29:00.0", 64)]
    assert found.sources == ("npu-smi 23.0.3", "Ascend driver 23.0.3")
    assert found.notes == ()


def test_910b3_two_of_eight_cards_keep_their_numbers_and_a_process_is_no_device() -> None:
    found = profile("npu-smi-info-910b3-x2of8-v25.5.1.txt")
    assert devices(found) == [(0, "910B3", "0000:c1:00.0", 64), (5, "910B3", "0000:02:00.0", 64)]
    assert found.notes == (
        "NPUs 1, 2, 3, 4 not shown: hidden from this user, or lost from the recording",
        "this output shows no logic ids; devices are numbered by NPU id",
    )


def test_910b3_eight_cards() -> None:
    found = profile("npu-smi-info-910b3-x8-v24.1.rc1.txt")
    assert devices(found) == [
        (0, "910B3", "0000:c1:00.0", 64), (1, "910B3", "0000:c2:00.0", 64), (2, "910B3", "0000:81:00.0", 64),
        (3, "910B3", "0000:82:00.0", 64), (4, "910B3", "0000:01:00.0", 64), (5, "910B3", "0000:02:00.0", 64),
        (6, "910B3", "0000:41:00.0", 64), (7, "910B3", "0000:42:00.0", 64),
    ]  # fmt: skip
    assert found.sources == ("npu-smi 24.1.rc1.b030", "Ascend driver 24.1.rc1.b030")
    assert found.accelerators[0].memory_bandwidth_gbs is not None
    assert found.accelerators[0].memory_bandwidth_gbs.value == 1600


def test_910c_dies_without_a_heading_are_two_devices_of_one_card() -> None:
    found = profile("npu-smi-info-910c-2chip-partial.txt")
    assert devices(found) == [(4, "Ascend910", "0000:95:00.0", 64), (5, "Ascend910", "0000:97:00.0", 64)]
    assert {a.board for a in found.accelerators} == {"NPU 2"}
    assert found.notes == (
        "NPUs 0, 1 not shown: hidden from this user, or lost from the recording",
        "the table's heading is missing, so columns are taken by their order",
        "NPU 2 has 2 chips, each a device: ascend:4, ascend:5",
        "the table of processes is missing: devices at the end may be, too",
    )
    assert found.accelerators[0].peak_tflops["bf16"].value == 390  # a die's, not the card's


# --- npu-smi info -m, -l


def test_mapping_leaves_the_controllers_out() -> None:
    found = profile("npu-smi-info-m-910b3-x2of8-v25.5.1.txt")
    assert devices(found) == [(0, "Ascend 910B3", None, None), (1, "Ascend 910B3", None, None)]
    assert found.accelerators[0].peak_tflops["fp16"].value == 313


def test_list_of_eight() -> None:
    found = profile("npu-smi-l-x8-v25.5.1.txt")
    assert devices(found) == [(index, "unknown", None, None) for index in range(8)]


# --- npu-smi info -t …


def test_board_of_a_first_910() -> None:
    found = profile("npu-smi-t-board-910-d801-v23.0.5.txt")
    assert devices(found) == [(0, "unknown", "0000:61:00.0", None)]
    assert found.sources == ("npu-smi", "Ascend driver 23.0.5")
    assert "Ascend 910 family, by the PCI device id" in found.notes


def test_board_with_product_and_without_its_serial() -> None:
    found = profile("npu-smi-t-board-v25.5.1.txt")
    assert devices(found) == [(0, "IT21HMDC_Bin5", "0000:c1:00.0", None)]
    assert "1025C9048791" not in to_json(found)
    assert "Ascend 910B family, by the PCI device id" in found.notes


def test_common_describes_the_chip_and_not_the_controller() -> None:
    found = profile("npu-smi-t-common-910b2.txt")
    assert devices(found) == [(1, "unknown", None, None)]
    assert found.notes == ("no memory size is shown",)


@pytest.mark.parametrize(
    ("name", "index", "gib"),
    [
        ("npu-smi-t-memory-910b-65536.txt", 0, 64),
        ("npu-smi-t-memory-ascend950.txt", 0, 128),
        ("npu-smi-t-usages-310p-ddr.txt", 1, 21534 / 1024),
        ("npu-smi-t-usages-65536-v25.5.1.txt", 0, 64),
        ("npu-smi-t-usages-910pro-ddr-hbm.txt", 0, 32),  # not the 15171 MB of DDR beside it
        ("npu-smi-t-usages-ascend950-131072.txt", 0, 128),
    ],
)
def test_memory_of_one_chip(name: str, index: int, gib: float) -> None:
    found = profile(name)
    assert devices(found) == [(index, "unknown", None, gib)]
    assert (NO_NUMBER in found.notes) == (name == "npu-smi-t-memory-910b-65536.txt")


# --- topologies


def codes(found: HardwareProfile) -> dict[tuple[str, str], tuple[str, str | None]]:
    return {(link.source, link.target): (link.kind, link.vendor_code) for link in found.links}


def test_hccs_mesh_of_eight() -> None:
    found = profile("npu-smi-topo-910b3-x8-hccs.txt")
    expected = {
        (f"ascend:{a}", f"ascend:{b}"): ("hccs", "HCCS") for a in range(8) for b in range(8) if a != b
    }
    assert codes(found) == expected
    assert [a.cpu_affinity for a in found.accelerators] == [
        "144-167", "144-167", "96-119", "96-119", "0-23", "0-23", "48-71", "48-71",
    ]  # fmt: skip
    assert [a.numa_node for a in found.accelerators] == [None] * 8  # CPUs are shown, nodes are not


def test_eight_cards_over_pcie_between_two_sockets() -> None:
    found = profile("npu-smi-t-topo-pcie-x8-sys.txt")
    assert len(found.links) == 56
    assert set(codes(found).values()) == {("pcie", "SYS")}
    near = ["0-63,128-191"] * 4 + ["64-127,192-255"] * 4
    assert [a.cpu_affinity for a in found.accelerators] == near


@pytest.mark.parametrize(
    "name", ["npu-smi-t-topo-910c-4die.txt", "npu-smi-topo-910c-a3-4die-hccs_sw-partial.txt"]
)
def test_four_dies_of_which_two_have_rows(name: str) -> None:
    found = profile(name)
    assert [a.index for a in found.accelerators] == [2, 3, 12, 13]
    assert codes(found) == {
        ("ascend:2", "ascend:3"): ("sio", "SIO"),
        ("ascend:2", "ascend:12"): ("hccs", "HCCS_SW"),
        ("ascend:2", "ascend:13"): ("hccs", "HCCS_SW"),
        ("ascend:3", "ascend:2"): ("sio", "SIO"),
        ("ascend:3", "ascend:12"): ("hccs", "HCCS_SW"),
        ("ascend:3", "ascend:13"): ("hccs", "HCCS_SW"),
    }
    assert "the link table has no row for ascend:12, ascend:13" in found.notes


def test_two_dies_of_a_card_without_an_affinity_column() -> None:
    found = profile("npu-smi-t-topo-a3-2die-sio.txt")
    assert codes(found) == {
        ("ascend:12", "ascend:13"): ("sio", "SIO"),
        ("ascend:13", "ascend:12"): ("sio", "SIO"),
    }
    assert found.notes[1] == "devices are numbered by physical id; `npu-smi info -m` shows logic ids"


# --- outputs that no recording shows, as npu-smi's sources and public reports print them

A3 = """\
| npu-smi 25.3.rc1                 Version: 25.3.rc1                                             |
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip  Phy-ID              | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     Ascend910           | OK            | 166.9       38                0    / 0             |
| 0     0                   | 0000:9D:00.0  | 0           0    / 0          46536/ 65536         |
+------------------------------------------------------------------------------------------------+
| 0     Ascend910           | OK            | -           37                0    / 0             |
| 1     1                   | 0000:9F:00.0  | 0           0    / 0          46084/ 65536         |
+===========================+===============+====================================================+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
| 0       0                 | 824166        | VLLMWorker_TP            | 59316                   |
"""

ASCEND_950 = """\
+--------+------------------+---------------+-----------------------------------------------------+
| NPU ID | Name             | Health        | Power(W)    Temp(C)           Hugepages-Usage(page) |
|        |                  | Bus-Id        | NPU Util(%) Memory-Usage(MB)  HBM-Usage(MB)         |
+========+==================+===============+=====================================================+
| 0      | 950PR            | OK            | 190.0       41                0     / 0             |
|        |                  | NA            | 0           0    / 0          3129  / 131072        |
+========+==================+===============+=====================================================+
| 1      | 950PR            | OK            | 191.0       42                0     / 0             |
|        |                  | 0000:0B:00.0  | 0           0    / 0          3129  / 131072        |
+========+==================+===============+=====================================================+
| NPU ID                    | Process id    | Process name             | Process memory(MB)       |
"""

ATLAS_300 = """\
| npu-smi 21.0.2                          Version: 21.0.2                     |
| NPU     Name      | Health          | Power(W)          Temp(C)              |
| Chip    Device    | Bus-Id          | AICore(%)         Memory-Usage(MB)     |
+===================+=================+========================================+
| 2048    310       | OK              | 12.8              46                   |
| 0       0         | 0000:81:00.0    | 0                 2621 / 8192          |
+-------------------+-----------------+----------------------------------------+
| 2048    310       | Warning         | 12.8              46                   |
| 1       1         | 0000:82:00.0    | 0                 2621 / 8192          |
+===================+=================+========================================+
"""


def test_atlas_a3_with_phy_ids() -> None:
    found = read(A3, name="a3.txt")
    assert devices(found) == [(0, "Ascend910", "0000:9d:00.0", 64), (1, "Ascend910", "0000:9f:00.0", 64)]
    assert {a.board for a in found.accelerators} == {"NPU 0"}
    assert found.links == ()  # the table does not show how they are joined


def test_ascend_950_with_the_name_in_a_cell_of_its_own() -> None:
    found = read(ASCEND_950, name="950.txt")
    assert devices(found) == [(0, "950PR", None, 128), (1, "950PR", "0000:0b:00.0", 128)]


def test_a_name_that_is_a_number() -> None:
    assert devices(read(ATLAS_300, name="300.txt")) == [
        (0, "310", "0000:81:00.0", 8), (1, "310", "0000:82:00.0", 8),
    ]  # fmt: skip


def test_a_new_memory_column_does_not_shift_the_others() -> None:
    wide = A3.replace("HBM-Usage(MB) ", "HBM-Usage(MB) L2-Usage(MB) ").replace("/ 65536 ", "/ 65536 1 / 192 ")
    assert [device[3] for device in devices(read(wide, name="a3.txt"))] == [64, 64]


def test_what_is_masked_or_not_known_is_null() -> None:
    masked = A3.replace("0000:9D:00.0", "0000:xx:00.0").replace("46084/ 65536", "NA / NA")
    found = read(masked, name="a3.txt")
    assert devices(found) == [(0, "Ascend910", None, 64), (1, "Ascend910", "0000:9f:00.0", None)]
    assert "NPU 0, chip 1: HBM is printed as NA" in found.notes


def test_mapping_of_an_atlas_a3() -> None:
    mapping = "\tNPU ID   Chip ID   Chip Logic ID   Chip Phy-ID   Chip Name\n" + "".join(
        f"\t{row}\n" for row in ("0  0  0  8  Ascend910", "0  1  1  9  Ascend910", "0  2  -  -  Mcu")
    )
    found = read(mapping, name="m.txt")
    assert [(a.index, a.model, a.board) for a in found.accelerators] == [
        (0, "Ascend910", "NPU 0"), (1, "Ascend910", "NPU 0"),
    ]  # fmt: skip


def test_list_of_cards_with_two_chips_is_counted_only_where_it_is_whole() -> None:
    def listing(*cards: int) -> str:
        return f"Total Count : {len(cards)}\n" + "".join(f"NPU ID : {n}\nChip Count : 2\n" for n in cards)

    found = read(listing(0, 1), name="l.txt")
    assert [(a.index, a.board) for a in found.accelerators] == [
        (0, "NPU 0"), (1, "NPU 0"), (2, "NPU 1"), (3, "NPU 1"),
    ]  # fmt: skip
    with pytest.raises(ToolOutputError, match=r"l.txt: .*a logic id for each chip"):
        read(listing(2, 5), name="l.txt")
    for cut, message in {
        "Total Count : 8\nNPU ID : 0\nChip Count : 1\n": "the 8 cards that the output counts, and it lists 1",
        "Total Count : 2\nNPU ID : 0\nChip Count : 1\nNPU ID : 1\n": "a chip count below this NPU ID",
    }.items():
        with pytest.raises(ToolOutputError, match=message):
            read(cut, name="l.txt")


def test_unknown_link_codes_are_kept_and_unknown_relations_are_no_links() -> None:
    found = read("NPU0 NPU1 NPU2\nNPU0 X UB NA\nNPU1 UB X NEW\nNPU2 NA NEW X\n", name="t.txt")
    assert codes(found) == {
        ("ascend:0", "ascend:1"): ("other", "UB"),
        ("ascend:1", "ascend:0"): ("other", "UB"),
        ("ascend:1", "ascend:2"): ("other", "NEW"),
        ("ascend:2", "ascend:1"): ("other", "NEW"),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dcmi module initialize failed. ret is -8005", "line 1: dcmi module initialize failed. ret is -8005"),
        ("x\ndcmi model initialized failed, because the device is used. ret is -8020", "npu-smi failed, line 2"),
        ("DrvMngGetConsoleLogLevel failed. (g_conLogLevel=3)", "the driver is not loaded"),
        (A3.replace("0000:9D:00.0", "somewhere"), "npu-smi 25.3.rc1, line 6: expected a bus id such as"),
        (A3.replace("46536/ 65536", "46536"), "expected used / total for Memory, HBM, got"),
        (A3.replace("| 1     1   ", "| 1         "), "the chip's number and Phy-ID in the first cell"),
        (A3.replace("| 0     0     ", "| 1     0     "), "one row for chip 1 of NPU 0"),
        (A3.replace("| 1     1     ", "| 1     0     "), "lists ascend:0 more than once"),
        (A3.replace("Bus-Id  ", "Address "), "line 3: expected Bus-Id below Health"),
        (A3.replace("| OK            | 166.9", "| 0000:9D:00.0  | 166.9"), "a health state such as OK"),
        (A3.replace("HBM-Usage(MB)", "").replace("Memory-Usage(MB)", ""), "a heading with Memory-Usage"),
        ("NPU ID  Chip ID  Chip Logic ID  Chip Name\n0  0  0", "expected one cell each for NPU ID, Chip ID"),
        ("NPU ID : 1\nChip Count : 2\n\nHBM Capacity(MB) : 65536", "a card of 2 chips, but not which of them"),
        ("NPU ID : 0\nHBM Capacity(MB) : many", "line 2: expected a whole number, got 'HBM Capacity"),
        ("NPU ID : 0\nPCIe Bus Info : there", "line 2: expected a bus id"),
        ("NPU0 X HCCS\nNPU1 HCCS X", "expected the heading of the link table, got 'NPU0 X HCCS'"),
        ("| NPU   Name | Health |\n", "a second line for this chip"),
    ],
)  # fmt: skip
def test_errors_name_version_and_line(text: str, message: str) -> None:
    with pytest.raises(ToolOutputError) as caught:
        read(text, name="rec.txt")
    assert str(caught.value).startswith("rec.txt: ")
    assert message in str(caught.value)


def test_no_card_is_an_empty_machine() -> None:
    found = read("There is no NPU card on this server.\n", name="m.txt")
    assert found.accelerators == ()
    assert found.notes == ("There is no NPU card on this server.",)
    with pytest.raises(ToolOutputError, match=r"npu-smi 25.3.rc1, line 4: expected a row of a chip"):
        read("\n".join(A3.splitlines()[:4]), name="info.txt")

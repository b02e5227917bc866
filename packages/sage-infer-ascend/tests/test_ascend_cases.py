"""Recordings that once came out wrong, short or not at all: the values that their text shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from sage_infer.errors import ToolOutputError
from sage_infer.schemas import HardwareProfile
from sage_infer.schemas.codec import to_json
from sage_infer_ascend.chips import CHIPS
from sage_infer_ascend.recordings import read

CASES = Path(__file__).parent / "data" / "cases"
MIB = 1024 * 1024


def profile(name: str) -> HardwareProfile:
    return read((CASES / name).read_text("utf-8"), name=name)


def devices(found: HardwareProfile) -> list[tuple[int, str, str | None, int | None]]:
    return [
        (a.index, a.model, a.pci_address, a.memory_bytes and a.memory_bytes // MIB)
        for a in found.accelerators
    ]


def refusal(name: str) -> str:
    with pytest.raises(ToolOutputError) as caught:
        profile(name)
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "npu-smi-info-310p3-duo-x2-shared-busid-v25.2.0.txt",
        "310p3-duo--docker-ts.txt",
        "310p3-duo--wrap80.txt",
    ],
)
def test_two_chips_of_one_card_share_a_bus_id(name: str) -> None:
    found = profile(name)
    assert devices(found) == [(0, "310P3", "0000:01:00.0", 44280), (1, "310P3", "0000:01:00.0", 43693)]
    assert {a.board for a in found.accelerators} == {"NPU 2"}
    assert found.sources == ("npu-smi 25.2.0", "Ascend driver 25.2.0")
    assert {tier.name: tier.capacity_bytes for tier in found.memory_tiers} == {
        "ascend:0": 44280 * MIB, "ascend:1": 43693 * MIB,
    }  # fmt: skip
    # The rates of the table are those of the chip with 24 GiB.
    assert all(a.peak_tflops == {} and a.memory_bandwidth_gbs is None for a in found.accelerators)
    assert "NPUs 0, 1 not shown: hidden from this user, or lost from the recording" in found.notes


def test_a_line_that_is_cut_is_an_error() -> None:
    assert "npu-smi 25.2.0, line 8: expected a row of the table" in refusal("310p3-duo--trunc-midline.txt")


def test_a_heading_without_rows_is_an_error() -> None:
    assert "expected a row of a chip below the table's heading" in refusal("ascend-header-only.txt")


def test_a_driver_error_is_an_error() -> None:
    message = refusal("npu-smi-info-driver-error-8020-NEGATIVE.txt")
    assert "npu-smi failed, line 1: DrvMngGetConsoleLogLevel failed." in message


def test_a_smaller_sibling_has_no_rates() -> None:
    found = profile("npu-smi-info-950pr-x3-mixed-hbm-v25.7.rc1.txt")
    assert devices(found) == [
        (0, "Ascend950PR", "0000:61:00.0", 131072),
        (1, "Ascend950PR", "0000:71:00.0", 131072),
        (2, "Ascend950PR", "0000:91:00.0", 114688),
    ]
    assert [{name: f.value for name, f in a.peak_tflops.items()} for a in found.accelerators] == [
        {"fp8_e4m3": 1000}, {"fp8_e4m3": 1000}, {},
    ]  # fmt: skip
    assert found.accelerators[2].memory_bandwidth_gbs is None


def test_seven_950pr_and_a_cut_table_of_processes() -> None:
    found = profile("npu-smi-info-950pr-x7-v25.7.rc1.txt")
    assert devices(found) == [
        (index, "Ascend950PR", f"0000:{bus}:00.0", 131072)
        for index, bus in enumerate(("01", "11", "61", "71", "81", "91", "f1"))
    ]
    assert found.sources == ("npu-smi 25.7.rc1", "Ascend driver 25.7.rc1")


def test_a_board_of_a_950pr_without_its_serial_number() -> None:
    name = "npu-smi-t-board-950pr-v25.7.rc1.6.txt"
    found = profile(name)
    assert devices(found) == [(0, "Ascend950PR", "0000:61:00.0", None)]
    assert found.sources == ("npu-smi", "Ascend driver 25.7.rc1.6")
    assert found.accelerators[0].board is None
    assert "10200A000001" in (CASES / name).read_text("utf-8")
    assert "10200A000001" not in to_json(found)


def test_a_serial_number_is_in_no_error() -> None:
    text = (CASES / "npu-smi-t-board-950pr-v25.7.rc1.6.txt").read_text("utf-8")
    line = next(line for line in text.splitlines() if "Serial Number" in line)
    for damaged in ("Serial Number 10200A000001", "10200A000001"):
        with pytest.raises(ToolOutputError, match="line 7: expected a key and its value") as caught:
            read(text.replace(line, damaged), name="b.txt")
        assert "10200A000001" not in str(caught.value)


def test_a_die_of_an_atlas_a3() -> None:
    found = profile("npu-smi-t-board-a3-9392.txt")
    assert devices(found) == [(0, "Ascend910", None, None)]
    assert found.accelerators[0].board == "NPU 0"
    assert any("NPU Name 9392" in note for note in found.notes)
    second = "NPU ID : 3\nNPU Name : 9392\nChip ID : 1\nChip Name : Ascend910\n"
    (die,) = read(second, name="b.txt").accelerators
    assert (die.index, die.board) == (7, "NPU 3")


def test_every_case_has_a_test() -> None:
    source = Path(__file__).read_text("utf-8")
    assert not [path.name for path in CASES.glob("*.txt") if f'"{path.name}"' not in source]


def test_rates_are_of_precisions_that_the_chip_has_and_names_are_of_one_chip() -> None:
    for chip in CHIPS:
        assert not chip.precisions or set(chip.tflops) <= set(chip.precisions), chip.names
    names = [name for chip in CHIPS for name in chip.names]
    assert len(set(names)) == len(names)

"""Recordings that once came out wrong, short or not at all: the values that their text shows."""

from __future__ import annotations

from pathlib import Path

from sage_infer.schemas import HardwareProfile
from sage_infer_hygon.chips import CHIPS
from sage_infer_hygon.recordings import read

CASES = Path(__file__).parent / "data" / "cases"


def profile(name: str) -> HardwareProfile:
    return read((CASES / name).read_text("utf-8"), name=name)


def test_remarks_at_the_end_of_lines() -> None:
    found = profile("hy-smi-annotated-two-rows-EXCERPT.txt")
    assert [(a.index, a.model) for a in found.accelerators] == [(0, "unknown"), (7, "unknown")]
    assert (
        "devices 1, 2, 3, 4, 5, 6 not shown: hidden from this user, or lost from the recording" in found.notes
    )


def test_available_memory_in_a_log_of_docker() -> None:
    found = profile("hy-smi-showmemavailable-k100ai-x8--docker-ts.txt")
    assert [(a.index, a.memory_bytes) for a in found.accelerators] == [(index, None) for index in range(8)]
    assert len(found.notes) == 3  # nothing was lost with the timestamps


def test_degrees_and_no_rules() -> None:
    found = profile("rocm-smi-degree-sign-no-rules.txt")
    assert [(a.index, a.model, a.memory_bytes) for a in found.accelerators] == [(0, "unknown", None)]


def test_every_case_has_a_test() -> None:
    source = Path(__file__).read_text("utf-8")
    assert not [path.name for path in CASES.glob("*.txt") if f'"{path.name}"' not in source]


def test_rates_are_of_precisions_that_the_chip_has_and_names_are_of_one_chip() -> None:
    for chip in CHIPS:
        assert not chip.precisions or set(chip.tflops) <= set(chip.precisions), chip.names
    names = [name for chip in CHIPS for name in chip.names]
    assert len(set(names)) == len(names)

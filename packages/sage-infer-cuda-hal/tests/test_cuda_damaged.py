"""Recordings under the contract kit for their readers: damaged, coloured, masked, with other line ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sage_infer.errors import ToolOutputError
from sage_infer.schemas import HardwareProfile
from sage_infer_cuda.nccl import NO_NUMBERS
from sage_infer_cuda.recordings import read
from sage_infer_testing import WholeRecordingContract

DATA = Path(__file__).parent / "data"


class TestTables(WholeRecordingContract):
    folder = DATA
    pattern = "*.txt"

    def read(self, text: str, *, name: str) -> HardwareProfile:
        return read(text, name=name)


@pytest.mark.long
class TestSmiXml(WholeRecordingContract):
    folder = DATA
    pattern = "smi-*.xml"
    damaged = examples = 25  # a file has thousands of lines, and few of them matter

    def read(self, text: str, *, name: str) -> HardwareProfile:
        return read(text, name=name)


class TestNcclXml(WholeRecordingContract):
    folder = DATA
    pattern = "nccl-*.xml"
    at_once = 1
    no_number = NO_NUMBERS

    def read(self, text: str, *, name: str) -> HardwareProfile:
        return read(text, name=name)


@pytest.mark.parametrize("path", sorted(DATA.glob("nccl-*-topo.xml")), ids=lambda path: path.name)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_a_topology_without_some_lines_says_nothing_new_of_an_address(
    path: Path, data: st.DataObject
) -> None:
    """Indices follow the addresses, and so change where a device is lost; what is at an address does not."""
    text = path.read_text("utf-8")
    lines = text.splitlines()
    lost = data.draw(st.sets(st.integers(0, len(lines) - 1), max_size=1))
    try:
        found = read(
            "\n".join(line for number, line in enumerate(lines) if number not in lost), name=path.name
        )
    except ToolOutputError:
        return
    known = by_address(read(text, name=path.name))
    assert by_address(found).items() <= known.items()


def by_address(profile: HardwareProfile) -> dict[str | None, tuple[object, ...]]:
    return {
        gpu.pci_address: (gpu.numa_node, gpu.cpu_affinity, gpu.compute_capability)
        for gpu in profile.accelerators
    }

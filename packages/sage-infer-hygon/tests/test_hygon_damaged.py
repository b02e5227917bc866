"""Recordings of hy-smi and rocm-smi, damaged."""

from pathlib import Path

from sage_infer.schemas import HardwareProfile
from sage_infer_hygon.recordings import read
from sage_infer_testing import WholeRecordingContract

DATA = Path(__file__).parent / "data"
TOPOLOGY = (DATA / "_format-proxy-rocm-smi-showtopo-amd-mi300-class-x8.txt").read_text("utf-8")


class TestDamagedRecordings(WholeRecordingContract):
    folder = DATA
    pattern = "[!_S]*.*"

    def read(self, text: str, *, name: str) -> HardwareProfile:
        return read(text, name=name)


class TestDamagedCases(TestDamagedRecordings):
    folder = Path(__file__).parent / "data" / "cases"
    pattern = "*.txt"

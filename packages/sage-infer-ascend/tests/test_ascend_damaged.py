"""Recordings of npu-smi, damaged."""

from pathlib import Path

from sage_infer.schemas import HardwareProfile
from sage_infer_ascend.npu_smi_details import NO_NUMBER
from sage_infer_ascend.recordings import read
from sage_infer_testing import WholeRecordingContract


class TestDamagedRecordings(WholeRecordingContract):
    folder = Path(__file__).parent / "data"
    pattern = "*.txt"
    no_number = NO_NUMBER

    def read(self, text: str, *, name: str) -> HardwareProfile:
        return read(text, name=name)


class TestDamagedCases(TestDamagedRecordings):
    folder = Path(__file__).parent / "data" / "cases"
    pattern = "npu-smi-*.txt"

"""Recordings of xpu-smi and xpu_smi, damaged."""

from pathlib import Path

from sage_infer.schemas import HardwareProfile
from sage_infer_kunlunxin.recordings import read
from sage_infer_testing import WholeRecordingContract


class TestDamagedRecordings(WholeRecordingContract):
    folder = Path(__file__).parent / "data"
    pattern = "*.txt"

    def read(self, text: str, *, name: str) -> HardwareProfile:
        return read(text, name=name)

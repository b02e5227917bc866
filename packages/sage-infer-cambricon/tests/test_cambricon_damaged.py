"""Recordings of cnmon, damaged."""

from pathlib import Path

from sage_infer.schemas import HardwareProfile
from sage_infer_cambricon.recordings import read
from sage_infer_testing import WholeRecordingContract


class TestDamagedTables(WholeRecordingContract):
    folder = Path(__file__).parent / "data"
    pattern = "*.txt"

    def read(self, text: str, *, name: str) -> HardwareProfile:
        return read(text, name=name)


class TestDamagedJson(TestDamagedTables):
    pattern = "*.json"
    damaged = 40

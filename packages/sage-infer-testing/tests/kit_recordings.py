"""A recording of an invented tool, one reader that is careful with it, and some that are not."""

from __future__ import annotations

import re

from sage_infer.errors import ToolOutputError
from sage_infer.schemas import AcceleratorDescriptor, HardwareProfile

__all__ = ["CARELESS", "RECORDING", "CarefulReader"]

RECORDING = """\
| acme-smi 1.2                       |
+------------------------------------+
| ID | Name | Bus-Id       | Memory   |
+------------------------------------+
| 0  | A1   | 0000:01:00.0 | 64 GiB   |
| 1  | A1   | 0000:02:00.0 | 64 GiB   |
+------------------------------------+
"""
_HEADING = ["ID", "Name", "Bus-Id", "Memory"]


class CarefulReader:
    """Checks every cell; its parts are overridden below."""

    def read(self, text: str, name: str) -> HardwareProfile:
        rows = [self.cells(line) for line in self.clean(text).split("\n") if line.strip().startswith("|")]
        if _HEADING not in [row[:4] for row in rows]:
            raise ToolOutputError(f"{name}: no heading")
        start = next(n for n, row in enumerate(rows) if row[:4] == _HEADING)
        devices = [self.device(row, len(rows[start]), name) for row in rows[start + 1 :]]
        indexes = [device.index for device in devices]
        if len(set(indexes)) != len(indexes):
            raise ToolOutputError(f"{name}: a device twice")
        return HardwareProfile(accelerators=devices, sources=self.sources())

    def clean(self, text: str) -> str:
        return re.sub("\x1b\\[[0-9;]*m|\r|\ufeff", "", text)

    def cells(self, line: str) -> list[str]:
        return [cell.strip() for cell in line.strip().strip("|").split("|")]

    def device(self, row: list[str], cells: int, name: str) -> AcceleratorDescriptor:
        patterns = (r"\d+", r"[A-Z]\d", r"[0-9a-f]{4}:[0-9a-f]{2}:00\.0", r"\d+ GiB")
        if len(row) != cells or not all(
            re.fullmatch(p, cell) for p, cell in zip(patterns, row, strict=False)
        ):
            raise ToolOutputError(f"{name}: {row} does not fit the heading")
        return self.made(row)

    def made(self, row: list[str]) -> AcceleratorDescriptor:
        return AcceleratorDescriptor(
            hardware_backend="acme",
            vendor="Acme",
            model=row[1],
            index=int(row[0]),
            pci_address=row[2],
            memory_bytes=int(row[3].split()[0]) * 2**30,
        )

    def sources(self) -> tuple[str, ...]:
        return ("acme-smi 1.2",)


class NamesNoSource(CarefulReader):
    def sources(self) -> tuple[str, ...]:
        return ()


class KeepsColours(CarefulReader):
    def clean(self, text: str) -> str:
        return text.replace("\r", "")


class ReadsNoise(CarefulReader):
    def read(self, text: str, name: str) -> HardwareProfile:
        if not text.strip():
            return HardwareProfile(sources=self.sources())
        return super().read(text, name)


class Crashes(CarefulReader):
    def device(self, row: list[str], cells: int, name: str) -> AcceleratorDescriptor:
        return self.made(row)  # IndexError, ValueError


class CountsInstead(CarefulReader):
    """Numbers devices by their place among the rows: a lost one renames the others."""

    def read(self, text: str, name: str) -> HardwareProfile:
        profile = super().read(text, name)
        devices = [
            AcceleratorDescriptor(
                hardware_backend="acme", vendor="Acme", model=d.model, index=n, pci_address=d.pci_address
            )
            for n, d in enumerate(profile.accelerators)
        ]
        return HardwareProfile(accelerators=devices, sources=self.sources())


CARELESS = {
    "names no source": (NamesNoSource, "test_profiles_survive_json"),
    "keeps colours": (KeepsColours, "test_lines_may_end_and_be_coloured_in_any_way"),
    "reads noise": (ReadsNoise, "test_what_is_no_output_is_refused"),
    "crashes": (Crashes, "test_damage_never_invents_or_changes_a_device"),
    "counts instead": (CountsInstead, "test_damage_never_invents_or_changes_a_device"),
}

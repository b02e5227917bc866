"""``hy-smi`` (``rocm-smi`` before DTK 24): one line per device. Columns differ by release, except the number."""

from __future__ import annotations

import re

from sage_infer.schemas import HardwareProfile
from sage_infer_hal.detection import UNCOUNTED, ToolText, build_profile, gap_notes, need_rows

from sage_infer_hygon.dcu import dcu, endpoint, sources

__all__ = ["is_table", "read_table"]

_HEADING = re.compile(r"\s*(?:HCU|DCU|GPU)\s+Temp")
_RULE = re.compile(r"[=\-\s]*")
_END = re.compile(r"=+\s*End of")
# A cell below a heading: a number with its unit, or a placeholder for unknown.
_CELLS = {
    "temp": r"\d+(\.\d+)?(°?[cC]|℃)",
    "avgpwr": r"\d+(\.\d+)?W",
    "pwrcap": r"\d+(\.\d+)?W",
    "fan": r"\d+(\.\d+)?%",
    "vram%": r"\d+(\.\d+)?%",
    "hcu%": r"\d+(\.\d+)?%",
    "dcu%": r"\d+(\.\d+)?%",
}


def is_table(text: ToolText) -> bool:
    return text.search(_HEADING.pattern) is not None


def read_table(text: ToolText) -> HardwareProfile:
    """The devices of the table, of which only the numbers are known.

    Raises:
        ToolOutputError: a line does not match the heading.
    """
    heading: list[str] = []
    devices, divided = [], []
    for line in text.lines:
        words = line.text.split()
        if not heading:
            heading = words if _HEADING.match(line.text) else []
            continue
        if _END.match(line.text):
            break
        if _RULE.fullmatch(line.text):
            continue
        if len(words) != len(heading) or not words[0].isdecimal():
            raise text.error(line, f"a number and {len(heading) - 1} cells under {' '.join(heading)}")
        for name, cell in zip(heading, words, strict=True):
            pattern = _CELLS.get(name.lower())
            if pattern and re.fullmatch(rf"{pattern}|N/?A|unknown", cell) is None:
                raise text.error(line, f"a value under {name}")
            if name == "Mode" and cell.upper() == "MIG":
                divided.append(endpoint(int(words[0])))
        devices.append(dcu(int(words[0])))
    need_rows(text, devices, "a device")
    notes = ["this output does not show: names, memory, bus ids", UNCOUNTED]
    notes += gap_notes([device.index for device in devices], "devices")
    if divided:
        notes.append(f"divided into instances (MIG), which this output does not show: {', '.join(divided)}")
    return build_profile(devices, sources=sources(text), notes=notes)

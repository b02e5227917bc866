"""``xpu-smi -L``: one line per device. ``xpu-smi -m``: the same in machine-readable form."""

from __future__ import annotations

import re
import shlex

from sage_infer.schemas import AcceleratorDescriptor, HardwareProfile
from sage_infer_hal.detection import UNCOUNTED, Line, ToolText, build_profile, gap_notes, mebibytes

from sage_infer_kunlunxin.xpu import known_serial, on_boards, read_bus, sources, xpu

__all__ = ["is_list", "is_machine", "list_devices", "read_list", "read_machine"]

_DEVICE = re.compile(
    r"\s*XPU\s+(\d+):\s+(\S.*?)\s+\(?(?:UUID:\s*)?(GPU-[0-9a-fA-F-]{36}|[xX*-]{8,}|GPU-[xX*-]+)\)?(\s.*)?"
)

# Places of the fields of `-m`. It prints no heading: these were compared with the table of the same driver.
_BUS, _NUMBER, _SERIAL, _MEMORY, _NAME = 0, 1, 3, 18, 21


def is_list(text: ToolText) -> bool:
    return text.search(r"^\s*XPU\s+\d+:\s") is not None


def read_list(text: ToolText) -> HardwareProfile:
    """The devices with their UUIDs.

    Raises:
        ToolOutputError: a line does not describe a device.
    """
    devices = list_devices(text)
    notes = ["this output shows neither memory nor bus ids", UNCOUNTED]
    notes += gap_notes([device.index for device in devices], "XPUs")
    return build_profile(devices, sources=sources(text), notes=notes)


def list_devices(text: ToolText) -> list[AcceleratorDescriptor]:
    """The devices of ``xpu-smi -L``."""
    devices = []
    for line in text.lines:
        match = _DEVICE.fullmatch(line.text)
        if match is None:
            raise text.error(line, "XPU, its number, its name and its UUID")
        devices.append(xpu(int(match[1]), match[2], uuid=match[3]))
    return devices


def is_machine(text: ToolText) -> bool:
    return (
        re.match(r"\s*([0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.\d\s+\d+\s", text.lines[0].text)
        is not None
    )


def read_machine(text: ToolText) -> HardwareProfile:
    """The devices described by the lines.

    Raises:
        ToolOutputError: a field is malformed.
    """
    found = [_device(text, line) for line in text.lines]
    devices = on_boards([device for device, _ in found], [serial for _, serial in found])
    notes = [UNCOUNTED, *gap_notes([device.index for device in devices], "XPUs")]
    return build_profile(devices, sources=sources(text), notes=notes)


def _device(text: ToolText, line: Line) -> tuple[AcceleratorDescriptor, str | None]:
    """The device and its card's serial number."""
    try:
        fields = shlex.split(line.text)
        quoted = shlex.split(line.text, posix=False)
    except ValueError as error:
        raise text.error(line, "fields, the name in quotes") from error
    if len(fields) <= _NAME or quoted[_NAME][:1] != '"':
        raise text.error(line, f"the name in quotes as field {_NAME + 1}")
    numbers = [fields[place] for place in (_NUMBER, _MEMORY - 1, _MEMORY)]
    if not all(number.isdecimal() for number in numbers) or int(numbers[1]) > int(numbers[2]):
        raise text.error(
            line, f"a number as field {_NUMBER + 1}, used and total MiB as fields {_MEMORY} and {_MEMORY + 1}"
        )
    device = xpu(
        int(fields[_NUMBER]),
        fields[_NAME],
        bus=read_bus(text, line, fields[_BUS]),
        memory_bytes=mebibytes(int(fields[_MEMORY])),
    )
    return device, known_serial(fields[_SERIAL])

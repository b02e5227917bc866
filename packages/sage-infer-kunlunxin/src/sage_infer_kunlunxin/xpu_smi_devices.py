"""``xpu_smi`` before driver 5: in sections; DEVICES has one line per device."""

from __future__ import annotations

from sage_infer.schemas import AcceleratorDescriptor, HardwareProfile
from sage_infer_hal.detection import ToolText, build_profile, gap_notes, need_rows

from sage_infer_kunlunxin.xpu import endpoint, known_serial, on_boards, read_bus, read_total, sources, xpu

__all__ = ["is_devices", "read_devices"]

_NEEDED = ("DevID", "PCI Addr", "Model", "Memory")


def is_devices(text: ToolText) -> bool:
    return any(set(_NEEDED) <= set(cells) for _, cells in text.rows())


def read_devices(text: ToolText) -> HardwareProfile:
    """The devices of the section. A card that is divided (SR-IOV) only controls its parts and is left out.

    Raises:
        ToolOutputError: a line does not match the heading.
    """
    heading: list[str] = []
    serials: list[str | None] = []
    numbers: list[int] = []
    devices: list[AcceleratorDescriptor] = []
    notes: list[str] = []
    section = 0
    for line in text.lines:
        cells = text.cells(line)
        if cells is None:
            continue
        if "DevID" in cells:
            section += 1  # the next ones are video and processes
            heading = heading or cells
            continue
        if section > 1:
            if cells[0].isdecimal() and int(cells[0]) not in numbers:
                raise text.error(line, f"device {cells[0]} in the section DEVICES above")
            continue
        if not heading or len(cells) != len(heading):
            raise text.error(
                line, f"{len(heading)} cells under {' | '.join(heading)}" if heading else "a heading"
            )
        row = dict(zip(heading, cells, strict=True))
        if not row["DevID"].isdecimal() or not any(map(str.isalpha, row["Model"])):
            raise text.error(line, "a device's number and its model")
        index = int(row["DevID"])
        bus = read_bus(text, line, row["PCI Addr"])
        node = row.get("INODE", "")
        if node.startswith("/dev/xpu") and node != f"/dev/xpu{index}":
            raise text.error(line, f"the device node /dev/xpu{index}")
        numbers.append(index)
        memory = read_total(text, line, row["Memory"])
        if row["Model"].endswith("-PF"):
            notes.append(
                f"{endpoint(index)} ({row['Model']}) is divided and only controls its parts; it is left out"
            )
            continue
        devices.append(xpu(index, row["Model"], bus=bus, memory_bytes=memory))
        serials.append(known_serial(row.get("SN")))
    need_rows(text, numbers, "a device")
    notes += gap_notes(numbers, "XPUs")
    if section < 2:
        notes.append("the sections below DEVICES are missing: devices at the end may be, too")
    devices = on_boards(devices, serials)
    return build_profile(devices, sources=sources(text), notes=notes)

"""Answers of the management library ``libcndev``, as the vendor's device plug-in keeps them for its tests."""

from __future__ import annotations

from typing import Any

from sage_infer.schemas import HardwareProfile, LinkProfile
from sage_infer_hal.detection import ToolText, build_profile, bus_address, json_text, mebibytes
from sage_infer_hal.detection.json_text import integer, items, load

from sage_infer_cambricon.mlu import endpoint, mlu

__all__ = ["is_cndev", "read_cndev"]

# cndevNameEnum_t of cndev.h
_TYPES = {
    0: "MLU100", 1: "MLU270", 16: "MLU220-M2", 19: "MLU220-M2i", 20: "MLU290", 23: "MLU370", 24: "MLU365",
    26: "MLU590", 27: "MLU585", 30: "MLU580", 31: "MLU570",
}  # fmt: skip


def is_cndev(text: ToolText) -> bool:
    return (
        json_text.is_json(text)
        and text.search('"pcie_info"') is not None
        and text.search('"uuid"') is not None
    )


def read_cndev(text: ToolText) -> HardwareProfile:
    """Devices, and the MLU-Links that are up and lead to one of them.

    Raises:
        ToolOutputError: a list has another length than the number of devices, or a member is malformed.
    """
    data = load(text)
    if not isinstance(data, dict):
        raise text.error(None, "the document must be an object")
    count = integer(text, data.get("num"), "num")
    lists = {
        key: items(text, data.get(key), key, count=count)
        for key in ("uuid", "type", "pcie_info", "mlulink_status", "remote_info")
    }
    memory = mebibytes(integer(text, data.get("memory"), "memory"))
    uuids = [_uuid(text, codes) for codes in lists["uuid"]]
    notes = ["these are answers of libcndev, not of a tool"]
    devices = []
    for index in range(count):
        parts = [
            integer(text, part, "pcie_info")
            for part in items(text, lists["pcie_info"][index], "pcie_info", count=4)
        ]
        domain, bus, device, function = parts
        address = bus_address(f"{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
        if address is None:
            notes.append(f"{endpoint(index)}: {parts} is no PCI address")
        kind = _TYPES.get(integer(text, lists["type"][index], "type"))
        devices.append(mlu(index, kind, uuid=uuids[index], bus=address, memory_bytes=memory))
    links, unknown = _links(text, data, lists, uuids)
    if unknown:
        notes.append(f"MLU-Links to devices that are not listed: {unknown}")
    return build_profile(devices, links=links, sources=["libcndev"], notes=notes)


def _links(
    text: ToolText, data: dict[str, Any], lists: dict[str, list[Any]], uuids: list[str]
) -> tuple[list[LinkProfile], int]:
    ports = integer(text, data.get("mlulink_port"), "mlulink_port")
    pairs: set[tuple[int, int]] = set()
    unknown = 0
    for index, (states, remotes) in enumerate(
        zip(lists["mlulink_status"], lists["remote_info"], strict=True)
    ):
        states = items(text, states, "mlulink_status", count=ports)
        for state, remote in zip(states, items(text, remotes, "remote_info", count=ports), strict=True):
            if integer(text, state, "mlulink_status") != 1:
                continue
            uuid = _uuid(text, remote)
            if uuid in uuids and uuid != uuids[index]:
                pairs.add((index, uuids.index(uuid)))
            else:
                unknown += 1
    links = [LinkProfile(source=endpoint(a), target=endpoint(b), kind="mlu-link") for a, b in sorted(pairs)]
    return links, unknown


def _uuid(text: ToolText, codes: Any) -> str:
    """The text of a C string of 37 characters."""
    numbers = [integer(text, code, "uuid") for code in items(text, codes, "uuid", count=37)]
    end = numbers.index(0) if 0 in numbers else len(numbers)
    try:
        return bytes(numbers[:end]).decode("ascii")
    except ValueError as error:  # above 255, or no ASCII
        raise text.error(None, "a uuid must be ASCII codes") from error

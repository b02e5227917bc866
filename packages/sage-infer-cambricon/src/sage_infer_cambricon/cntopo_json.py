"""``cntopo find … -O FILE``: rings of MLU-Links. Neighbours in a ring have a direct link."""

from __future__ import annotations

from typing import Any

from sage_infer.schemas import HardwareProfile, LinkProfile
from sage_infer_hal.detection import ToolText, build_profile, json_text
from sage_infer_hal.detection.json_text import integer, items, load

from sage_infer_cambricon.mlu import endpoint, mlu

__all__ = ["is_rings", "read_rings"]

_NOTE = "this output shows neither names, memory nor bus ids; links that are in no ring of this size are not shown"


def is_rings(text: ToolText) -> bool:
    return json_text.is_json(text) and text.search('"info_by_ring"') is not None


def read_rings(text: ToolText) -> HardwareProfile:
    """Devices by their ordinals, and the links of the rings.

    Raises:
        ToolOutputError: a ring contradicts itself.
    """
    ports: dict[tuple[int, int], tuple[str, int]] = {}
    for ring in items(text, load(text), "the document"):
        members = _members(text, ring)
        for number, member in enumerate(members):
            pair = (member[0], members[(number + 1) % len(members)][0])
            if pair[0] != pair[1]:
                if pair in ports and len(members) == 2 and ports[pair] != member[1:]:
                    raise text.error(None, f"the rings of {endpoint(pair[0])} and {endpoint(pair[1])} differ")
                ports.setdefault(pair, member[1:])
    links = [
        LinkProfile(source=endpoint(a), target=endpoint(b), kind="mlu-link", vendor_code=mode)
        for (a, b), (mode, _) in sorted(ports.items())
    ]
    double = sorted({tuple(sorted(pair)) for pair, (_, count) in ports.items() if count > 1})
    notes = [_NOTE]
    if double:
        pairs = ", ".join(f"{endpoint(a)}–{endpoint(b)} ({ports[a, b][1]})" for a, b in double)
        notes.append(f"joined by several ports: {pairs}")
    devices = [mlu(index, None) for index in sorted({end for pair in ports for end in pair})]
    return build_profile(devices, links=links, sources=["cntopo"], notes=notes)


def _members(text: ToolText, ring: Any) -> list[tuple[int, str, int]]:
    """Return for each device of a ring, in order: ordinal, and mode and number of the ports to the next device."""
    if not isinstance(ring, dict) or not isinstance(ring.get("info_by_host"), dict):
        raise text.error(None, "each member of the document must be a ring with info_by_host")
    count = integer(text, ring.get("device_num"), "device_num")
    hosts = items(text, ring["info_by_host"].get("ordinal_list"), "ordinal_list", count=count)
    members = []
    for rank, entry in enumerate(items(text, ring.get("info_by_ring"), "info_by_ring", count=count)):
        if not isinstance(entry, dict) or entry.get("rank_in_ring") != rank:
            raise text.error(None, f"the ring of {hosts} must have a member of rank {rank}")
        ordinal = integer(text, entry.get("ordinal"), "ordinal")
        if ordinal != hosts[rank]:
            raise text.error(None, f"the ring of {hosts} must have ordinal {hosts[rank]} at rank {rank}")
        sent = items(text, entry.get("send_port_id"), "send_port_id")
        modes = items(text, entry.get("send_port_link_mode"), "send_port_link_mode", count=len(sent))
        if not sent or len(set(map(str, modes))) != 1:
            raise text.error(None, f"ordinal {ordinal} must have ports of one mode to the next device")
        members.append((ordinal, str(modes[0]), len(sent)))
    return members

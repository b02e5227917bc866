"""``hy-smi --show…`` as text: ``HCU[0] : key: value`` lines, and lines about the machine."""

from __future__ import annotations

import re

from sage_infer.schemas import HardwareProfile
from sage_infer_hal.detection import UNCOUNTED, Line, ToolText, build_profile, gap_notes

from sage_infer_hygon.dcu import describe, refuse_amd, sources

__all__ = ["card_facts", "is_driver", "is_text", "read_driver", "read_text"]

_LINE = re.compile(r"\s*(HCU|DCU|GPU)\[(\d+)\]\s*:\s*(.*)")
_DEVICE = re.compile(r"\b(HCU|DCU|GPU)\[\d|^\s*(HCU|DCU|GPU)\[")
_TOPOLOGY = re.compile(r"(\(Topology\) Numa (?:Node|Affinity))\s*:?\s*(-?\d+.*|\S+)", re.IGNORECASE)
# Keys whose value is a fact of the device; others may be repeated, one line per sensor.
_KEYS = re.compile(
    r"card (series|vendor)|product name|unique id|pci bus|gfx version|vram total memory .*|\(topology\) numa node"
    r"|available memory size .*"
)


def is_text(text: ToolText) -> bool:
    return any(_LINE.match(line.text) for line in text.lines)


def read_text(text: ToolText) -> HardwareProfile:
    """The devices that lines name.

    Raises:
        ToolOutputError: a key is repeated with another value, or a value does not match its key.
    """
    refuse_amd(text, labels=any(line.text.lstrip().startswith("GPU[") for line in text.lines))
    devices, notes = describe(text, card_facts(text))
    notes += [UNCOUNTED, *gap_notes([device.index for device in devices], "devices")]
    return build_profile(devices, sources=sources(text), notes=notes)


def card_facts(text: ToolText) -> dict[int, dict[str, tuple[Line | None, str]]]:
    """The facts of each device.

    Raises:
        ToolOutputError: a line about a device has no key and value, or contradicts an earlier line.
    """
    cards: dict[int, dict[str, tuple[Line | None, str]]] = {}
    for line in text.lines:
        match = _LINE.match(line.text)
        if match is None:
            if _DEVICE.search(line.text):
                raise text.error(line, "a device's number, a colon, a key and its value")
            continue
        said = _TOPOLOGY.fullmatch(match[3].strip())
        key, colon, value = (said[1], ":", said[2]) if said else match[3].partition(":")
        if not colon:
            raise text.error(line, "a key and its value")
        facts = cards.setdefault(int(match[2]), {})
        key, value = " ".join(key.split()).lower(), value.strip()
        if _KEYS.fullmatch(key):
            if facts.get(key, (line, value))[1] != value:
                raise text.error(line, f"one value of {key!r} for {match[1]}[{match[2]}]")
            facts[key] = (line, value)
    return cards


def is_driver(text: ToolText) -> bool:
    return len(sources(text)) > 1


def read_driver(text: ToolText) -> HardwareProfile:
    """The driver's version alone."""
    refuse_amd(text, labels=False)
    return build_profile([], sources=sources(text), notes=["this output shows the driver and no devices"])

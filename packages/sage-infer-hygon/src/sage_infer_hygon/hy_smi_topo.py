"""``hy-smi --showtopo``: weights, hops, link types and NUMA nodes, one section each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from attrs import evolve
from sage_infer.schemas import HardwareProfile, LinkProfile
from sage_infer_hal.detection import Line, LinkMatrix, ToolText, build_profile, read_matrix

from sage_infer_hygon.dcu import describe, endpoint, refuse_amd, sources
from sage_infer_hygon.hy_smi_text import card_facts

__all__ = ["is_topology", "links", "read_topology"]

_TITLE = re.compile(r"\s*=+\s*(\S.*?\S)\s*=+\s*")
_LABEL = r"(?:HCU|DCU|GPU)\d+"
# HSW is the vendor's own switch, for which the schema has no kind.
_KINDS = {"XGMI": "xgmi", "PCIE": "pcie", "HSW": "other", "XHCL": "other"}


def is_topology(text: ToolText) -> bool:
    return text.search(r"(?i)=\s*(link type|hops|weight) between two") is not None


def read_topology(text: ToolText) -> HardwareProfile:
    """Devices by the numbers of the tables, their links and NUMA nodes.

    Raises:
        ToolOutputError: a table does not fit its heading, or the devices are another vendor's.
    """
    refuse_amd(text, labels=any(re.match(r"\s*GPU", line.text) for line in text.lines))
    matrix, joined = links(text)
    facts = card_facts(text)
    for number in _numbers(matrix):
        facts.setdefault(number, {})
    devices, notes = describe(text, facts)
    if matrix is None:
        notes.append("the table of link types is missing")
    return build_profile(devices, links=joined, sources=sources(text), notes=notes)


def links(text: ToolText) -> tuple[LinkMatrix | None, list[LinkProfile]]:
    """The table of link types with the links that it and the table of hops describe.

    Raises:
        ToolOutputError: a table does not fit its heading.
    """
    sections = _sections(text)
    types = read_matrix(text, sections.get("link type", ()), _LABEL, diagonal="0")
    hops = read_matrix(text, sections.get("hops", ()), _LABEL, diagonal="0")
    if types is None:
        return None, []

    def describe_code(code: str) -> Mapping[str, Any] | None:
        if code.isdecimal():
            raise text.error(None, f"the table of link types holds {code!r}, an unknown type")
        return None if code.upper() in ("N/A", "NA") else {"kind": _KINDS.get(code.upper(), "other")}

    found = types.links(lambda label: endpoint(_number(label)), describe_code)
    counts = {} if hops is None else hops.codes
    by_pair = {(endpoint(_number(a)), endpoint(_number(b))): count for (a, b), count in counts.items()}
    return types, [
        evolve(link, hops=int(count))
        if (count := by_pair.get((link.source, link.target), "")).isdecimal()
        else link
        for link in found
    ]


def _sections(text: ToolText) -> dict[str, list[Line]]:
    found: dict[str, list[Line]] = {}
    current: list[Line] = []
    for line in text.lines:
        title = _TITLE.fullmatch(line.text)
        if title is None:
            current.append(line)
            continue
        name = title[1].lower().partition(" between")[0]
        if name in found:
            raise text.error(line, f"one section {title[1]!r}")
        current = found[name] = []
    return found


def _numbers(matrix: LinkMatrix | None) -> list[int]:
    return [] if matrix is None else [_number(label) for label in matrix.labels]


def _number(label: str) -> int:
    return int(re.findall(r"\d+$", label)[0])

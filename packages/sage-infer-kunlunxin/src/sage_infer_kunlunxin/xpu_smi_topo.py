"""``xpu-smi topo -m``: how XPUs and network cards are joined."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from attrs import evolve
from sage_infer.schemas import AcceleratorDescriptor, HardwareProfile, LinkProfile
from sage_infer_hal.detection import LinkMatrix, ToolText, build_profile, read_matrix

from sage_infer_kunlunxin.xpu import endpoint, sources, xpu

__all__ = ["affinities", "is_topology", "links", "read_links", "read_topology"]

_LABEL = r"(?:XPU|NIC)\d+"
# XL is an XPULink; the others are nvidia-smi's names of PCIe paths, and mean the same here.
_CODES: Mapping[str, Mapping[str, Any]] = {
    "XL": {"kind": "xpu-link"},
    "PIX": {"kind": "pcie", "hops": 1},
    "PXB": {"kind": "pcie"},
    "PHB": {"kind": "pcie"},
    "NODE": {"kind": "pcie"},
    "SYS": {"kind": "pcie"},
}


def is_topology(text: ToolText) -> bool:
    return text.search(r"^\s*XPU\d+\s") is not None


def read_links(text: ToolText) -> LinkMatrix:
    """The matrix as it was printed.

    Raises:
        ToolOutputError: the table is missing, or a row does not match its heading.
    """
    matrix = read_matrix(text, text.lines, _LABEL, even=True)
    if matrix is None:
        raise text.error(text.lines[0] if text.lines else None, "the heading of the link table")
    return matrix


def _describe(code: str) -> Mapping[str, Any] | None:
    if code in ("NA", "N/A"):
        return None
    plain = re.fullmatch(r"XL\d*", code)
    return _CODES["XL"] if plain else _CODES.get(code, {"kind": "other"})


def links(text: ToolText, matrix: LinkMatrix) -> list[LinkProfile]:
    """Links of the matrix; network cards have the names of the legend."""
    names = dict(re.findall(r"(?m)^\s*(NIC\d+)\s*:\s*(\S+)", "\n".join(line.text for line in text.lines)))

    def end(label: str) -> str:
        return endpoint(_number(label)) if label.startswith("XPU") else f"nic:{names.get(label, label)}"

    return matrix.links(end, _describe)


def affinities(devices: list[AcceleratorDescriptor], matrix: LinkMatrix) -> list[AcceleratorDescriptor]:
    """Return the devices with their nearest NUMA node and CPUs in the matrix."""
    return [
        evolve(
            device,
            numa_node=matrix.numa_node.get(f"XPU{device.index}"),
            cpu_affinity=matrix.cpu_affinity.get(f"XPU{device.index}"),
        )
        for device in devices
    ]


def read_topology(text: ToolText) -> HardwareProfile:
    """Devices by the numbers of the table, their place and their links.

    Raises:
        ToolOutputError: a row does not fit the heading.
    """
    matrix = read_links(text)
    devices = [xpu(_number(label), None) for label in matrix.labels if label.startswith("XPU")]
    cut = [label for label in matrix.labels if label.startswith("XPU") and label not in matrix.rows]
    notes = ["this output shows neither names, memory nor bus ids"]
    if cut:
        notes.append(f"the link table has no row for {', '.join(cut)}")
    return build_profile(
        affinities(devices, matrix), links=links(text, matrix), sources=sources(text), notes=notes
    )


def _number(label: str) -> int:
    return int(re.findall(r"\d+$", label)[0])

"""``npu-smi info -t topo`` and ``npu-smi topo``: links between NPUs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from sage_infer.schemas import UNKNOWN_MODEL, AcceleratorDescriptor, Figure, HardwareProfile, LinkProfile
from sage_infer_hal.detection import LinkMatrix, ToolText, build_profile, read_matrix

from sage_infer_ascend.npu_rows import ascend

__all__ = ["is_topology", "links", "read_links", "read_topology"]

_LABEL = r"(?:NPU|Phy-ID)\d+"
# Codes and their meaning are those of the legend that npu-smi prints below the table. UB is the bus of newer
# generations, for which the schema has no kind of its own.
_CODES: Mapping[str, Mapping[str, Any]] = {
    "HCCS": {"kind": "hccs"},
    "HCCS_SW": {"kind": "hccs", "hops": 1},
    "SIO": {"kind": "sio"},
    "UB": {"kind": "other"},
    "PIX": {"kind": "pcie", "hops": 1},
    "PXB": {"kind": "pcie"},
    "PHB": {"kind": "pcie"},
    "SYS": {"kind": "pcie"},
}
_UNKNOWN = {"NA", "N/A"}
_MESH = Figure(
    value=28,
    source="chip table: 392 GB/s of HCCS a device over 7 links of a full mesh, both directions",
    confidence="low",
)


def is_topology(text: ToolText) -> bool:
    return any(re.match(rf"\s*{_LABEL}\s", f"{line.text} ") for line in text.lines)


def read_links(text: ToolText) -> LinkMatrix:
    """The matrix as printed.

    Raises:
        ToolOutputError: the matrix is missing, or a row does not match its heading.
    """
    matrix = read_matrix(text, text.lines, _LABEL, even=True)
    if matrix is None:
        raise text.error(text.lines[0], "the heading of the link table")
    return matrix


def links(matrix: LinkMatrix, endpoint: Callable[[str], str], *, mesh: bool = False) -> list[LinkProfile]:
    """Links of the matrix; ``mesh`` is true for chips with HCCS links of known rate (910B)."""

    def describe(code: str) -> Mapping[str, Any] | None:
        if code in _UNKNOWN:
            return None
        fields = _CODES.get(code, {"kind": "other"})
        return {**fields, "nominal_gbs": _MESH} if mesh and code == "HCCS" else fields

    return matrix.links(endpoint, describe)


def read_topology(text: ToolText) -> HardwareProfile:
    """Devices by the numbers of the table; nothing else is known about them."""
    matrix = read_links(text)
    number = {label: int(re.findall(r"\d+$", label)[0]) for label in matrix.labels}
    notes = ["this output shows neither names, memory nor bus ids"]
    if matrix.labels[0].startswith("Phy-ID"):
        notes.append("devices are numbered by physical id; `npu-smi info -m` shows logic ids")
    if cut := [ascend(number[label]) for label in matrix.labels if label not in matrix.rows]:
        notes.append(f"the link table has no row for {', '.join(cut)}")
    devices = [
        AcceleratorDescriptor(
            hardware_backend="ascend",
            vendor="Huawei",
            model=UNKNOWN_MODEL,
            index=number[label],
            cpu_affinity=matrix.cpu_affinity.get(label),
        )
        for label in matrix.labels
    ]
    return build_profile(
        devices,
        links=links(matrix, lambda label: ascend(number[label])),
        sources=[text.source],
        notes=notes,
    )

"""``cnmon topo -m``: links between MLUs.

There is no public recording of it as text. By public notes, its codes are MLK for MLU-Link and the names of PCIe paths.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sage_infer.schemas import HardwareProfile, LinkProfile
from sage_infer_hal.detection import LinkMatrix, ToolText, build_profile, read_matrix

from sage_infer_cambricon.mlu import endpoint, mlu

__all__ = ["is_topology", "links", "read_links", "read_topology"]

_LABEL = r"(?:MLU|Card)\d+"
_PCIE = re.compile(r"PIX|PXB|PHB|NODE|SYS|MUL|CPU")


def is_topology(text: ToolText) -> bool:
    return any(re.match(rf"\s*{_LABEL}\s", f"{line.text} ") for line in text.lines)


def read_links(text: ToolText) -> LinkMatrix:
    """Read the matrix as printed.

    Raises:
        ToolOutputError: the table is missing, or a row does not match its heading.
    """
    matrix = read_matrix(text, text.lines, _LABEL, even=True)
    if matrix is None:
        raise text.error(text.lines[0], "the heading of the link table")
    return matrix


def _describe(code: str) -> Mapping[str, Any] | None:
    if code in ("NA", "N/A"):
        return None
    if re.search("MLK|MLU-?Link", code, re.IGNORECASE):
        return {"kind": "mlu-link"}
    return {"kind": "pcie" if _PCIE.fullmatch(code) else "other"}


def links(matrix: LinkMatrix) -> list[LinkProfile]:
    """Links of the matrix."""
    return matrix.links(lambda label: endpoint(_number(label)), _describe)


def read_topology(text: ToolText) -> HardwareProfile:
    """Devices by the numbers of the table, of which only the numbers are known."""
    matrix = read_links(text)
    devices = [mlu(_number(label), None) for label in matrix.labels]
    return build_profile(
        devices,
        links=links(matrix),
        sources=[text.source],
        notes=["this output shows neither names, memory nor bus ids"],
    )


def _number(label: str) -> int:
    return int(re.findall(r"\d+$", label)[0])

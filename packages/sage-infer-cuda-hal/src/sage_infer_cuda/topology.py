"""``nvidia-smi topo -m``: links between GPUs and network cards, and the CPUs nearest to each GPU."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sage_infer.schemas import UNKNOWN_MODEL, AcceleratorDescriptor, HardwareProfile
from sage_infer_hal.detection import ToolText, read_matrix
from sage_infer_hal.detection.profiles import build_profile

__all__ = ["PATHS", "has_topology", "read_topology"]

_GPU = r"GPU\d+"
# Before driver 515 the columns of network cards are headed by device names.
_LABEL = rf"{_GPU}|NIC\d+|(?:bnxt_re|cxgb|efa|erdma|hfi1_|hns|ib|irdma|mlx\d_|mthca|qedr|rdmap|roce)\w*"
_HEADING = rf"^\s*{_GPU}(\s+({_LABEL})|\s+CPU Affinity|\s*$)"

PATHS: Mapping[str, Mapping[str, Any]] = {
    "SYS": {"kind": "pcie"},
    "SOC": {"kind": "pcie"},  # the name of SYS before driver 384
    "NODE": {"kind": "pcie"},
    "PHB": {"kind": "pcie"},
    "PXB": {"kind": "pcie"},
    "PIX": {"kind": "pcie", "hops": 1},
    "PSB": {"kind": "pcie", "hops": 1},
}
"""Fields of a link, by its path code. A single bridge is one hop; for other codes the number is unknown."""


_CODES = rf"X|{'|'.join(PATHS)}|NV[1-9]\d?|N/A"


def has_topology(text: ToolText) -> bool:
    """Whether the text has a heading of GPUs."""
    return text.search(_HEADING) is not None


def read_topology(text: ToolText) -> HardwareProfile:
    """Devices of which only index, NUMA node and CPUs are known, with their links.

    Raises:
        ToolOutputError: a row does not match the heading, or has an unknown code.
    """
    matrix = read_matrix(text, text.lines, _LABEL, fused=_CODES)
    if matrix is None:
        raise text.error(None, "a heading with GPU0, GPU1, …")
    unknown = {code for code in matrix.codes.values() if _path(code) is None and code.lower() != "n/a"}
    if unknown:
        code = min(unknown)
        line = text.search(rf"(?<!\S){re.escape(code)}(?!\S)")
        raise text.error(line, f"a path code ({', '.join(PATHS)}, NV1, …), not {code}")

    def endpoint(label: str) -> str:
        return f"cuda:{label[3:]}" if re.fullmatch(_GPU, label) else f"nic:{label.removeprefix('NIC')}"

    gpus = [label for label in matrix.labels if re.fullmatch(_GPU, label)]
    missing = [label for label in matrix.labels if label not in matrix.rows]
    notes = [f"the table has no row for {', '.join(missing)}: it is truncated"] if missing else []
    names = _network_names(text)
    if names:
        notes.append(names)
    notes += matrix.notes
    if not gpus or len(missing) == len(matrix.labels):
        raise text.error(None, "rows of GPUs below the heading")
    return build_profile(
        [
            AcceleratorDescriptor(
                hardware_backend="cuda",
                vendor="NVIDIA",
                model=UNKNOWN_MODEL,
                index=int(label[3:]),
                numa_node=matrix.numa_node.get(label),
                cpu_affinity=matrix.cpu_affinity.get(label),
            )
            for label in gpus
        ],
        sources=[f"{text.source} topo -m"],
        links=matrix.links(endpoint, _path),
        notes=notes,
    )


def _path(code: str) -> Mapping[str, Any] | None:
    if re.fullmatch(r"NV[1-9]\d?", code):
        return {"kind": "nvlink"}
    return PATHS.get(code)


def _network_names(text: ToolText) -> str:
    """Device names of NIC0 and so on, from the legend below the table; empty without a legend."""
    found = (re.fullmatch(r"\s*NIC(\d+): (\S+)", line.text) for line in text.lines)
    return ", ".join(f"nic:{match[1]} is {match[2]}" for match in found if match)

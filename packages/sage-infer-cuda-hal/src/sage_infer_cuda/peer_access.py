"""``nvidia-smi topo -p2p``: which GPUs can access each other's memory. It does not show their links."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sage_infer.schemas import UNKNOWN_MODEL, AcceleratorDescriptor, HardwareProfile
from sage_infer_hal.detection import ToolText, build_profile, read_matrix

__all__ = ["has_peer_access", "read_peer_access"]

_GPU = r"GPU\d+"
_MEANINGS: Mapping[str, str] = {
    "OK": "supported",
    "CNS": "the chipset does not support it",
    "GNS": "the GPU does not support it",
    "TNS": "the topology does not support it",
    "NS": "not supported",
    "DR": "disabled by a registry key",
    "DS": "disabled by a setting",
    "U": "unknown",
}
"""By the legend that nvidia-smi prints below the table."""


def has_peer_access(text: ToolText) -> bool:
    """Whether a GPU's row consists of such codes."""
    code = "|".join(_MEANINGS)
    return text.search(rf"^\s*{_GPU}(\s+X)?(\s+({code}))+(\s+X)?(\s+({code}))*\s*$") is not None


def read_peer_access(text: ToolText) -> HardwareProfile:
    """Return the GPUs of the table, of which only the numbers are known, with the access as notes.

    Raises:
        ToolOutputError: a row does not match the heading, is missing, or has an unknown code.
    """
    matrix = read_matrix(text, text.lines, _GPU, fused="X|" + "|".join(_MEANINGS))
    if matrix is None:
        raise text.error(None, "a heading with GPU0, GPU1, …")
    missing = [label for label in matrix.labels if label not in matrix.rows]
    if missing:
        raise text.error(text.lines[-1], f"a row for {missing[0]}, which the heading names")
    pairs: dict[str, list[str]] = {}
    for (row, column), code in matrix.codes.items():
        if code not in _MEANINGS:
            raise text.error(
                text.search(rf"(?<!\S){re.escape(code)}(?!\S)"), f"one of {', '.join(_MEANINGS)}"
            )
        pairs.setdefault(code, []).append(f"{_end(row)} → {_end(column)}")
    notes = [f"peer access is {code} ({_MEANINGS[code]}): {', '.join(ends)}" for code, ends in pairs.items()]
    notes.append("the table does not say which access it is of: reading, writing, atomics or NVLink")
    return build_profile(
        [
            AcceleratorDescriptor(
                hardware_backend="cuda", vendor="NVIDIA", model=UNKNOWN_MODEL, index=int(label[3:])
            )
            for label in matrix.labels
        ],
        sources=[f"{text.source} topo -p2p"],
        notes=notes,
    )


def _end(label: str) -> str:
    return f"cuda:{label[3:]}"

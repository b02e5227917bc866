"""Recorded outputs of ``cnmon`` and its companions."""

from __future__ import annotations

from sage_infer.schemas import HardwareProfile
from sage_infer_hal.detection import OutputKind, ToolText, no_card, read_recording

from sage_infer_cambricon.cndev_json import is_cndev, read_cndev
from sage_infer_cambricon.cnmon_info import is_info, read_info
from sage_infer_cambricon.cnmon_json import is_json, read_json
from sage_infer_cambricon.cnmon_table import is_table, read_table
from sage_infer_cambricon.cnmon_topo import is_topology, read_topology
from sage_infer_cambricon.cntopo_json import is_rings, read_rings
from sage_infer_cambricon.mlu import TOOL, VERSION

__all__ = ["read"]

_NO_CARD = r"(?i)\bno (mlu )?(devices?|cards?)\b|there is no (mlu )?(device|card)"


_KINDS = (
    OutputKind(command="cnmon", is_this=is_table, read=read_table),
    OutputKind(command="cnmon info", is_this=is_info, read=read_info),
    OutputKind(command="cnmon info -j", is_this=is_json, read=read_json),
    OutputKind(command="cnmon topo -m", is_this=is_topology, read=read_topology),
    OutputKind(command="cntopo find -O FILE", is_this=is_rings, read=read_rings),
    OutputKind(command="answers of libcndev as JSON", is_this=is_cndev, read=read_cndev),
    no_card(_NO_CARD, shorter_than=5),
)


def read(text: str, *, name: str) -> HardwareProfile:
    """The machine that a recorded output of ``cnmon`` or ``cntopo`` describes; ``name`` is its file's.

    Raises:
        ToolOutputError: the output is unknown or malformed.
    """
    return read_recording(_KINDS, ToolText.of(text, tool=TOOL, version=VERSION), name=name)

"""Recorded outputs of ``xpu-smi``, and of ``xpu_smi`` before it."""

from __future__ import annotations

from sage_infer.errors import ToolOutputError
from sage_infer.schemas import HardwareProfile
from sage_infer_hal.detection import OutputKind, ToolText, no_card, read_recording

from sage_infer_kunlunxin.xpu import TOOL, VERSION, refuse_intel
from sage_infer_kunlunxin.xpu_smi_devices import is_devices, read_devices
from sage_infer_kunlunxin.xpu_smi_list import is_list, is_machine, read_list, read_machine
from sage_infer_kunlunxin.xpu_smi_query import is_query, read_query
from sage_infer_kunlunxin.xpu_smi_table import is_table, read_table
from sage_infer_kunlunxin.xpu_smi_topo import is_topology, read_topology

__all__ = ["read"]

_NO_CARD = r"(?i)\bno (xpu |kunlun )?(devices?|cards?|xpus?)\b"


_KINDS = (
    OutputKind(command="xpu-smi", is_this=is_table, read=read_table),
    OutputKind(command="xpu_smi (driver 4)", is_this=is_devices, read=read_devices),
    OutputKind(command="xpu-smi -q", is_this=is_query, read=read_query),
    OutputKind(command="xpu-smi -L", is_this=is_list, read=read_list),
    OutputKind(command="xpu-smi topo -m", is_this=is_topology, read=read_topology),
    OutputKind(command="xpu-smi -m", is_this=is_machine, read=read_machine),
    no_card(_NO_CARD, shorter_than=5),
)


def read(text: str, *, name: str) -> HardwareProfile:
    """The machine that a recorded output of ``xpu-smi`` describes; ``name`` is the file name.

    Raises:
        ToolOutputError: the output is unknown, malformed, or from Intel's tool.
    """
    output = ToolText.of(text, tool=TOOL, version=VERSION)
    try:
        refuse_intel(output)
    except ToolOutputError as error:
        raise ToolOutputError(f"{name}: {error}") from error
    return read_recording(_KINDS, output, name=name)

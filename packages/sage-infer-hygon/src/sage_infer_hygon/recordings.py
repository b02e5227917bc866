"""Recorded outputs of ``hy-smi``, and of the ``rocm-smi`` that DTK brought before it."""

from __future__ import annotations

from sage_infer.schemas import HardwareProfile
from sage_infer_hal.detection import OutputKind, ToolText, no_card, read_recording

from sage_infer_hygon.dcu import TOOL, VERSION, refuse_amd
from sage_infer_hygon.hy_smi_json import is_csv, is_json, read_csv, read_json
from sage_infer_hygon.hy_smi_table import is_table, read_table
from sage_infer_hygon.hy_smi_text import is_driver, is_text, read_driver, read_text
from sage_infer_hygon.hy_smi_topo import is_topology, read_topology

__all__ = ["read"]

_NO_CARD = r"(?i)\bno (hygon )?(devices?|gpus?|cards?)\b.*(found|detected|available)|\bno [dh]cus?\b"


def _table(text: ToolText) -> HardwareProfile:
    refuse_amd(text, labels=text.search(r"^\s*GPU\s+Temp") is not None)
    return read_table(text)


_KINDS = (
    OutputKind(command="hy-smi", is_this=is_table, read=_table),
    OutputKind(command="hy-smi --showtopo", is_this=is_topology, read=read_topology),
    OutputKind(command="hy-smi --show… --json", is_this=is_json, read=read_json),
    OutputKind(command="hy-smi --show… --csv", is_this=is_csv, read=read_csv),
    OutputKind(command="hy-smi -a or --show…", is_this=is_text, read=read_text),
    OutputKind(command="hy-smi --showdriverversion", is_this=is_driver, read=read_driver),
    no_card(_NO_CARD, shorter_than=8),
)


def read(text: str, *, name: str) -> HardwareProfile:
    """The machine that a recorded output of ``hy-smi`` describes; ``name`` is its file's.

    Raises:
        ToolOutputError: the output is unknown, malformed, or from AMD's tool.
    """
    return read_recording(_KINDS, ToolText.of(text, tool=TOOL, version=VERSION), name=name)

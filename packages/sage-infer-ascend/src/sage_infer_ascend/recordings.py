"""Recorded outputs of ``npu-smi``."""

from __future__ import annotations

from sage_infer.errors import ToolOutputError
from sage_infer.schemas import HardwareProfile
from sage_infer_hal.detection import OutputKind, ToolText, no_card, read_recording, redacted

from sage_infer_ascend.npu_rows import TOOL, VERSION
from sage_infer_ascend.npu_smi_details import is_details, read_details
from sage_infer_ascend.npu_smi_info import is_info, read_info
from sage_infer_ascend.npu_smi_map import is_list, is_map, read_list, read_map
from sage_infer_ascend.npu_smi_topo import is_topology, read_topology

__all__ = ["FAILURE", "read"]

FAILURE = (
    r"(?i)dcmi mod\w+ init\w* failed|DrvMngGetConsoleLogLevel failed|command not found|fail to open device"
)

_NO_CARD = r"[Tt]here is no NPU card|[Nn]o NPU (card|device)"

_KINDS = (
    OutputKind(command="npu-smi info", is_this=is_info, read=read_info),
    OutputKind(command="npu-smi info -m", is_this=is_map, read=read_map),
    OutputKind(command="npu-smi info -l", is_this=is_list, read=read_list),
    OutputKind(command="npu-smi info -t topo", is_this=is_topology, read=read_topology),
    OutputKind(command="npu-smi info -t board|common|memory|usages", is_this=is_details, read=read_details),
    no_card(_NO_CARD),
)


def read(text: str, *, name: str) -> HardwareProfile:
    """The machine that a recorded output of ``npu-smi`` describes; ``name`` is the file name.

    Raises:
        ToolOutputError: the output is unknown or malformed.
    """
    output = ToolText.of(text, tool=TOOL, version=VERSION)
    failed = output.search(FAILURE)
    if failed is not None:
        raise ToolOutputError(
            f"{name}: npu-smi failed, line {failed.number}: {redacted(failed.text.strip())}; the driver is not loaded, "
            "does not match the firmware, or the user may not open the device"
        )
    return read_recording(_KINDS, output, name=name)

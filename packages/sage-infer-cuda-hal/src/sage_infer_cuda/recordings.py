"""Identify recordings of NVIDIA's tools and read them."""

from __future__ import annotations

from sage_infer.errors import ToolOutputError
from sage_infer.schemas import HardwareProfile
from sage_infer_hal.detection import OutputKind, ToolText, read_recording

from sage_infer_cuda.failures import FAILURE
from sage_infer_cuda.listing import (
    has_listing,
    has_remotes,
    has_speeds,
    read_listing,
    read_remotes,
    read_speeds,
)
from sage_infer_cuda.nccl import read_nccl_graph, read_nccl_topology
from sage_infer_cuda.peer_access import has_peer_access, read_peer_access
from sage_infer_cuda.smi_table import has_table, read_table
from sage_infer_cuda.smi_xml import read_smi_xml
from sage_infer_cuda.topology import has_topology, read_topology

__all__ = ["read"]

_VERSION = r"(?:<driver_version>|Driver Version: *)(\d[\d.]*)"


def _begins(element: str) -> str:
    return rf"^\s*<{element}[\s>]"


_KINDS = (
    OutputKind(
        command="nvidia-smi -q -x",
        is_this=lambda text: text.search(_begins("nvidia_smi_log")) is not None,
        read=read_smi_xml,
    ),
    OutputKind(command="nvidia-smi", is_this=has_table, read=read_table),
    OutputKind(command="nvidia-smi topo -p2p", is_this=has_peer_access, read=read_peer_access),
    OutputKind(command="nvidia-smi topo -m", is_this=has_topology, read=read_topology),
    OutputKind(command="nvidia-smi nvlink -s", is_this=has_speeds, read=read_speeds),
    OutputKind(command="nvidia-smi nvlink -R", is_this=has_remotes, read=read_remotes),
    OutputKind(command="nvidia-smi -L", is_this=has_listing, read=read_listing),
)
_NCCL_KINDS = (
    OutputKind(
        command="NCCL_TOPO_DUMP_FILE",
        is_this=lambda text: text.search(_begins("system")) is not None,
        read=read_nccl_topology,
    ),
    OutputKind(
        command="NCCL_GRAPH_DUMP_FILE",
        is_this=lambda text: text.search(_begins("graphs")) is not None,
        read=read_nccl_graph,
    ),
)


def read(text: str, *, name: str) -> HardwareProfile:
    """The machine, or part of it, that a recording describes; ``name`` is the file name, for messages.

    Raises:
        ToolOutputError: the output is unknown or malformed.
    """
    nccl = ToolText.of(text, tool="NCCL", version=r"<(?:system|graphs) version=\"(\d+)\"")
    if any(kind.is_this(nccl) for kind in _NCCL_KINDS):
        return read_recording(_NCCL_KINDS, nccl, name=name)
    smi = ToolText.of(text, tool="nvidia-smi", version=_VERSION)
    failed = smi.search(FAILURE)
    if failed is not None and not any(kind.is_this(smi) for kind in _KINDS):
        raise ToolOutputError(f"{name}: {smi.error(failed, 'devices, and nvidia-smi failed')}")
    return read_recording((*_KINDS, *_NCCL_KINDS), smi, name=name)

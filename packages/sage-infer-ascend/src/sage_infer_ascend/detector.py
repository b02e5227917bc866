"""The Ascend detector: ``npu-smi`` and PCI vendor 19e5."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from attrs import evolve
from sage_infer.errors import ToolOutputError
from sage_infer.schemas import HardwareProfile, LinkProfile
from sage_infer_hal.detection import (
    PciDevice,
    ToolDetector,
    ToolText,
    VendorTool,
    answers,
    build_profile,
)
from sage_infer_hal.detection.pci import SYSFS

from sage_infer_ascend.npu_rows import TOOL, VERSION, NpuRow, accelerators, ascend, sources
from sage_infer_ascend.npu_smi_info import read_rows
from sage_infer_ascend.npu_smi_map import read_map_rows, with_logic_ids
from sage_infer_ascend.npu_smi_topo import links, read_links

__all__ = ["AscendDetector"]

# 310, 310P, 910, 910B, 910C and later chips; the vendor's network cards and management chips have other ids.
_DEVICES = range(0xD100, 0xDA00)
_HCCS_MESH = ("910B1", "910B2", "910B3", "910B4")
_MESH_SIZE = 8


def _ask(tools: Sequence[str], devices: Sequence[PciDevice]) -> HardwareProfile:
    tool = tools[0]
    info, mapping, topology = answers([[tool, "info"], [tool, "info", "-m"], [tool, "info", "-t", "topo"]])
    if isinstance(info, ToolOutputError):
        raise info
    text = ToolText.of(info, tool=TOOL, version=VERSION)
    rows, notes = read_rows(text)
    try:
        if isinstance(mapping, ToolOutputError):
            raise mapping
        rows = with_logic_ids(rows, read_map_rows(ToolText.of(mapping, tool="npu-smi info -m")))
    except ToolOutputError as error:
        notes.append(f"no logic ids: {error}")
    found, more = accelerators(text, rows)
    notes += more
    joined: list[LinkProfile] = []
    try:
        if isinstance(topology, ToolOutputError):
            raise topology
        joined = _links(rows, [device.index for device in found], topology)
    except ToolOutputError as error:
        if len(found) > 1:
            notes.append(f"no links: {error}")
    return build_profile(found, links=joined, sources=sources(text), notes=notes)


def _links(rows: Sequence[NpuRow], indexes: Sequence[int], topology: str) -> list[LinkProfile]:
    """Links between the devices that ``npu-smi info`` lists, under their own numbers."""
    matrix = read_links(ToolText.of(topology, tool="npu-smi info -t topo"))
    cards = Counter(row.npu for row in rows)
    endpoints = {}
    for row, index in zip(rows, indexes, strict=True):
        if row.physical is not None:
            endpoints[f"Phy-ID{row.physical}"] = ascend(index)
        if cards[row.npu] == 1:
            endpoints[f"NPU{row.npu}"] = ascend(index)
    # A container may see only some of the host's devices, but the table lists all of them.
    codes = {pair: code for pair, code in matrix.codes.items() if set(pair) <= endpoints.keys()}
    if len(rows) > 1 and not codes:
        labels = ", ".join(matrix.labels)
        raise ToolOutputError(f"npu-smi info -t topo names {labels}, but `npu-smi info` lists none of them")
    names = {(row.name or "").removeprefix("Ascend").strip() for row in rows}
    mesh = len(rows) == _MESH_SIZE and names <= set(_HCCS_MESH)
    return links(evolve(matrix, codes=codes), endpoints.__getitem__, mesh=mesh)


NPU_SMI = VendorTool(
    vendor="Ascend",
    names=("npu-smi",),
    folders=("/usr/local/sbin", "/usr/local/bin", "/usr/local/Ascend/driver/tools"),
    pci_vendors={0x19E5},
    is_accelerator=lambda device: device.device in _DEVICES,
    ask=_ask,
    install="install the Ascend HDK driver and firmware",
)


class AscendDetector(ToolDetector):
    """This machine as reported by ``npu-smi``; see ``ToolDetector``."""

    def __init__(self, sysfs: Path = SYSFS) -> None:
        super().__init__(NPU_SMI, sysfs)

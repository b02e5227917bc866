"""``nvidia-smi -L``, ``nvlink -s`` and ``nvlink -R``: one line per GPU, followed by its details."""

from __future__ import annotations

import re
from collections import Counter

from attrs import define, evolve, field
from sage_infer.schemas import (
    AcceleratorDescriptor,
    AcceleratorPartition,
    Figure,
    HardwareProfile,
    LinkProfile,
)
from sage_infer_hal.detection import UNCOUNTED, Line, ToolText, bus_address, gap_notes, is_masked
from sage_infer_hal.detection.profiles import build_profile

from sage_infer_cuda.chips import described
from sage_infer_cuda.failures import failure_notes, is_failure

__all__ = ["has_listing", "has_remotes", "has_speeds", "read_listing", "read_remotes", "read_speeds"]

_GPU = r"GPU (\d+): (\S.*?)(?: \(UUID: ?([^)]*)\))?"
_SPEED = r"\s*Link (\d+): (?:(\d+(?:\.\d+)?) GB/s|<?inactive>?)"
_REMOTE = r"\s*Link (\d+): Remote Device ([0-9A-Fa-f:.]+): Link (\d+)"
_MIG = r"\s*MIG (\S+)\s+Device\s+(\d+): (?:\(UUID: ?([^)]*)\))?"
_NO_LINKS = r".*(?:Unable to retrieve NVLink information|NVLink is not supported|all links are inActive).*"


@define
class _Gpu:
    """A GPU's line and the lines below it."""

    device: AcceleratorDescriptor
    line: Line
    below: list[Line] = field(factory=list)
    links: list[tuple[Line, re.Match[str]]] = field(factory=list)


def has_speeds(text: ToolText) -> bool:
    return has_listing(text) and text.search(rf"^{_SPEED}$") is not None


def has_remotes(text: ToolText) -> bool:
    return has_listing(text) and text.search(rf"^{_REMOTE}$") is not None


def has_listing(text: ToolText) -> bool:
    return text.search(rf"^{_GPU}$") is not None


def read_listing(text: ToolText) -> HardwareProfile:
    """``nvidia-smi -L``: names and UUIDs, including MIG instances."""
    devices = []
    for gpu in _gpus(text):
        partitions = []
        for line in gpu.below:
            match = re.fullmatch(_MIG, line.text)
            if match is None and re.fullmatch(_NO_LINKS, line.text) is None:
                raise text.error(line, "a GPU or one of its MIG devices")
            if match is not None:
                partitions.append(
                    AcceleratorPartition(index=int(match[2]), profile=match[1], uuid=_uuid(match[3]))
                )
        devices.append(evolve(gpu.device, partitions=partitions))
    numbers = [device.index for device in devices]
    notes = [UNCOUNTED, *gap_notes(numbers, "GPUs"), *failure_notes(text)]
    return build_profile(devices, sources=[f"{text.source} -L"], notes=notes)


def read_speeds(text: ToolText) -> HardwareProfile:
    """``nvidia-smi nvlink -s``: total speed of each GPU's links; their far ends are not printed."""
    links = []
    gpus, notes = _linked(text, _SPEED, "a speed")
    for gpu in gpus:
        speeds = [float(match[2]) for _, match in gpu.links if match[2]]
        if not speeds:
            continue
        each = ", ".join(f"{count} links of {speed:g} GB/s" for speed, count in Counter(speeds).items())
        figure = Figure(value=round(sum(speeds), 3), source=f"{text.source} nvlink -s: {each}")
        end = f"cuda:{gpu.device.index}"
        for one, other in ((end, "nvlink"), ("nvlink", end)):
            links.append(
                LinkProfile(
                    source=one,
                    target=other,
                    kind="nvlink",
                    vendor_code=f"NV{len(speeds)}",
                    nominal_gbs=figure,
                )
            )
    return build_profile(
        [gpu.device for gpu in gpus], sources=[f"{text.source} nvlink -s"], links=links, notes=notes
    )


def read_remotes(text: ToolText) -> HardwareProfile:
    """``nvidia-smi nvlink -R``: the PCI address at the far end of each GPU's links, and the number of links."""
    gpus, notes = _linked(text, _REMOTE, "a remote device")
    ends: dict[int, Counter[str]] = {}
    for gpu in gpus:
        counted: Counter[str] = Counter()
        for line, match in gpu.links:
            address = bus_address(match[2])
            if address is None:
                raise text.error(line, "a PCI address of the remote device")
            counted[address] += 1
        ends[gpu.device.index] = counted
    own = _own_addresses(ends)
    if own:
        notes.append("PCI addresses are those at the far ends of the other GPU's links")
    names = {address: f"cuda:{index}" for index, address in own.items()}
    return build_profile(
        [evolve(gpu.device, pci_address=own.get(gpu.device.index)) for gpu in gpus],
        sources=[f"{text.source} nvlink -R"],
        links=[
            LinkProfile(
                source=f"cuda:{index}",
                target=names.get(address, f"pci:{address}"),
                kind="nvlink",
                vendor_code=f"NV{count}",
            )
            for index, counted in ends.items()
            for address, count in counted.items()
        ],
        notes=notes,
    )


def _own_addresses(ends: dict[int, Counter[str]]) -> dict[int, str]:
    """The address of each of two GPUs that are joined to each other: a link never leads back to its own GPU."""
    if len(ends) != 2:
        return {}
    (first, of_first), (second, of_second) = ends.items()
    if len(of_first) != 1 or len(of_second) != 1 or of_first.keys() & of_second.keys():
        return {}
    return {first: next(iter(of_second)), second: next(iter(of_first))}


def _gpus(text: ToolText) -> list[_Gpu]:
    gpus: list[_Gpu] = []
    for line in text.lines:
        match = re.fullmatch(_GPU, line.text)
        if is_failure(line.text):
            continue
        if match:
            if match[3] is None or "(UUID" in match[2]:
                raise text.error(line, "a GPU's name, and its UUID between parentheses")
            device = AcceleratorDescriptor(
                hardware_backend="cuda",
                vendor="NVIDIA",
                model=match[2],
                index=int(match[1]),
                uuid=_uuid(match[3]),
            )
            gpus.append(_Gpu(described(device), line))
        elif not gpus:
            raise text.error(line, "a line GPU 0: … first")
        else:
            gpus[-1].below.append(line)
    return gpus


def _linked(text: ToolText, pattern: str, what: str) -> tuple[list[_Gpu], list[str]]:
    """GPUs with the lines of their links, which are numbered consecutively from 0, and notes.

    A truncated recording may look complete. So GPUs of one model must have equally many links, and the links of a
    single GPU are left out.
    """
    gpus = _gpus(text)
    for gpu in gpus:
        for line in gpu.below:
            match = re.fullmatch(pattern, line.text)
            if match is not None:
                if int(match[1]) != len(gpu.links):
                    raise text.error(line, f"link {len(gpu.links)} of GPU {gpu.device.index}")
                gpu.links.append((line, match))
            elif re.fullmatch(_NO_LINKS, line.text) is None:
                raise text.error(line, f"{what} after a link's number")
    if len(gpus) == 1 and gpus[0].links:
        gpus[0].links.clear()
        return gpus, ["one GPU only: the recording may be truncated; its links are left out"]
    counts: dict[str, int] = {}
    for gpu in gpus:
        if gpu.links or not gpu.below:
            count = counts.setdefault(gpu.device.model, len(gpu.links))
            if count != len(gpu.links):
                raise text.error(gpu.line, f"{count} links, like the other {gpu.device.model}")
    notes = [UNCOUNTED, *gap_notes([gpu.device.index for gpu in gpus], "GPUs"), *failure_notes(text)]
    return gpus, notes


def _uuid(shown: str | None) -> str | None:
    """Return the UUID; None if it was replaced by other text."""
    found = re.fullmatch(r"\s*((?:GPU-|MIG-)?[0-9a-fA-F]{8}-[0-9a-fA-F/-]+|MIG-GPU-\S+)\s*", shown or "")
    return found[1] if found and not is_masked(found[1]) else None

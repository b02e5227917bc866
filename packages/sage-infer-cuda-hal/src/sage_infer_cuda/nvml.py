"""This machine as NVML reports it. ``pynvml`` is passed in, so that importing this module loads no driver."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import frozen
from sage_infer.errors import ToolOutputError
from sage_infer.schemas import (
    AcceleratorDescriptor,
    AcceleratorPartition,
    Figure,
    HardwareProfile,
    LinkProfile,
)
from sage_infer_hal.detection import PciDevice, bus_address
from sage_infer_hal.detection.profiles import build_profile

from sage_infer_cuda.chips import described
from sage_infer_cuda.cpu_masks import cpu_list
from sage_infer_cuda.pcie import pcie_links
from sage_infer_cuda.topology import PATHS

__all__ = ["read_nvml"]

_AFFINITY_WORDS = 32  # of 64 CPUs each
_ANCESTORS = (
    ("NVML_TOPOLOGY_INTERNAL", "PSB"),
    ("NVML_TOPOLOGY_SINGLE", "PIX"),
    ("NVML_TOPOLOGY_MULTIPLE", "PXB"),
    ("NVML_TOPOLOGY_HOSTBRIDGE", "PHB"),
    ("NVML_TOPOLOGY_NODE", "NODE"),
    ("NVML_TOPOLOGY_SYSTEM", "SYS"),
)  # as nvidia-smi topo -m prints them


@frozen
class _Gpu:
    """A device with its handle and the far ends of its active NVLinks: addresses, or None for an NVSwitch."""

    handle: Any
    device: AcceleratorDescriptor
    links: Sequence[str | None]
    link_gbs: float | None


def read_nvml(nvml: Any, pci: Sequence[PciDevice]) -> HardwareProfile:
    """The profile of all devices that answer, with a note for each one that does not.

    ``nvml`` is the module ``pynvml``, initialized; ``pci`` are NVIDIA's devices as sysfs lists them.

    Raises:
        ToolOutputError: NVML itself fails.
    """
    try:
        source = f"NVML of driver {_text(nvml.nvmlSystemGetDriverVersion())}"
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        raise ToolOutputError(f"NVML does not list its devices: {error}; run nvidia-smi") from error
    nodes = {device.address: device.numa_node for device in pci}
    gpus: list[_Gpu] = []
    links: list[LinkProfile] = []
    notes: list[str] = []
    for index in range(count):
        try:
            gpu = _gpu(nvml, index, nodes)
        except nvml.NVMLError as error:
            notes.append(f"cuda:{index} does not answer: {error}")
            continue
        gpus.append(gpu)
        ask = _asker(nvml, gpu.handle)
        links += pcie_links(
            f"cuda:{index}",
            generation=ask(nvml.nvmlDeviceGetMaxPcieLinkGeneration),
            width=ask(nvml.nvmlDeviceGetMaxPcieLinkWidth),
            source=source,
        )
    return build_profile(
        [gpu.device for gpu in gpus],
        sources=[source],
        links=[*links, *_device_links(nvml, gpus, source)],
        notes=notes,
    )


def _asker(nvml: Any, handle: Any) -> Callable[..., Any]:
    """Call a function of NVML with the handle; None if this device, driver or user does not support it."""
    unknown = {
        nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND, nvml.NVML_ERROR_NO_PERMISSION,
        nvml.NVML_ERROR_NOT_FOUND, nvml.NVML_ERROR_INVALID_ARGUMENT,
    }  # fmt: skip

    def ask(function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(handle, *arguments)
        except nvml.NVMLError as error:
            if error.value in unknown:
                return None
            raise

    return ask


def _gpu(nvml: Any, index: int, nodes: Mapping[str, int | None]) -> _Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    ask = _asker(nvml, handle)
    pci = ask(nvml.nvmlDeviceGetPciInfo)
    address = bus_address(_text(pci.busId)) if pci is not None else None
    memory = ask(nvml.nvmlDeviceGetMemoryInfo)
    capability = ask(nvml.nvmlDeviceGetCudaComputeCapability)
    affinity = ask(nvml.nvmlDeviceGetCpuAffinity, _AFFINITY_WORDS)
    uuid = ask(nvml.nvmlDeviceGetUUID)
    device = AcceleratorDescriptor(
        hardware_backend="cuda",
        vendor="NVIDIA",
        model=_text(nvml.nvmlDeviceGetName(handle)),
        index=index,
        uuid=_text(uuid) if uuid else None,
        pci_address=address,
        numa_node=nodes.get(address or ""),
        memory_bytes=int(memory.total) or None if memory is not None else None,
        compute_capability="{}.{}".format(*capability) if capability else None,
        cpu_affinity=cpu_list(sum(word << 64 * place for place, word in enumerate(affinity or ()))),
        partitions=_partitions(nvml, ask),
    )
    return _Gpu(handle, described(device), _active_links(nvml, ask), _link_gbs(nvml, ask))


def _partitions(nvml: Any, ask: Callable[..., Any]) -> list[AcceleratorPartition]:
    mode = ask(nvml.nvmlDeviceGetMigMode)
    if mode is None or mode[0] != nvml.NVML_DEVICE_MIG_ENABLE:
        return []
    found = []
    for index in range(ask(nvml.nvmlDeviceGetMaxMigDeviceCount) or 0):
        handle = ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, index)
        if handle is None:  # removed instances leave gaps in the indices
            continue
        ask_part = _asker(nvml, handle)
        name, uuid = ask_part(nvml.nvmlDeviceGetName), ask_part(nvml.nvmlDeviceGetUUID)
        memory, attributes = ask_part(nvml.nvmlDeviceGetMemoryInfo), ask_part(nvml.nvmlDeviceGetAttributes)
        profile = re.search(r"MIG (\S+)$", _text(name)) if name else None
        found.append(
            AcceleratorPartition(
                index=index,
                profile=profile[1] if profile else None,
                uuid=_text(uuid) if uuid else None,
                memory_bytes=int(memory.total) or None if memory is not None else None,
                compute_units=int(attributes.multiprocessorCount) or None if attributes is not None else None,
            )
        )
    return found


def _active_links(nvml: Any, ask: Callable[..., Any]) -> list[str | None]:
    ends: list[str | None] = []
    for link in range(nvml.NVML_NVLINK_MAX_LINKS):
        if ask(nvml.nvmlDeviceGetNvLinkState, link) != nvml.NVML_FEATURE_ENABLED:
            continue
        if ask(nvml.nvmlDeviceGetNvLinkRemoteDeviceType, link) == nvml.NVML_NVLINK_DEVICE_TYPE_SWITCH:
            ends.append(None)
            continue
        remote = ask(nvml.nvmlDeviceGetNvLinkRemotePciInfo, link)
        address = bus_address(_text(remote.busId)) if remote is not None else None
        if address is not None:
            ends.append(address)
    return ends


def _link_gbs(nvml: Any, ask: Callable[..., Any]) -> float | None:
    """GB/s of each of the device's NVLinks, one direction."""
    values = ask(nvml.nvmlDeviceGetFieldValues, [nvml.NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON])
    if not values or values[0].nvmlReturn != nvml.NVML_SUCCESS or not values[0].value.uiVal:
        return None
    return float(values[0].value.uiVal) / 1000


def _device_links(nvml: Any, gpus: Sequence[_Gpu], source: str) -> list[LinkProfile]:
    """NVLinks between two devices, else the PCIe path between them, with the codes of nvidia-smi topo -m."""
    codes = {getattr(nvml, name): code for name, code in _ANCESTORS}
    switched = {gpu.device.index: gpu.links.count(None) for gpu in gpus}
    found = []
    for one, other in itertools.permutations(gpus, 2):
        ends = f"cuda:{one.device.index}", f"cuda:{other.device.index}"
        through_switches = min(switched[one.device.index], switched[other.device.index])
        count = Counter(one.links)[other.device.pci_address] if other.device.pci_address else 0
        count = count or through_switches
        if count:
            found.append(_nvlink(*ends, count, one.link_gbs, source))
            continue
        level = _asker(nvml, one.handle)(nvml.nvmlDeviceGetTopologyCommonAncestor, other.handle)
        if level in codes:
            code = codes[level]
            found.append(LinkProfile(source=ends[0], target=ends[1], vendor_code=code, **PATHS[code]))
    return found


def _nvlink(one: str, other: str, count: int, link_gbs: float | None, source: str) -> LinkProfile:
    figure = None
    if link_gbs is not None:
        figure = Figure(
            value=round(count * link_gbs, 3), source=f"{source}: {count} links of {link_gbs:g} GB/s"
        )
    return LinkProfile(source=one, target=other, kind="nvlink", vendor_code=f"NV{count}", nominal_gbs=figure)


def _text(shown: str | bytes) -> str:
    return shown.decode("utf-8", errors="replace") if isinstance(shown, bytes) else shown

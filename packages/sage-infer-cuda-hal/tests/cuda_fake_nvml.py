"""A stand-in for ``pynvml`` that answers as NVML would on machines that are in the recordings.

There is no NVIDIA device where these tests run. Names, ids, memory, addresses, links and MIG instances below are
read from recorded output (``data/SOURCES.md``); constants and errors are those of the real ``nvidia-ml-py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pynvml
from attrs import field, frozen

__all__ = ["FakeNvml", "Gpu", "Mig"]


@frozen(kw_only=True)
class Mig:
    name: str
    uuid: str
    mib: int
    units: int


@frozen(kw_only=True)
class Gpu:
    """``links`` are the far ends of active NVLinks: an address, or None for an NVSwitch."""

    name: str
    uuid: str
    address: str
    mib: int
    capability: tuple[int, int]
    generation: int = 4
    width: int = 16
    cpus: int = 0
    links: Sequence[str | None] = ()
    link_mbps: int = 0
    migs: Mapping[int, Mig] = field(factory=dict)
    ancestors: Mapping[str, int] = field(factory=dict)
    lost: bool = False


class FakeNvml:
    """The functions of ``pynvml`` that the detector calls; a handle is the ``Gpu`` or ``Mig`` itself."""

    def __init__(self, *gpus: Gpu, driver: str = "580.105.08", starts: bool = True) -> None:
        self.gpus, self.driver, self.starts, self.open = gpus, driver, starts, 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("NVML"):
            return getattr(pynvml, name)
        raise AttributeError(name)

    def nvmlInit(self) -> None:
        if not self.starts:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return self.driver

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Gpu:
        if self.gpus[index].lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return self.gpus[index]

    def nvmlDeviceGetName(self, handle: Gpu | Mig) -> str:
        return handle.name

    def nvmlDeviceGetUUID(self, handle: Gpu | Mig) -> bytes:
        return handle.uuid.encode()  # older versions gave bytes

    def nvmlDeviceGetPciInfo(self, handle: Gpu) -> Any:
        return SimpleNamespace(busId=handle.address.encode())

    def nvmlDeviceGetMemoryInfo(self, handle: Gpu | Mig) -> Any:
        return SimpleNamespace(total=handle.mib * 1024 * 1024)

    def nvmlDeviceGetAttributes(self, handle: Mig) -> Any:
        return SimpleNamespace(multiprocessorCount=handle.units)

    def nvmlDeviceGetCudaComputeCapability(self, handle: Gpu) -> tuple[int, int]:
        return handle.capability

    def nvmlDeviceGetCpuAffinity(self, handle: Gpu, words: int) -> list[int]:
        return [handle.cpus >> 64 * place & (1 << 64) - 1 for place in range(words)]

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: Gpu) -> int:
        return handle.generation

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: Gpu) -> int:
        return handle.width

    def nvmlDeviceGetMigMode(self, handle: Gpu) -> list[int]:
        if not handle.migs:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [pynvml.NVML_DEVICE_MIG_ENABLE, pynvml.NVML_DEVICE_MIG_ENABLE]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Gpu) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Gpu, index: int) -> Mig:
        if index not in handle.migs:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return handle.migs[index]

    def nvmlDeviceGetNvLinkState(self, handle: Gpu, link: int) -> int:
        if not handle.links:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return int(link < len(handle.links))

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle: Gpu, link: int) -> int:
        switch = handle.links[link] is None
        return int(pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH if switch else pynvml.NVML_NVLINK_DEVICE_TYPE_GPU)

    def nvmlDeviceGetNvLinkRemotePciInfo(self, handle: Gpu, link: int) -> Any:
        return SimpleNamespace(busId=handle.links[link])

    def nvmlDeviceGetFieldValues(self, handle: Gpu, fields: list[int]) -> list[Any]:
        assert fields == [pynvml.NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON]
        status = pynvml.NVML_SUCCESS if handle.link_mbps else pynvml.NVML_ERROR_NOT_SUPPORTED
        return [SimpleNamespace(nvmlReturn=status, value=SimpleNamespace(uiVal=handle.link_mbps))]

    def nvmlDeviceGetTopologyCommonAncestor(self, one: Gpu, other: Gpu) -> int:
        if other.address not in one.ancestors:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return one.ancestors[other.address]

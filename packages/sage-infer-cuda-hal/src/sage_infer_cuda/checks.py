"""What ``sage infer doctor --vendor cuda`` checks: what users of NVIDIA GPUs report, each with its source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sage_infer.sdk.diagnosis import (
    Check,
    Finding,
    Machine,
    Part,
    VendorChecks,
    as_version,
    communication,
    device_files,
    visible_devices,
)
from sage_infer_hal.detection.pci import SYSFS

from sage_infer_cuda.detector import gpus_on_bus

__all__ = ["CHECKS"]

_DEVICE = "/dev/nvidia[0-9]*"
_DRIVER = Part(
    name="driver",
    files=("/proc/driver/nvidia/version",),
    expression=r"Kernel Module\D+?(?:64\s+)?(\d{3}\.[\d.]+)",
)
_PARTS = (
    _DRIVER,
    Part(name="torch", distribution="torch"),
    Part(name="CUDA runtime 12", distribution="nvidia-cuda-runtime-cu12"),
    Part(name="CUDA runtime 13", distribution="nvidia-cuda-runtime"),
    Part(name="vllm", distribution="vllm"),
)
_LEAST_DRIVERS = {13: 580, 12: 525}
"""Oldest branch of the driver by major version of CUDA, from NVIDIA's table of minor version compatibility."""


def _gpus_on_bus(machine: Machine) -> int:
    return len(gpus_on_bus(Path(f"{machine.root}{SYSFS}")))


def _old_driver(machine: Machine) -> Iterator[Finding]:
    driver = as_version(_DRIVER.version(machine))
    torch = machine.version("torch")
    runtime = as_version(
        machine.version("nvidia-cuda-runtime") or machine.version("nvidia-cuda-runtime-cu12")
    )
    if driver is None or runtime is None or not torch:
        return
    least = _LEAST_DRIVERS.get(runtime.major)
    if least is not None and driver.major < least:
        yield Finding(
            what=f"driver {driver} is older than {least}, which torch {torch} with CUDA {runtime.major} "
            f"needs: 'The NVIDIA driver on your system is too old'",
            fix=f"install driver {least} or newer on the host, or torch built for CUDA {runtime.major - 1}",
        )


CHECKS = VendorChecks(
    parts=_PARTS,
    nodes=("/dev/nvidia*",),
    variables=("CUDA_*", "NVIDIA_*"),
    checks=(
        device_files(
            _DEVICE,
            companions=("/dev/nvidiactl", "/dev/nvidia-uvm"),
            on_bus=_gpus_on_bus,
            docker="--gpus all",
            sources=(
                "https://github.com/NVIDIA/nvidia-docker/issues/1085",
                "https://github.com/vllm-project/vllm/issues/807",
            ),
        ),
        Check(
            name="driver",
            sources=(
                "https://github.com/modelscope/FunASR/issues/2973",
                "https://github.com/verl-project/verl-omni/issues/133",
                "https://github.com/vllm-project/vllm/issues/1772",
            ),
            find=_old_driver,
        ),
        visible_devices(
            "CUDA_VISIBLE_DEVICES",
            _DEVICE,
            sources=("https://github.com/vllm-project/vllm/issues/1016",),
        ),
        *communication("NCCL"),
    ),
)

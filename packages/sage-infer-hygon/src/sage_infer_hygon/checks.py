"""What ``sage infer doctor --vendor hygon`` checks: what users of this stack report, each with its source."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sage_infer.sdk.diagnosis import (
    Check,
    Finding,
    Machine,
    Part,
    VendorChecks,
    communication,
    device_files,
    mounted,
    one_platform,
    sourced,
    visible_devices,
)
from sage_infer_hal.detection import count_on_bus

from sage_infer_hygon.detector import HY_SMI

__all__ = ["CHECKS"]

_GPUSTACK = "https://github.com/gpustack/gpustack/issues"
_DEVICE = "/dev/dri/renderD*"

_DTK = Part(
    name="DTK",
    files=(
        "$ROCM_PATH/.info/version",
        "/opt/dtk/.info/version",
        "/opt/dtk-*/.info/version",
        "/opt/dtk/version",
    ),
)
_PARTS = (
    Part(
        name="driver",
        files=("/sys/module/hycu/version", "/sys/module/hydcu/version", "/opt/hyhal/.info/version"),
    ),
    _DTK,
    Part(name="torch", distribution="torch"),
    Part(name="vllm", distribution="vllm"),
)


def _release(label: str) -> str:
    """``dtk2504`` in a local version, or ``25.04.1`` → ``25.04``; empty if there is none."""
    match = re.search(r"dtk(\d\d)(\d\d)", label) or re.match(r"(\d\d)\.(\d\d)", label)
    return f"{match[1]}.{match[2]}" if match else ""


def _other_dtk(machine: Machine) -> Iterator[Finding]:
    toolkit = _DTK.version(machine)
    for name in ("torch", "vllm"):
        version = machine.version(name)
        built, here = _release(version.partition("+")[2]), _release(toolkit)
        if built and here and built != here:
            yield Finding(
                what=f"{name} {version} is built for DTK {built}, but DTK {toolkit} is installed: libraries such as "
                f"libgalaxyhip.so are not found",
                fix=f"pip install the wheel of {name} for DTK {here} from developer.sourcefind.cn, or use its image",
            )


CHECKS = VendorChecks(
    parts=_PARTS,
    nodes=("/dev/kfd", "/dev/mkfd", "/dev/dri/*"),
    variables=("AMD_*", "DTK_*", "HIP_*", "HSA_*", "ROCM_*", "ROCR_*"),
    checks=(
        device_files(
            _DEVICE,
            companions=("/dev/kfd", "/dev/mkfd"),
            on_bus=count_on_bus(HY_SMI),
            docker="--device /dev/kfd --device /dev/mkfd --device /dev/dri -v /opt/hyhal:/opt/hyhal --group-add video",
            sources=(
                f"{_GPUSTACK}/5104",
                f"{_GPUSTACK}/5337",
                "https://github.com/Project-HAMi/HAMi/issues/1776",
            ),
        ),
        mounted(
            "hyhal",
            files=("/opt/hyhal",),
            device=_DEVICE,
            what="DTK's .hyhal leads nowhere, and its compiler and libraries are not found",
            fix="docker run -v /opt/hyhal:/opt/hyhal:ro …",
            sources=(f"{_GPUSTACK}/5305", f"{_GPUSTACK}/5334"),
        ),
        sourced(
            "DTK environment",
            scripts=("/opt/dtk/env.sh", "/opt/dtk-*/env.sh"),
            variables=("ROCM_PATH", "HIP_PATH"),
            what="'libgalaxyhip.so.5: cannot open shared object file'",
            sources=(
                "https://github.com/PaddlePaddle/Paddle/issues/65227",
                "https://github.com/flagos-ai/FlagTree/issues/618",
            ),
        ),
        Check(name="DTK", sources=("https://github.com/flagos-ai/FlagTree/issues/618",), find=_other_dtk),
        one_platform("", sources=("https://github.com/HYGON-AI/inference-cookbook-das/issues/88",)),
        visible_devices(
            "HIP_VISIBLE_DEVICES",
            _DEVICE,
            sources=("https://github.com/Project-HAMi/HAMi/issues/1776", f"{_GPUSTACK}/3352"),
            others=("CUDA_VISIBLE_DEVICES",),
        ),
        *communication("NCCL"),
    ),
)

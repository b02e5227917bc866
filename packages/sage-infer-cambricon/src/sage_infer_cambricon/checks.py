"""What ``sage infer doctor --vendor cambricon`` checks: what users of this stack report, each with its source."""

from __future__ import annotations

from collections.abc import Iterator

from sage_infer.sdk.diagnosis import (
    Check,
    Finding,
    Machine,
    Part,
    VendorChecks,
    communication,
    device_files,
    one_platform,
    sourced,
    visible_devices,
)
from sage_infer_hal.detection import count_on_bus

from sage_infer_cambricon.detector import CNMON
from sage_infer_cambricon.needs import PLUGIN

__all__ = ["CHECKS"]

_DEVICE = "/dev/cambricon_dev[0-9]*"

_PARTS = (
    Part(
        name="driver",
        files=("/proc/driver/cambricon/version", "/proc/driver/cambricon/mlus/*/information"),
        expression=r"(?i)(?:driver|version)\D*v?(\d+(?:\.\d+)+)",
    ),
    Part(name="NeuWare", files=("$NEUWARE_HOME/version.txt", "/usr/local/neuware/version.txt")),
    Part(name="torch", distribution="torch"),
    Part(name="torch-mlu", distribution="torch-mlu"),
    Part(name="vllm", distribution="vllm"),
    Part(name="vllm-mlu", distribution="vllm-mlu"),
)


def _plain_vllm(machine: Machine) -> Iterator[Finding]:
    version = machine.version("vllm")
    runtime = next((n for n in ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12") if machine.version(n)), "")
    if version and runtime and "+empty" not in version:  # built with VLLM_TARGET_DEVICE=empty
        yield Finding(
            what=f"vllm {version} was installed with NVIDIA's CUDA ({runtime}): it looks for "
            "libcuda.so, not for an MLU",
            fix="VLLM_TARGET_DEVICE=empty pip install -e vllm, in the vendor's container, as the README "
            "of vllm-mlu says",
        )


CHECKS = VendorChecks(
    parts=_PARTS,
    nodes=("/dev/cambricon*",),
    variables=("CNCL_*", "CNRT_*", "MLU_*", "NEUWARE_HOME", "TORCH_*"),
    checks=(
        device_files(
            _DEVICE,
            companions=("/dev/cambricon_ctl",),
            on_bus=count_on_bus(CNMON),
            docker="--device /dev/cambricon_dev0 --device /dev/cambricon_ctl --device /dev/cambricon_ipcm0",
            sources=(
                "https://github.com/PaddlePaddle/docs/pull/5331",
                "https://github.com/Cambricon/vllm-mlu/pull/4",
            ),
        ),
        sourced(
            "NeuWare environment",
            scripts=("/usr/local/neuware",),
            variables=("NEUWARE_HOME",),
            what="'libmluops.so: cannot open shared object file' and the like",
            sources=(
                "https://github.com/PaddlePaddle/Paddle/issues/67084",
                "https://github.com/Cambricon/cambricon-k8s-device-plugin/issues/14",
            ),
            command="export NEUWARE_HOME={found} LD_LIBRARY_PATH={found}/lib64:$LD_LIBRARY_PATH",
        ),
        Check(name="vLLM", sources=("https://github.com/vllm-project/vllm/issues/9649",), find=_plain_vllm),
        one_platform(
            PLUGIN,
            sources=(
                "https://github.com/vllm-project/vllm/issues/48277",
                "https://github.com/flagos-ai/vllm-plugin-FL/pull/431",
            ),
        ),
        visible_devices(
            "MLU_VISIBLE_DEVICES",
            _DEVICE,
            sources=("https://github.com/gpustack/gpustack/issues/3352",),
        ),
        *communication("CNCL"),
    ),
)

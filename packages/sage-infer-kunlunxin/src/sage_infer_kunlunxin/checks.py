"""What ``sage infer doctor --vendor kunlunxin`` checks: what users of this stack report, each with its source."""

from __future__ import annotations

from collections.abc import Iterator

from sage_infer.sdk.diagnosis import (
    Check,
    Finding,
    Machine,
    Part,
    VendorChecks,
    as_version,
    communication,
    device_files,
    one_platform,
    releases,
    visible_devices,
)
from sage_infer_hal.detection import count_on_bus

from sage_infer_kunlunxin.detector import XPU_SMI
from sage_infer_kunlunxin.needs import PLUGIN

__all__ = ["CHECKS"]

_ISSUES = "https://github.com/baidu/vLLM-Kunlun/issues"
_PATCH = "https://github.com/baidu/vLLM-Kunlun/pull/229"
_GUIDE = "https://vllm-kunlun.readthedocs.io/en/latest/installation.html"
_DEVICE = "/dev/xpu[0-9]*"

_PARTS = (
    Part(
        name="driver",
        files=("/proc/kunlun/version", "/sys/module/kunlun/version"),
        expression=r"(\d+\.\d+\.\d+(?:\.\d+)*)",
    ),
    Part(name="XRE", files=("/usr/local/xpu/version", "/usr/local/xpu*/version.txt")),
    Part(name="torch", distribution="torch"),
    Part(name="transformers", distribution="transformers"),
    Part(name="vllm", distribution="vllm"),
    Part(name="vllm-kunlun", distribution="vllm-kunlun"),
)


def _not_patched(machine: Machine) -> Iterator[Finding]:
    torch, vllm = as_version(machine.version("torch")), machine.version("vllm")
    if torch is None or torch.release[:2] != (2, 5) or not vllm.startswith("0.15."):
        return
    # vLLM 0.15 is written for torch 2.7 and newer; the vendor's script rewrites this function for 2.5.
    if "patched_inline_call(self_: Any)" in machine.installed_text("vllm", "vllm/compilation/decorators.py"):
        yield Finding(
            what=f"vllm {vllm} is not patched for torch {torch}: models fail with AttributeError or TypeError",
            fix="python vllm_kunlun/patches/patch_torch251.py, in the sources of vLLM-Kunlun",
        )


CHECKS = VendorChecks(
    parts=_PARTS,
    nodes=("/dev/xpu*",),
    variables=("BKCL_*", "KUNLUN_*", "XFT_*", "XMLIR_*", "XPU*"),
    checks=(
        device_files(
            _DEVICE,
            companions=("/dev/xpuctrl",),
            on_bus=count_on_bus(XPU_SMI),
            docker="--device /dev/xpu0 --device /dev/xpuctrl -v /usr/local/bin/xpu-smi:/usr/local/bin/xpu-smi",
            sources=(
                "https://github.com/PaddlePaddle/Serving/issues/1996",
                "https://github.com/PaddlePaddle/Paddle/issues/74469",
                "https://opendatalab.github.io/MinerU/zh/usage/acceleration_cards/Kunlunxin",
            ),
        ),
        releases(
            _PARTS,
            anchor="vllm-kunlun",
            rows=({"vllm-kunlun": "==0.15.*", "torch": "==2.5.1", "transformers": "==4.57.*"},),
            sources=(f"{_ISSUES}/386", f"{_ISSUES}/451", f"{_ISSUES}/469", f"{_ISSUES}/337", _GUIDE),
        ),
        Check(name="patch of vLLM", sources=(_PATCH, f"{_ISSUES}/293", f"{_ISSUES}/335"), find=_not_patched),
        one_platform(PLUGIN, sources=("https://github.com/vllm-project/vllm/issues/48277",)),
        visible_devices(
            "XPU_VISIBLE_DEVICES",
            _DEVICE,
            sources=(
                "https://github.com/PaddlePaddle/FastDeploy/pull/2794",
                "https://github.com/gpustack/gpustack/issues/3352",
            ),
            groups=(frozenset({0, 1, 2, 3}), frozenset({4, 5, 6, 7})),
            others=("CUDA_VISIBLE_DEVICES",),
        ),
        *communication("BKCL"),
    ),
)

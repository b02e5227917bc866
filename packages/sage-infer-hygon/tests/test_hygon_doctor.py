"""``sage infer doctor --vendor hygon`` on machines with the symptoms that users report."""

from __future__ import annotations

from pathlib import Path

import pytest
from sage_infer_hygon.needs import NEEDS
from sage_infer_testing.doctor import Symptom, WorkingMachine, assert_diagnosed, assert_healthy

COOKBOOK = "https://github.com/HYGON-AI/inference-cookbook-das/issues/88"
PCI = "/sys/bus/pci/devices/0000:33:00.0"

MACHINE = WorkingMachine(
    vendor="hygon",
    needs=NEEDS,
    versions={"torch": "2.9.0+das.opt1.dtk2604", "vllm": "0.18.1+das.dtk2604"},
    device_nodes=("/dev/mkfd", "/dev/kfd"),
    files={
        "/dev/dri/renderD128": "", "/dev/dri/renderD129": "", "/opt/hyhal/.info/version": "6.3.13\n",
        "/opt/dtk/.info/version": "26.04.0\n", "/opt/dtk/env.sh": "export ROCM_PATH=/opt/dtk\n",
        "/sys/module/hycu/version": "6.3.13-V1.12.0\n",
        f"{PCI}/vendor": "0x1d94\n", f"{PCI}/device": "0x6210\n", f"{PCI}/class": "0x0b4000\n",
    },
    environment={"ROCM_PATH": "/opt/dtk"},
)  # fmt: skip

SYMPTOMS = {
    "env.sh not sourced": Symptom(
        report="https://github.com/PaddlePaddle/Paddle/issues/65227", environment={"ROCM_PATH": None},
        says="libgalaxyhip.so.5: cannot open shared object file", fix="source /opt/dtk/env.sh",
    ),
    "built for another DTK": Symptom(
        report="https://github.com/flagos-ai/FlagTree/issues/618", versions={"torch": "2.9.0+das.opt1.dtk2504"},
        says="torch 2.9.0+das.opt1.dtk2504 is built for DTK 25.04, but DTK 26.04.0 is installed",
        fix="the wheel of torch for DTK 26.04",
    ),
    "no device passed on": Symptom(
        report="https://github.com/gpustack/gpustack/issues/5104", lacks=("/dev/dri",),
        says="1 devices are on the PCI bus, but /dev/dri/renderD* does not exist", fix="--device /dev/dri",
    ),
    "only some files passed on": Symptom(
        report="https://github.com/Project-HAMi/HAMi/issues/1776", lacks=("/dev/kfd",),
        says="/dev/dri/renderD128 to /dev/dri/renderD129 without /dev/kfd", fix="docker run --device /dev/kfd",
    ),
    "hyhal not mounted": Symptom(
        report="https://github.com/gpustack/gpustack/issues/5305", lacks=("/opt/hyhal",),
        says="/opt/hyhal does not exist: DTK's .hyhal leads nowhere", fix="docker run -v /opt/hyhal:/opt/hyhal:ro",
    ),
    "a platform beside the built-in one": Symptom(
        report=COOKBOOK, platforms={"lmcache_cuda": "lmcache-platform"},
        says="lmcache_cuda (lmcache-platform) is installed as well", fix="pip uninstall lmcache-platform",
    ),
    "two selections": Symptom(
        report="https://github.com/Project-HAMi/HAMi/issues/1776", severity="warning",
        environment={"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"},
        says="HIP_VISIBLE_DEVICES=0 and CUDA_VISIBLE_DEVICES=1 select different devices",
        fix="unset CUDA_VISIBLE_DEVICES",
    ),
    "every device hidden": Symptom(
        report="https://github.com/Project-HAMi/HAMi/issues/1776", environment={"HIP_VISIBLE_DEVICES": ""},
        says="HIP_VISIBLE_DEVICES is empty, which hides every device", fix="unset HIP_VISIBLE_DEVICES",
    ),
}  # fmt: skip


def test_a_machine_that_works_has_no_problems(tmp_path: Path) -> None:
    assert_healthy(tmp_path, MACHINE)


@pytest.mark.parametrize("name", SYMPTOMS)
def test_a_symptom_is_one_line_with_its_fix(name: str, tmp_path: Path) -> None:
    assert_diagnosed(tmp_path, MACHINE, SYMPTOMS[name])


def test_pip_replaced_hygons_torch(tmp_path: Path) -> None:
    """The need of torch says it, so there is no second line."""
    symptom = Symptom(
        report=COOKBOOK, versions={"torch": "2.9.0"},
        says="torch 2.9.0 is installed, expected the vendor's build (+das)",
        fix="pip install the wheel of torch for the installed DTK",
    )  # fmt: skip
    assert_diagnosed(tmp_path, MACHINE, symptom)

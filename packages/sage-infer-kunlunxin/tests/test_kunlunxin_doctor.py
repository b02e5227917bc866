"""``sage infer doctor --vendor kunlunxin`` on machines with the symptoms that users report."""

from __future__ import annotations

from pathlib import Path

import pytest
from sage_infer_kunlunxin.needs import NEEDS
from sage_infer_testing.doctor import Symptom, WorkingMachine, assert_diagnosed, assert_healthy

ISSUES = "https://github.com/baidu/vLLM-Kunlun/issues"
PCI = "/sys/bus/pci/devices/0000:53:00.0"

MACHINE = WorkingMachine(
    vendor="kunlunxin",
    needs=NEEDS,
    versions={"torch": "2.5.1+cu118", "transformers": "4.57.0", "vllm": "0.15.1", "vllm-kunlun": "0.15.1"},
    device_nodes=("/dev/xpu[0-9]*", "/dev/xpuctrl"),
    files={
        **{f"/dev/xpu{index}": "" for index in range(1, 8)},
        "/proc/kunlun/version": "Driver Version: 5.0.21.26\n",
        f"{PCI}/vendor": "0x2057\n", f"{PCI}/device": "0x3686\n", f"{PCI}/class": "0x120000\n",
        "site:vllm/compilation/decorators.py": "def patched_inline_call(parent, func, args, kwargs): ...\n",
    },
)  # fmt: skip

SYMPTOMS = {
    "torch too new": Symptom(
        report=f"{ISSUES}/469", versions={"torch": "2.9.0"},
        says="torch 2.9.0 does not go with vllm-kunlun 0.15.1, which needs ==2.5.1",
        fix="pip install torch==2.5.1 'transformers==4.57.*'",
    ),
    "transformers too new": Symptom(
        report=f"{ISSUES}/337", versions={"transformers": "5.2.0"},
        says="transformers 5.2.0 does not go with vllm-kunlun 0.15.1", fix="'transformers==4.57.*'",
    ),
    "the plug-in of PyPI": Symptom(
        report=f"{ISSUES}/355", versions={"vllm-kunlun": "0.11.1"},
        says="vllm-kunlun>=0.15,<0.16 0.11.1 is installed", fix="install vllm-kunlun 0.15.1 from its source",
    ),
    "vLLM is not patched for the torch of the vendor": Symptom(
        report="https://github.com/baidu/vLLM-Kunlun/pull/229",
        files={"site:vllm/compilation/decorators.py": "def patched_inline_call(self_: Any) -> Any: ...\n"},
        says="vllm 0.15.1 is not patched for torch 2.5.1+cu118", fix="python vllm_kunlun/patches/patch_torch251.py",
    ),
    "no device passed on": Symptom(
        report="https://github.com/PaddlePaddle/Serving/issues/1996",
        lacks=("/dev/xpu0", *(f"/dev/xpu{index}" for index in range(1, 8))),
        says="1 devices are on the PCI bus, but /dev/xpu[0-9]* does not exist",
        fix="docker run --device /dev/xpu0 --device /dev/xpuctrl",
    ),
    "the control device is missing": Symptom(
        report="https://opendatalab.github.io/MinerU/zh/usage/acceleration_cards/Kunlunxin", lacks=("/dev/xpuctrl",),
        says="/dev/xpu0 to /dev/xpu7 without /dev/xpuctrl", fix="docker run --device /dev/xpuctrl",
    ),
    "four devices of two groups": Symptom(
        report="https://github.com/PaddlePaddle/FastDeploy/pull/2794", severity="warning",
        environment={"XPU_VISIBLE_DEVICES": "2,3,4,5"},
        says="devices of different groups are not linked; use 0,1,2,3 or 4,5,6,7",
        fix="export XPU_VISIBLE_DEVICES=0,1,2,3",
    ),
    "two selections": Symptom(
        report="https://github.com/PaddlePaddle/FastDeploy/pull/2794", severity="warning",
        environment={"XPU_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"},
        says="select different devices", fix="unset CUDA_VISIBLE_DEVICES",
    ),
}  # fmt: skip


def test_a_machine_that_works_has_no_problems(tmp_path: Path) -> None:
    assert_healthy(tmp_path, MACHINE)


@pytest.mark.parametrize("name", SYMPTOMS)
def test_a_symptom_is_one_line_with_its_fix(name: str, tmp_path: Path) -> None:
    assert_diagnosed(tmp_path, MACHINE, SYMPTOMS[name])

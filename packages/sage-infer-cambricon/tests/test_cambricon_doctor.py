"""``sage infer doctor --vendor cambricon`` on machines with the symptoms that users report."""

from __future__ import annotations

from pathlib import Path

import pytest
from sage_infer_cambricon.needs import NEEDS
from sage_infer_testing.doctor import Symptom, WorkingMachine, assert_diagnosed, assert_healthy

PCI = "/sys/bus/pci/devices/0000:1a:00.0"

MACHINE = WorkingMachine(
    vendor="cambricon",
    needs=NEEDS,
    versions={"torch": "2.7.1", "torch-mlu": "1.28.0", "vllm": "0.13.0+empty", "vllm-mlu": "0.13.0"},
    device_nodes=("/dev/cambricon_dev[0-9]*", "/dev/cambricon_ctl"),
    files={
        "/usr/local/neuware/version.txt": "Neuware Version 4.4.3\n",
        "/proc/driver/cambricon/mlus/0000:1a:00.0/information": "Device name: MLU590\nDriver Version: v6.2.10\n",
        f"{PCI}/vendor": "0xcabc\n", f"{PCI}/device": "0x0590\n", f"{PCI}/class": "0x120000\n",
    },
    environment={"NEUWARE_HOME": "/usr/local/neuware"},
)  # fmt: skip

SYMPTOMS = {
    "NeuWare not on the path": Symptom(
        report="https://github.com/PaddlePaddle/Paddle/issues/67084", environment={"NEUWARE_HOME": None},
        says="$NEUWARE_HOME is not set: 'libmluops.so: cannot open shared object file'",
        fix="export NEUWARE_HOME=/usr/local/neuware LD_LIBRARY_PATH=/usr/local/neuware/lib64:$LD_LIBRARY_PATH",
    ),
    "NVIDIA's vLLM": Symptom(
        report="https://github.com/vllm-project/vllm/issues/9649",
        versions={"vllm": "0.13.0", "nvidia-cuda-runtime-cu12": "12.8.90"},
        says="vllm 0.13.0 was installed with NVIDIA's CUDA (nvidia-cuda-runtime-cu12)",
        fix="VLLM_TARGET_DEVICE=empty pip install -e vllm",
    ),
    "the plug-in is missing": Symptom(
        report="https://github.com/vllm-project/vllm/issues/9649", versions={"vllm-mlu": None},
        says="vllm-mlu>=0.13,<0.14 not installed", fix="git clone https://github.com/Cambricon/vllm-mlu",
    ),
    "no device passed on": Symptom(
        report="https://github.com/PaddlePaddle/docs/pull/5331", lacks=("/dev/cambricon_dev0",),
        says="1 devices are on the PCI bus, but /dev/cambricon_dev[0-9]* does not exist",
        fix="docker run --device /dev/cambricon_dev0 --device /dev/cambricon_ctl",
    ),
    "the control device is missing": Symptom(
        report="https://github.com/Cambricon/vllm-mlu/pull/4", lacks=("/dev/cambricon_ctl",),
        says="/dev/cambricon_dev0 without /dev/cambricon_ctl", fix="docker run --device /dev/cambricon_ctl",
    ),
    "a device that is not there": Symptom(
        report="https://github.com/gpustack/gpustack/issues/3352", environment={"MLU_VISIBLE_DEVICES": "1"},
        says="MLU_VISIBLE_DEVICES=1: 1 not here", fix="export MLU_VISIBLE_DEVICES=0",
    ),
    "two platforms": Symptom(
        report="https://github.com/flagos-ai/vllm-plugin-FL/pull/431", platforms={"fl": "vllm-plugin-fl"},
        says="fl (vllm-plugin-fl) is installed as well", fix="pip uninstall vllm-plugin-fl",
    ),
}  # fmt: skip


def test_a_machine_that_works_has_no_problems(tmp_path: Path) -> None:
    assert_healthy(tmp_path, MACHINE)


@pytest.mark.parametrize("name", SYMPTOMS)
def test_a_symptom_is_one_line_with_its_fix(name: str, tmp_path: Path) -> None:
    assert_diagnosed(tmp_path, MACHINE, SYMPTOMS[name])

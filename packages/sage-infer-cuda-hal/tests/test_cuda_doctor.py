"""``sage infer doctor --vendor cuda`` on machines with the symptoms that users report."""

from __future__ import annotations

from pathlib import Path

import pytest
from sage_infer_testing.doctor import Symptom, WorkingMachine, assert_diagnosed, assert_healthy

PCI = "/sys/bus/pci/devices/0000:17:00.0"
NVRM = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build  (root@builder)\n"

MACHINE = WorkingMachine(
    vendor="nvidia",
    versions={"torch": "2.11.0", "nvidia-cuda-runtime": "13.0.96", "vllm": "0.32.0"},
    device_nodes=("/dev/nvidia[0-9]*", "/dev/nvidiactl", "/dev/nvidia-uvm"),
    files={
        "/dev/nvidia1": "",
        "/proc/driver/nvidia/version": NVRM.format(version="580.95.05"),
        f"{PCI}/vendor": "0x10de\n", f"{PCI}/device": "0x2330\n", f"{PCI}/class": "0x030200\n",
    },
)  # fmt: skip

SYMPTOMS = {
    "driver too old for torch": Symptom(
        report="https://github.com/modelscope/FunASR/issues/2973",
        files={"/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.10  Fri\n"},
        says="driver 570.86.10 is older than 580, which torch 2.11.0 with CUDA 13 needs",
        fix="install driver 580 or newer on the host, or torch built for CUDA 12",
    ),
    "uvm not passed on": Symptom(
        report="https://github.com/NVIDIA/nvidia-docker/issues/1085", lacks=("/dev/nvidia-uvm",),
        says="/dev/nvidia0 to /dev/nvidia1 without /dev/nvidia-uvm", fix="docker run --device /dev/nvidia-uvm",
    ),
    "no GPU passed on": Symptom(
        report="https://github.com/vllm-project/vllm/issues/807", lacks=("/dev/nvidia0", "/dev/nvidia1"),
        says="1 devices are on the PCI bus, but /dev/nvidia[0-9]* does not exist", fix="docker run --gpus all",
    ),
    "devices that are not there": Symptom(
        report="https://github.com/vllm-project/vllm/issues/1016", environment={"CUDA_VISIBLE_DEVICES": "3,6"},
        says="CUDA_VISIBLE_DEVICES=3,6: 3, 6 not here", fix="export CUDA_VISIBLE_DEVICES=0,1",
    ),
    "a device named twice": Symptom(
        report="https://github.com/vllm-project/vllm/issues/1016", environment={"CUDA_VISIBLE_DEVICES": "1,1"},
        says="a device is named twice", fix="export CUDA_VISIBLE_DEVICES=1",
    ),
    "a list in words": Symptom(
        report="https://github.com/vllm-project/vllm/issues/1016", environment={"CUDA_VISIBLE_DEVICES": "0;1"},
        says="'0;1' is no number; expected numbers separated by commas", fix="export CUDA_VISIBLE_DEVICES=0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ["working", "by UUID", "older CUDA", "no torch"])
def test_machines_that_work_have_no_problems(name: str, tmp_path: Path) -> None:
    from attrs import evolve

    machine = {
        "working": MACHINE,
        "by UUID": evolve(MACHINE, environment={"CUDA_VISIBLE_DEVICES": "GPU-0fd2f5c8"}),
        "older CUDA": evolve(
            MACHINE,
            versions={"torch": "2.8.0", "nvidia-cuda-runtime-cu12": "12.8.90", "vllm": "0.28.0"},
            files={**MACHINE.files, "/proc/driver/nvidia/version": NVRM.format(version="535.183.01")},
        ),
        "no torch": evolve(MACHINE, versions={"vllm": "0.32.0"}),
    }[name]
    assert_healthy(tmp_path, machine)


@pytest.mark.parametrize("name", SYMPTOMS)
def test_a_symptom_is_one_line_with_its_fix(name: str, tmp_path: Path) -> None:
    assert_diagnosed(tmp_path, MACHINE, SYMPTOMS[name])

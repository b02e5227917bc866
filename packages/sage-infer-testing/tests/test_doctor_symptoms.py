"""Symptoms as files and environments find what ``doctor`` says, and what it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve
from sage_infer import Need
from sage_infer_testing.doctor import (
    Symptom,
    WorkingMachine,
    assert_diagnosed,
    assert_healthy,
    diagnose,
    without_variables,
)

PLUGIN = """
from sage_infer import BackendSpec, DetectorSpec, Need, hookimpl

NEED = Need(what="plug-in", distributions={"vllm-toy": ">=1"}, entry_point="vllm.platform_plugins:toy",
            install="get it")


@hookimpl
def sage_infer_detectors():
    return [DetectorSpec(name="toy-doctor", factory="toy_doctor:Detector", hardware={"toyhw"},
                         device_nodes=("/dev/toy[0-9]*",), checks="toy_doctor:CHECKS")]


@hookimpl
def sage_infer_backends():
    return [BackendSpec(name="toy-doctor", factory="toy_doctor:Detector", serves={"llm"}, hardware={"toyhw"},
                        needs=(NEED,), device_nodes=("/dev/toy[0-9]*",))]
"""
CHECKS = """
from sage_infer.sdk.diagnosis import VendorChecks, one_platform, sourced, visible_devices

SOURCE = ("https://example.com/1",)


class Detector: ...


CHECKS = VendorChecks(
    checks=(
        sourced("toolkit", scripts=("/opt/toy/env.sh",), variables=("VLLM_TOY_HOME",), what="no library",
                sources=SOURCE),
        visible_devices("VLLM_TOYS", "/dev/toy[0-9]*", sources=SOURCE, others=("CUDA_TOYS",)),
        one_platform("toy", sources=SOURCE),
    ),
)
"""
NEED = Need(
    what="plug-in", distributions={"vllm-toy": ""}, entry_point="vllm.platform_plugins:toy", install="x"
)
MACHINE = WorkingMachine(
    vendor="toyhw",
    needs=(NEED,),
    versions={"vllm-toy": "1.0"},
    device_nodes=("/dev/toy[0-9]*",),
    files={
        "/opt/toy/env.sh": "",
        "/opt/toy/lib/libtoy.so": "",
        "site:toy_doctor_plugin.py": PLUGIN,
        "site:toy_doctor.py": CHECKS,
        "site:toy_sage-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: toy-sage\nVersion: 1.0\n",
        "site:toy_sage-1.0.dist-info/entry_points.txt": "[sage_infer.backends]\ntoy-doctor = toy_doctor_plugin\n",
    },
    environment={"VLLM_TOY_HOME": "/opt/toy"},
)
SOURCED = Symptom(
    report="https://example.com/1",
    says="$VLLM_TOY_HOME is not set: no library",
    fix="source /opt/toy/env.sh",
    environment={"VLLM_TOY_HOME": None},
)


def test_the_machine_works(tmp_path: Path) -> None:
    assert_healthy(tmp_path, MACHINE)


@pytest.mark.parametrize(
    "symptom",
    [
        SOURCED,
        evolve(SOURCED, says="vllm-toy>=1 not installed", fix="get it", environment={}, versions={"vllm-toy": None}),
        evolve(SOURCED, says="fl (vllm-fl)", fix="uninstall vllm-fl", environment={}, platforms={"fl": "vllm-fl"}),
        evolve(
            SOURCED, says="select different devices", fix="unset CUDA_TOYS", severity="warning",
            environment={"VLLM_TOYS": "0", "CUDA_TOYS": "1"},
        ),
    ],
)  # fmt: skip
def test_a_symptom_is_found(symptom: Symptom, tmp_path: Path) -> None:
    assert_diagnosed(tmp_path, MACHINE, symptom)


@pytest.mark.parametrize(
    ("symptom", "message"),
    [
        (evolve(SOURCED, environment={}), "doctor says 0 lines instead of one"),
        (
            evolve(SOURCED, environment={"VLLM_TOY_HOME": None, "VLLM_TOYS": "7"}),
            "doctor says 2 lines instead of one",
        ),
        (evolve(SOURCED, says="another thing"), "without: another thing"),
        (evolve(SOURCED, fix="another fix"), "without the fix: another fix"),
        (evolve(SOURCED, severity="note"), "expected as note"),
    ],
)
def test_another_line_than_that_of_the_symptom_fails(symptom: Symptom, message: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_diagnosed(tmp_path, MACHINE, symptom)


def test_a_machine_that_does_not_work_is_no_start(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="on the working machine, doctor says:\nerror: toolkit: "):
        assert_healthy(tmp_path, evolve(MACHINE, environment={}))


def test_files_and_folders_are_removed(tmp_path: Path) -> None:
    symptom = evolve(SOURCED, lacks=("/opt/toy/lib", "/opt/toy/env.sh", "/opt/none"))
    code, report = diagnose(tmp_path, MACHINE, symptom)
    assert (code, report["problems"]) == (0, [])
    assert not (tmp_path / "root/opt/toy/lib").exists()


def test_variables_of_this_machine_do_not_matter() -> None:
    environ = {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0", "PYTHONHASHSEED": "0", "MINE": "1"}
    assert without_variables(environ, ["MINE"]) == {"PATH": "/bin"}

"""Sick machines: symptoms of a vendor's stack, as files and environments for ``sage infer doctor --vendor NAME``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen
from sage_infer.specs import Need

from sage_infer_testing.stand_in import add_distribution
from sage_infer_testing.vllm_stand_in import add_vendor_stack

__all__ = ["WorkingMachine", "Symptom", "assert_diagnosed", "assert_healthy", "diagnose", "without_variables"]


_DOCTOR = (sys.executable, "-m", "sage_infer.cli.main", "infer", "doctor")


@frozen(kw_only=True)
class WorkingMachine:
    """A machine on which a vendor's stack works.

    Attributes:
        vendor: the vendor, for ``--vendor``.
        needs: the needs of its backends.
        versions: the distributions.
        device_nodes: patterns of the devices; one device of each.
        files: further files by path, with their text; ``site:…`` is a file of an installed distribution.
        environment: environment variables.
    """

    vendor: str
    versions: Mapping[str, str]
    needs: tuple[Need, ...] = ()
    device_nodes: tuple[str, ...] = ()
    files: Mapping[str, str] = field(factory=dict)
    environment: Mapping[str, str] = field(factory=dict)


@frozen(kw_only=True)
class Symptom:
    """What differs on a broken machine, and what ``doctor`` says about it.

    Attributes:
        report: address of the public report.
        says: text in the one line about it.
        fix: text in the fix.
        versions: distributions of other versions, or more of them; None for one that is missing.
        files: files of other text, or more of them.
        lacks: paths below the root that do not exist.
        environment: environment variables of other values, or more of them; None for one that is not set.
        platforms: further platform plug-ins of vLLM, with their distributions.
        severity: error, warning or note.
    """

    report: str
    says: str
    fix: str
    versions: Mapping[str, str | None] = field(factory=dict)
    files: Mapping[str, str] = field(factory=dict)
    lacks: tuple[str, ...] = ()
    environment: Mapping[str, str | None] = field(factory=dict)
    platforms: Mapping[str, str] = field(factory=dict)
    severity: str = "error"


def diagnose(
    folder: Path,
    machine: WorkingMachine,
    symptom: Symptom | None = None,
    *arguments: str,
    timeout_s: float = 600,
) -> tuple[int, dict[str, Any]]:
    """Run ``sage infer doctor --vendor … --json`` on the machine; return its exit code and its report.

    Args:
        folder: an empty folder for the machine's files.
        machine: the machine.
        symptom: what differs; None for the working machine.
        arguments: further arguments of the command.
        timeout_s: time limit in seconds.
    """
    site, root = folder / "site", folder / "root"
    changes = symptom or Symptom(report="", says="", fix="")
    versions = {**machine.versions, **changes.versions}
    installed = {name: version for name, version in versions.items() if version is not None}
    needs = [
        need
        for need in machine.needs
        if need.entry_point is None or need.distributions.keys() <= installed.keys()
    ]
    for path, text in {**machine.files, **changes.files}.items():
        file = (site if path.startswith("site:") else root) / path.removeprefix("site:").lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    made = add_vendor_stack(site, root, needs, installed, device_nodes=machine.device_nodes)
    for name, distribution in changes.platforms.items():
        add_distribution(
            site, distribution, "1.0", {f"vllm.platform_plugins:{name}": "other_plugin:register"}
        )
    for path in changes.lacks:
        _remove(root / path.lstrip("/"))
    variables = {**machine.environment, **changes.environment}
    environment = {
        **without_variables(os.environ, variables),
        **{name: value for name, value in variables.items() if value is not None},
        **made,
        "PYTHONPATH": os.pathsep.join(filter(None, [made["PYTHONPATH"], *sys.path])),
    }
    child = subprocess.run(
        [*_DOCTOR, "--vendor", machine.vendor, "--json", *arguments],
        capture_output=True, text=True, timeout=timeout_s, env=environment, cwd=folder,
    )  # fmt: skip
    assert child.returncode in (0, 1), child.stderr
    report: dict[str, Any] = json.loads(child.stdout)
    return child.returncode, report


def assert_healthy(folder: Path, machine: WorkingMachine) -> None:
    """Assert that ``doctor`` finds nothing on the working machine."""
    code, report = diagnose(folder, machine)
    found = _lines(report)
    assert not found, f"on the working machine, doctor says:\n{_shown(found)}"
    assert code == 0 or any("sage-infer-vllm" in problem["where"] for problem in report["problems"])


def assert_diagnosed(folder: Path, machine: WorkingMachine, symptom: Symptom) -> None:
    """Assert that ``doctor`` says one line, that of the symptom, and exits with 1 if it is an error."""
    code, report = diagnose(folder, machine, symptom)
    found = _lines(report)
    assert len(found) == 1, f"doctor says {len(found)} lines instead of one:\n{_shown(found)}"
    (line,) = found
    assert symptom.says in line["what"], f"doctor says:\n{_shown(found)}\nwithout: {symptom.says}"
    assert symptom.fix in line["fix"], f"doctor says:\n{_shown(found)}\nwithout the fix: {symptom.fix}"
    assert line["severity"] == symptom.severity, f"expected as {symptom.severity}:\n{_shown(found)}"
    if symptom.severity == "error":
        assert code == 1, "an error must end in exit code 1"


def _lines(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Its problems, without the adapter, which a vendor's wheel can be tested without."""
    return [problem for problem in report["problems"] if "sage-infer-vllm" not in problem["where"]]


def _shown(problems: Iterable[Mapping[str, Any]]) -> str:
    return "\n".join(f"{p['severity']}: {p['where']}: {p['what']}\n    fix: {p['fix']}" for p in problems)


def without_variables(environ: Mapping[str, str], more: Iterable[str] = ()) -> dict[str, str]:
    """The environment without variables that the checks of any vendor look at, and without ``more``."""
    prefixes = (
        "ACL_", "ASCEND_", "ATB_", "BKCL_", "CNCL_", "CUDA_", "GLOO_", "HCCL_", "HIP_", "MLU_", "MOONCAKE_", "NCCL_",
        "NEUWARE_", "PYTORCH_", "RANK_TABLE", "ROCM_", "SAGE_INFER_", "TP_", "VLLM_", "XPU_",
    )  # fmt: skip
    dropped = {*more, "PYTHONHASHSEED", "LD_LIBRARY_PATH"}
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(prefixes) and name not in dropped
    }


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

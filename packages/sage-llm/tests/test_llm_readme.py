"""The README's example prints what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_example_of_policies_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = README.read_text("utf-8").split("## Policies")[1]
    found = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert found is not None
    exec(compile(found[1], str(README), "exec"), {})
    expected = re.search(r"# (dispatch .*)", found[1])
    assert expected is not None
    assert capsys.readouterr().out.strip() == expected[1]


def test_the_example_of_the_simulator_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = README.read_text("utf-8").split("## Simulator")[1]
    found = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert found is not None
    exec(compile(found[1], str(README), "exec"), {})
    assert capsys.readouterr().out.strip() == "200 0"

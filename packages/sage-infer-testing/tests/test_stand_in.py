"""Stand-ins do what they are told, and say what they were asked."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from pathlib import Path

import pytest
from sage_infer_testing.stand_in import Replay, add_distribution, calls_of, stand_in_tool


def test_a_tool_replays_what_was_recorded_and_nothing_else(tmp_path: Path) -> None:
    tool = stand_in_tool(
        tmp_path, "smi", {"": "ä\n", "info -m": Replay(prints="no\n", exit_code=3, writes={"f": "x"})}
    )
    assert calls_of(tool) == []
    folder = tmp_path / "work"
    folder.mkdir()
    run = {"capture_output": True, "text": True, "cwd": folder, "env": {**os.environ, "LC_ALL": "C"}}
    assert subprocess.run([tool], **run, encoding="utf-8").stdout == "ä\n"  # type: ignore[call-overload]
    done = subprocess.run([tool, "info", "-m"], **run)  # type: ignore[call-overload]
    assert (done.returncode, done.stdout, (folder / "f").read_text()) == (3, "no\n", "x")
    unknown = subprocess.run([tool, "info", "-x"], **run)  # type: ignore[call-overload]
    assert unknown.returncode == 1
    assert "this stand-in has no recording of 'smi info -x'" in unknown.stderr
    assert calls_of(tool) == ["", "info -m", "info -x"]


def test_a_distribution_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_distribution(tmp_path / "site", "some-dist", "1.2", {"a.group:name": "module:thing"})
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert importlib.metadata.version("some-dist") == "1.2"
    (entry,) = importlib.metadata.entry_points(group="a.group", name="name")
    assert entry.value == "module:thing"

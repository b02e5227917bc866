from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from sage_infer.discovery import Registry
from sage_infer_testing.stand_in import add_distribution

if "SAGE_RANDOM_EXAMPLES" not in os.environ:
    settings.load_profile("ci")  # of hypothesis: the same examples in each run, and no limit of time


class Site:
    """A folder of installed distributions, each with a plug-in module; nothing else is installed there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, name: str, source: str) -> None:
        """A distribution ``NAME-dist`` whose entry point names the module ``NAME_module`` with this source."""
        points = {f"sage_infer.backends:{name}": f"{name}_module"}
        add_distribution(self.folder, f"{name}-dist", "1.0", points)
        (self.folder / f"{name}_module.py").write_text(source)

    def registry(self) -> Registry:
        found = sorted(importlib.metadata.distributions(path=[str(self.folder)]), key=lambda d: d.name)
        return Registry([point for dist in found for point in dist.entry_points])


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield Site(tmp_path)
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


class Sage:
    """Runs the ``sage`` command in a process of its own, with the toy plug-in installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        add_distribution(folder / "site", "toy-sage", "1.0", {"sage_infer.backends:toy": "toy_plugin"})
        toy = Path(__file__).parent / "toy"
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("SAGE_INFER_")},
            "PYTHONPATH": os.pathsep.join([str(toy), str(folder / "site")]),
            "HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder / "config"),
        }

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sage_infer.cli.main", *arguments],
            capture_output=True, text=True, timeout=600, cwd=self.folder, env=self.environment | environment,
        )  # fmt: skip

    def json(self, *arguments: str) -> Any:
        done = self(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def fails(self, *arguments: str, code: int) -> str:
        """The one line of a clean failure: nothing on stdout, no traceback, the expected exit code."""
        done = self(*arguments)
        assert (done.returncode, done.stdout) == (code, ""), (done.returncode, done.stdout, done.stderr)
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        return line


@pytest.fixture
def sage(tmp_path: Path) -> Sage:
    return Sage(tmp_path)

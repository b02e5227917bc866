"""Runs a test module of kit classes inside this process, and gives what became of each test."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from sage_infer_testing.child import Recorder

__all__ = ["run_module"]

_NUMBERS = itertools.count(1)


def run_module(source: str, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """Events of pytest on a module with this source. ``arguments`` that begin with ``::`` select tests."""
    # A new name each time: pytest takes a module that was imported before from sys.modules.
    module = folder / f"test_vendor_{next(_NUMBERS)}.py"
    module.write_text(source, "utf-8")
    config = folder / "pytest.ini"
    config.write_text("[pytest]\n")
    chosen = [f"{module}{a}" for a in arguments if a.startswith("::")] or [str(module)]
    options = [a for a in arguments if not a.startswith("::")]
    events = io.StringIO()
    fixed = [
        f"--config-file={config}",
        f"--rootdir={folder}",
        "-p",
        "no:cacheprovider",
        "--import-mode=importlib",
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main([*fixed, *options, *chosen], plugins=[Recorder(events)])
    return [json.loads(line) for line in events.getvalue().splitlines()]

"""Runs a test module of kit classes inside this process, and gives what became of each test."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from sage_infer_testing.child import Recorder

__all__ = ["run_module"]

_NUMBERS = itertools.count(1)
# Which test fails matters, not the shortest example: on a busy machine, the search for it takes minutes.
settings.register_profile(
    "first failure", phases=(Phase.explicit, Phase.generate), report_multiple_bugs=False
)


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
    profile = getattr(settings, "get_current_profile_name", lambda: "default")()  # older ones have none
    settings.load_profile("first failure")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            pytest.main([*fixed, *options, *chosen], plugins=[Recorder(events)])
    finally:
        settings.load_profile(profile)
    return [json.loads(line) for line in events.getvalue().splitlines()]

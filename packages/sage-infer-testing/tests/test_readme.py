"""The README's examples run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from kit_runs import run_module

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)


@pytest.mark.usefixtures("vendor")
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_passes(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = EXAMPLES[number].replace("my_engine.plugin", "kit_vendor_plugin")
    events = run_module(source, tmp_path, "-k", "healthy or deterministic or heavy or json or usage or twice")
    outcomes = {f"{e['suite']}::{e['name']}": e["outcome"] for e in events if e["event"] == "finished"}
    assert outcomes, events
    assert set(outcomes.values()) <= {"passed", "skipped", "xfailed"}, outcomes

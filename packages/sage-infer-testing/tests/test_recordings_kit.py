"""The kit for recordings passes on a careful reader and finds what careless ones get wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kit_recordings import CARELESS, RECORDING, CarefulReader
from kit_runs import run_module
from sage_infer_testing import RecordingContract


class TestCareful(RecordingContract):
    damaged = 300

    def read(self, text: str, *, name: str) -> Any:
        return CarefulReader().read(text, name)


@pytest.fixture(autouse=True, scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "acme.txt").write_text(RECORDING)
    TestCareful.folder = folder


@pytest.mark.parametrize("name", sorted(CARELESS))
def test_a_careless_reader_is_found(name: str, tmp_path: Path) -> None:
    _, test = CARELESS[name]
    (tmp_path / "acme.txt").write_text(RECORDING)
    source = f"""
from pathlib import Path
from kit_recordings import CARELESS
from sage_infer_testing import RecordingContract

class TestCareless(RecordingContract):
    folder = Path({str(tmp_path)!r})
    pattern = "*.txt"
    damaged = 300

    def read(self, text, *, name):
        return CARELESS[{name!r}][0]().read(text, name)
"""
    events = run_module(source, tmp_path, f"::TestCareless::{test}")
    (result,) = [event for event in events if event["event"] == "finished"]
    assert result["outcome"] == "failed"
    assert result["advice"]

"""The kit fails on each implementation with one fault, in the test that is there for it, in words that name it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import sage_infer_testing.loop
from kit_mutants import embedders, ending, running, sampling, stores  # noqa: F401 - they fill the table
from kit_mutants.table import MUTANTS, Mutant
from kit_runs import run_module

pytestmark = pytest.mark.long

PAGE = Path(__file__).resolve().parents[3] / "docs" / "contract-kit.md"
MODULE = """
from kit_mutants.table import MUTANTS
globals().update({mutant.suite.__name__: mutant.suite for mutant in MUTANTS})
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """What became of each mutant's test, from one run in this process."""
    chosen = [f"::{mutant.suite.__name__}::{mutant.test}" for mutant in MUTANTS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sage_infer_testing.loop, "_GRACE_S", 0.2)
        events = run_module(MODULE, tmp_path_factory.mktemp("mutants"), *chosen)
    return {(e["suite"], e["name"]): e for e in events if e["event"] == "finished"}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_killed(mutant: Mutant, results: dict[tuple[str, str], dict[str, Any]]) -> None:
    result = results[mutant.suite.__name__, mutant.test]
    assert result["outcome"] == "failed", (
        f"survived: {mutant.fault} ({result['outcome']}: {result['reason']})"
    )
    assert re.search(mutant.says, result["reason"]), result["reason"]
    assert result["advice"]


def test_there_are_enough() -> None:
    kinds = [mutant.kind for mutant in MUTANTS]
    assert kinds.count("backend") >= 30
    assert kinds.count("store") >= 15
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_the_page_lists_them() -> None:
    """``docs/contract-kit.md`` has a row for each mutant, and no others."""
    if not PAGE.exists():
        pytest.skip("the documentation is not here")
    rows = re.findall(
        r"^\| (backend|embedder|store) \| (.+?) \| `(test_\w+)` \|$", PAGE.read_text("utf-8"), re.M
    )
    assert rows == [(mutant.kind, mutant.fault, mutant.test) for mutant in MUTANTS]

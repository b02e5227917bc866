"""Each broken part fails the contract test that is there for its mistake."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from kit_broken import (  # noqa: F401 - they register their mistakes
    detectors,
    embedding,
    executors,
    hybrid,
    hybrid_tokenizing,
    mapped_stores,
    moving,
    observable_stores,
    stores,
    transports,
)
from kit_broken.suites import FOUND_BY
from kit_runs import run_module

MODULE = "from kit_broken.suites import SUITES\nglobals().update(SUITES)\n"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """What became of every pair of part and test, from one run."""
    chosen = [f"::{suite}::{test}" for suite, test in sorted(FOUND_BY)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOY_VISIBLE_DEVICES", "")
        patch.delitem(sys.modules, "cupy", raising=False)
        events = run_module(MODULE, tmp_path_factory.mktemp("broken"), *chosen)
    return {(e["suite"], e["name"]): e for e in events if e["event"] == "finished"}


@pytest.mark.parametrize(("suite", "test"), FOUND_BY)
def test_mistake_is_found(suite: str, test: str, results: dict[tuple[str, str], dict[str, Any]]) -> None:
    result = results[suite, test]
    assert result["outcome"] == "failed"
    assert result["advice"]
    assert not result["reason"].startswith(("TypeError", "NameError", "KeyError")), result["details"]

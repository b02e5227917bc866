"""Each broken engine fails the contract test that is there for its mistake, with advice."""

from __future__ import annotations

from typing import Any

import pytest
import sage_infer_testing.loop
from kit_broken import (  # noqa: F401 - they register their mistakes
    disaggregation,
    endings,
    inputs,
    requests,
    resuming,
    sampling,
    streams,
)
from kit_broken.mistakes import MISTAKES, Mistake
from kit_runs import run_module

pytestmark = pytest.mark.long

MODULE = """
from {module} import {engine}
from sage_infer.schemas import QuantizationProfile
from sage_infer_testing import InferenceBackendContract

class Test{engine}(InferenceBackendContract):
    timeout_s = 1.0
    settle_s = 0.2
    max_queue = 24
    quant_profile = QuantizationProfile(profile_id="full", weight_bits=32)

    def make_backend(self):
        return {engine}()
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of every pair of engine and test, from one run."""
    engines = {(mistake.module, mistake.engine) for mistake in MISTAKES}
    source = "\n".join(MODULE.format(module=module, engine=engine) for module, engine in sorted(engines))
    chosen = sorted(f"::Test{mistake.engine}::{mistake.test}" for mistake in MISTAKES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sage_infer_testing.loop, "_GRACE_S", 0.2)
        events = run_module(source, tmp_path_factory.mktemp("broken"), *chosen)
    finished = [event for event in events if event["event"] == "finished"]
    return {f"{event['suite'].removeprefix('Test')}-{event['name']}": event for event in finished}


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_mistake_is_found(mistake: Mistake, results: dict[str, dict[str, Any]]) -> None:
    result = results[str(mistake)]
    assert result["outcome"] == "failed"
    assert result["reason"]
    assert not result["reason"].startswith(("TypeError", "AttributeError", "NameError", "KeyError")), result[
        "details"
    ]
    assert result["advice"]

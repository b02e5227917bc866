"""The parts of recovery: ledger, health, breaker, restarts and the migration budget."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_cluster import any_speed
from sage_infer.schemas import (
    CapabilityDescriptor,
    InstanceDescriptor,
    InstanceReport,
    SamplingParams,
    TokenDelta,
)
from sage_llm.manager.breaker import Breaker
from sage_llm.manager.health import HealthLimits, judge
from sage_llm.manager.ledger import Ledger
from sage_llm.manager.live_instance import LiveInstance
from sage_llm.manager.migration import MigrationBudget, replay_obstacle, with_seed
from sage_llm.manager.restarts import RestartLimits, Restarts

LIMITS = HealthLimits(suspect_s=1.0, lost_s=2.0, stuck_s=5.0, revive_s=10.0)


def instance(**report: Any) -> LiveInstance:
    """An instance that was heard at 100 and made its last step then."""
    capability = CapabilityDescriptor(
        backend_name="toy", instance_type="general", hardware_backend="cpu", max_batch_size=4,
        max_sequence_length=64, supported_precisions=("fp32",),
    )  # fmt: skip
    descriptor = InstanceDescriptor(
        instance_id="toy/0", generation=1, model_ids=("toy",), capability=capability
    )
    found = LiveInstance(0, SimpleNamespace(descriptor=descriptor, backend=None), "toy")  # type: ignore[arg-type]  # what the tests need of a connection
    values = {"state": "ready", "running": 0, "waiting": 0, **report}
    found.heard(InstanceReport(instance_id="toy/0", generation=1, seq=1, taken_at=0.0, **values))
    found.heard_at = found.steps_at = 100.0
    return found


@pytest.mark.parametrize(
    ("word", "report", "after", "expected"),
    [
        ("ready", {}, 0.5, None),
        ("ready", {}, 1.5, "suspect"),
        ("suspect", {}, 1.5, None),
        ("suspect", {}, 0.1, "ready"),
        ("ready", {}, 2.5, "lost"),
        ("suspect", {}, 2.5, "lost"),
        ("draining", {}, 1.5, None),
        ("draining", {}, 2.5, "lost"),
        ("lost", {}, 0.1, "probation"),
        ("lost", {}, 5.0, None),
        ("lost", {}, 11.0, "dead"),
        ("ready", {"state": "dead"}, 0.1, "dead"),
        ("dead", {}, 50.0, None),
    ],
)
def test_health_by_reports(word: Any, report: dict[str, Any], after: float, expected: str | None) -> None:
    found = instance(**report)
    found.word = word
    verdict = judge(found, 100.0 + after, LIMITS)
    assert (None if verdict is None else verdict[0]) == expected


@pytest.mark.parametrize(
    ("step_s", "still", "expected"),
    [(0.1, 4.0, None), (0.1, 6.0, "suspect"), (0.1, 11.0, "dead"), (1.0, 11.0, None), (1.0, 21.0, "suspect")],
)
def test_health_by_progress(step_s: float, still: float, expected: str | None) -> None:
    """An instance that reports but makes no step is stuck; slow steps are given more time."""
    found = instance(running=2, steps=7, step_s=step_s)
    now = 100.0 + still
    found.heard_at = now
    verdict = judge(found, now, LIMITS)
    assert (None if verdict is None else verdict[0]) == expected


def test_an_instance_with_rare_reports_is_lost_later() -> None:
    found = instance()
    found.gaps.extend([1.0] * 100)
    verdict = judge(found, 104.0, LIMITS)
    assert verdict is not None
    assert verdict[0] == "suspect"


def test_probation_lets_in_more_with_each_success() -> None:
    found = instance()
    found.move("probation")
    limits = []
    while found.word == "probation":
        limits.append(found.limit)
        found.produced()
    assert limits == [1, 2]
    assert found.limit > 4


def test_breaker_opens_and_allows_single_trials() -> None:
    breaker = Breaker()
    for _ in range(4):
        breaker.failed(0.0)
    assert not breaker.is_open
    breaker.failed(0.0)
    assert not breaker.allows(0.5)
    assert breaker.allows(1.0)
    breaker.sent(1.0)
    assert not breaker.allows(1.0)
    breaker.failed(1.0)
    assert not breaker.allows(2.5)
    breaker.sent(3.0)
    breaker.succeeded()
    assert breaker.allows(3.0)
    assert not breaker.is_open


def test_restarts_back_off_and_end() -> None:
    restarts = Restarts(RestartLimits(first_s=1.0, longest_s=3.0, early_s=10.0, most=4, window_s=600.0))
    assert [restarts.pause(now, 0.0) for now in (0.0, 1.0, 2.0)] == [1.0, 2.0, 3.0]
    assert restarts.pause(3.0, 100.0) == 1.0
    assert restarts.pause(4.0, 0.0) is None
    restarts.reset()
    assert restarts.pause(5.0, 0.0) == 1.0
    assert restarts.total == 5


def test_old_failures_are_forgotten() -> None:
    restarts = Restarts(RestartLimits(most=2, window_s=10.0))
    assert all(restarts.pause(now, 0.0) is not None for now in (0.0, 20.0, 40.0, 60.0))


def test_budget_allows_each_open_request_and_a_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    budget = MigrationBudget(share=0.1, burst=4)
    assert sum(budget.spend(16) for _ in range(40)) == 20
    for _ in range(10):
        budget.accepted()
    assert budget.spend(16)
    assert not budget.spend(16)
    now[0] = 10.0
    assert budget.spend(16)


@any_speed(100)
@given(
    parts=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 999), st.text(max_size=3)), max_size=40),
    longest=st.integers(1, 12),
)
def test_ledger_states_continue_what_was_delivered(parts: list[tuple[int, int, str]], longest: int) -> None:
    params = SamplingParams(n=3, seed=5, max_tokens=longest)
    ledger = Ledger((1, 2, 3), params)
    tokens: list[list[int]] = [[], [], []]
    texts = ["", "", ""]
    for index, token, text in parts:
        if len(tokens[index]) < longest:
            tokens[index].append(token)
            texts[index] += text
            ledger.commit(TokenDelta(text, (token,), index))
    states = ledger.states("r", "m", "i")
    assert [state.index for state in states] == [i for i in range(3) if len(tokens[i]) < longest]
    for state in states:
        assert list(state.output_token_ids) == tokens[state.index]
        assert state.delivered_chars == len(texts[state.index])
        assert state.seed == 5
    assert ledger.tokens == sum(map(len, tokens))


def test_finished_completions_are_not_continued() -> None:
    ledger = Ledger((1,), SamplingParams(n=2))
    ledger.commit(TokenDelta("a", (5,), 0, finish_reason="stop"))
    assert ledger.open_indices == [1]
    assert ledger.finish_reason == "stop"
    ledger.commit(TokenDelta("", (6,), 1, reasoning="hm"))
    assert "reasoning" in ledger.obstacle


@pytest.mark.parametrize(
    ("params", "obstacle"),
    [
        ({"temperature": 0.0}, ""),
        ({"temperature": 0.7}, ""),
        ({"temperature": 0.7, "seed": 3}, "seeded"),
        ({"temperature": 0.0, "stop": ["x"]}, "stop"),
        ({"temperature": 0.0, "frequency_penalty": 0.5}, "frequency_penalty"),
        ({"temperature": 0.0, "n": 2}, "completions"),
    ],
)
def test_replay_only_where_it_is_exact(params: dict[str, Any], obstacle: str) -> None:
    found = replay_obstacle(Ledger((1,), SamplingParams(**params)))
    assert found == obstacle or obstacle in found
    assert bool(found) == bool(obstacle)


def test_a_seed_is_drawn_for_engines_that_resume() -> None:
    sampled = SamplingParams(temperature=0.5)
    assert with_seed(sampled, ("seed", "resume"), 9).seed == 9
    assert with_seed(sampled, ("seed",), 9).seed is None
    assert with_seed(SamplingParams(temperature=0.0), ("seed", "resume"), 9).seed is None
    assert with_seed(SamplingParams(seed=1), ("seed", "resume"), 9).seed == 1

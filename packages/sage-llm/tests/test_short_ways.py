"""What the control plane does only once for a request, or once for all of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from plane import GUARD_S, read, running_plane
from sage_infer.schemas import SamplingParams
from sage_llm.classifier import RequestClassifier
from sage_llm.manager import placing
from sage_llm.manager.calls.questions import BatchCalls
from sage_llm.manager.health import HealthLimits
from sage_llm.manager.settings import ControlPlaneSettings
from sage_llm.replicas.openai.client import EventParser
from sage_llm.snapshot import SnapshotBuilder
from toy_engine import ToyExecutor, toy_model

GREEDY = SamplingParams(temperature=0.0, max_tokens=4)
PATIENT = ControlPlaneSettings(health=HealthLimits(suspect_s=GUARD_S, lost_s=2 * GUARD_S))


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[str]:
    """Count the calls of a function, which does its work as before."""
    calls: list[str] = []
    function = getattr(owner, name)

    def wrapper(*args: Any, **keywords: Any) -> Any:
        calls.append(name)
        return function(*args, **keywords)

    monkeypatch.setattr(owner, name, wrapper)
    return calls


def test_a_request_is_placed_with_one_view_and_one_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running_plane([toy_model(replicas=2)], ToyExecutor(), PATIENT) as manager:
            views = counted(monkeypatch, placing, "request_view")
            snapshots = counted(monkeypatch, SnapshotBuilder, "snapshot")
            for number in range(10):
                (stream,) = await manager.generate(f"prompt {number}", GREEDY)
                await read(stream)
            assert len(views) == len(snapshots) == 10
            assert manager.dispatcher.ends["finished"] == 10

    asyncio.run(main())


def test_the_format_of_answers_is_asked_again_only_of_other_instances(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with running_plane([toy_model(replicas=1)], ToyExecutor(), PATIENT) as manager:
            asked = counted(monkeypatch, BatchCalls, "run")
            for _ in range(3):
                assert await manager.answer_format(model="toy") is None
            assert len(asked) == 1
            await manager.restart("toy")
            assert await manager.answer_format(model="toy") is None
            assert len(asked) > 1

    asyncio.run(main())


def test_the_expected_output_follows_what_has_ended() -> None:
    classifier = RequestClassifier()

    def expected() -> float:
        return classifier.classify("m", prompt_tokens=10, max_tokens=4096).out_q50

    for _ in range(1000):
        classifier.ended("m", 1000, prompt_tokens=10)
        expected()
    assert 800 < expected() < 1300
    for _ in range(2000):  # four half-lives
        classifier.ended("m", 10, prompt_tokens=10)
        expected()
    assert 8 < expected() < 13


def test_histograms_stay_finite() -> None:
    classifier = RequestClassifier()
    for _ in range(70_000):  # 140 half-lives: the weights of observations are scaled down on the way
        classifier.ended("m", 100, prompt_tokens=10)
    found = classifier.classify("m", prompt_tokens=10, max_tokens=4096)
    assert 80 < found.out_q50 <= found.out_q90 < 130


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
def test_events_are_found_wherever_they_are_split(size: int) -> None:
    text = b'data: {"a": 1}\n\ndata: two\r\n\r\n: note\n\ndata: 3\ndata: 4\n\ndata:five\n\ndata: [DONE]\n\n'
    parser, found = EventParser(), []
    for start in range(0, len(text), size):
        found += parser.feed(text[start : start + size])
    assert found == [b'{"a": 1}', b"two", b"3\n4", b"five", b"[DONE]"]
    for event in (b"data: x\n\n", b"data: x\r\n\r\n", b"data:x\n\n"):
        assert parser.feed(event) == [b"x"]

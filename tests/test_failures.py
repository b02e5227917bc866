"""What `benchmarks/failures.py` counts as a failure."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


def stream(number: int, text: str = "a b", **values: Any) -> Any:
    from failing.streams import Stream

    return Stream(
        number=number,
        **{"text": text, "usage": (3, 2), "reason": "length", "times": [1.0, 1.5, 4.0, 4.25], **values},
    )


def test_differences_and_gaps() -> None:
    from failing.streams import differences

    reference = [stream(number) for number in range(3)]
    assert differences(reference, reference) == []
    changed = [stream(0, text="a c"), stream(1, usage=(3, 3)), stream(2, error="status 503: busy")]
    assert differences(changed, reference) == [
        "stream 0: another answer from character 2: 'c' instead of 'b'",
        "stream 1: another answer, ((3, 3), 'length') instead of ((3, 2), 'length')", "stream 2: status 503: busy",
    ]  # fmt: skip
    assert stream(0).gap() == 2.5
    assert stream(0).gap(since=4.1) == 0.25
    assert stream(0, times=[]).gap() == 0.0


def test_the_table_counts_errors_and_equal_answers(capsys: pytest.CaptureFixture[str]) -> None:
    import failures
    from failing.faults import Round

    reference = [stream(number) for number in range(2)]
    at: Any = Round(cluster=None, draw=None)  # type: ignore[arg-type]  # not used
    at.streams, at.extra = [stream(0), stream(1, text="")], [stream(0, error="the stream ended early")]
    at.figures["back after"] = 3.0
    result = failures.result_of(at, reference)
    assert (result["streams"], result["equal"], result["errors"]) == (2, 1, 1)
    text = failures.table({"undisturbed": {}, "rounds": {"kill": [result, result]}})
    assert text.startswith("kill: 2 rounds, 2 errors, 2 of 4 equal; ")
    assert "back after p50/max 3.00/3.00 s" in text


def test_unknown_faults_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import failures

    monkeypatch.setattr(sys, "argv", ["failures.py", "--only", "kill,fire"])
    with pytest.raises(SystemExit):
        failures.main()
    assert "--only names 'fire'" in capsys.readouterr().err

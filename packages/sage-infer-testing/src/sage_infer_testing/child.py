"""The test process: runs pytest and reports events to the runner, one JSON line per event on standard output.

Only events are written to standard output; the output of pytest and of the engine goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

import pytest

from sage_infer_testing.advice import MARK, advice_of, summary_of
from sage_infer_testing.results import Outcome
from sage_infer_testing.unwritten import WRITE_IT

__all__ = ["Recorder", "main"]


class Recorder:
    """A pytest plug-in that writes events."""

    def __init__(self, events: TextIO) -> None:
        self._events = events
        self._reports: list[pytest.TestReport] = []
        self._test: Callable[..., Any] | None = None

    def tell(self, event: str, **data: Any) -> None:
        """Write one event."""
        print(json.dumps({"event": event, **data}), file=self._events, flush=True)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.tell("broken", details=report.longreprtext)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.tell("collected", count=len(session.items))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        self._test = getattr(item, "function", None)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._reports = []
        suite, test = nodeid.split("::")[-2:]
        self.tell("started", suite=suite, name=test)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._reports.append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        suite, test = nodeid.split("::")[-2:]
        outcome, telling = _outcome(self._reports)
        self.tell(
            "finished", suite=suite, name=test, outcome=outcome,
            seconds=round(sum(report.duration for report in self._reports), 3),
            summary=summary_of(self._test) if self._test else "",
            advice=_advice(telling, self._test) if outcome == "failed" else "",
            reason=_reason(outcome, telling), details=telling.longreprtext if outcome == "failed" else "",
        )  # fmt: skip


def _outcome(reports: list[pytest.TestReport]) -> tuple[Outcome, pytest.TestReport]:
    """Return the outcome of a test, and the report of the phase that determined it."""
    for report in reports:
        if report.failed:
            return "failed", report
    for report in reports:
        if report.skipped:
            return ("xfailed" if hasattr(report, "wasxfail") else "skipped"), report
    return "passed", reports[-1]


def _reason(outcome: Outcome, report: pytest.TestReport) -> str:
    if outcome == "xfailed":
        return str(report.wasxfail).removeprefix("reason: ")
    if outcome == "skipped" and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    if outcome != "failed":
        return ""
    crash = getattr(report.longrepr, "reprcrash", None)
    message = crash.message if crash is not None else report.longreprtext
    lines = message.partition(MARK)[0].strip().splitlines() or ["failed without a message"]
    if lines[0].endswith(
        "Regex pattern did not match."
    ):  # the expected and actual text are on the next lines
        lines[0] = " ".join(line.strip() for line in lines[:3])
    return str(lines[0]).removeprefix("AssertionError: ").removeprefix("Failed: ")


def _advice(report: pytest.TestReport, test: Callable[..., Any] | None) -> str:
    """Return the advice of a failed test; for a method that is not written, to write it."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None and WRITE_IT in crash.message:
        return WRITE_IT
    return advice_of(test) if test else ""


def main(arguments: list[str]) -> int:
    """Run pytest with these arguments; events are written to the original standard output."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    recorder = Recorder(events)
    code = int(pytest.main(arguments, plugins=[recorder]))
    recorder.tell("done", code=code)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

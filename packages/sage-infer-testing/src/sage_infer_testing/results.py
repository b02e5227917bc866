"""Results of a run of the kit."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

from attrs import asdict, field, frozen

__all__ = ["ContractReport", "Outcome", "TestResult"]

Outcome = Literal["passed", "failed", "skipped", "xfailed"]


@frozen(kw_only=True)
class TestResult:
    """Result of one test.

    ``reason`` is one line about why the test failed or was skipped, ``advice`` is how to fix it, and ``details`` is
    pytest's report.
    """

    __test__ = False  # pytest: this is not a test class

    suite: str
    name: str
    outcome: Outcome
    seconds: float
    summary: str = ""
    reason: str = ""
    advice: str = ""
    details: str = ""


@frozen(kw_only=True)
class ContractReport:
    """Results of all tests of one target. ``not_run`` counts tests that were not run because the test process died."""

    backend: str
    model: str
    results: tuple[TestResult, ...]
    not_run: int = 0
    counts: Counter[Outcome] = field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "counts", Counter(result.outcome for result in self.results))

    @property
    def ok(self) -> bool:
        """Whether all tests ran and none failed."""
        return not self.counts["failed"] and not self.not_run

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        totals = {outcome: self.counts[outcome] for outcome in ("passed", "failed", "skipped", "xfailed")}
        return {
            "backend": self.backend,
            "model": self.model,
            "ok": self.ok,
            **totals,
            "not_run": self.not_run,
            "tests": [asdict(result) for result in self.results],
        }

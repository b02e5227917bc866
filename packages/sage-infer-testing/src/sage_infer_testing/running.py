"""Adapt contract tests to pytest: check claims first, run coroutines, and add advice to failures.

A method that is not written yet fails one test only (``unwritten``).
"""

from __future__ import annotations

import functools
import inspect
from types import FunctionType
from typing import Any

import pytest

from sage_infer_testing.advice import MARK, advice_of
from sage_infer_testing.features import claim_problem
from sage_infer_testing.unwritten import find_unwritten, report_unwritten

__all__ = ["runnable"]


def runnable(test: FunctionType) -> FunctionType:
    """Wrap ``test`` (async or not) as a synchronous test method of a ``ContractSuite``."""

    @functools.wraps(test)
    def run(self: Any, *args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        unmet = claim_problem(test, kwargs)
        if unmet:
            pytest.skip(unmet)
        try:
            outcome = test(self, *args, **kwargs)
            if inspect.iscoroutine(outcome):
                self.run(outcome)
        except (Exception, pytest.fail.Exception) as error:
            missing, node = find_unwritten(error), getattr(self, "_node", None)
            if missing is not None and node is not None:
                report_unwritten(node, missing)
            advice = advice_of(test)
            if advice and not any(MARK in note for note in getattr(error, "__notes__", ())):
                _add_note(error, f"{MARK} {advice}")
            raise

    return run  # type: ignore[return-value]  # wraps() hides that this is a function


def _add_note(error: BaseException, note: str) -> None:
    """``error.add_note(note)``, which Python 3.10 lacks; what prints errors reads the attribute there, too."""
    vars(error).setdefault("__notes__", []).append(note)

"""Advice: the last paragraph of a test's docstring, "How to fix: …", shown wherever the test fails."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["advice_of", "summary_of"]

MARK = "How to fix:"


def advice_of(test: Callable[..., Any]) -> str:
    """Return the advice on one line, without "How to fix:"; empty if the docstring has none."""
    _, found, advice = (inspect.getdoc(test) or "").partition(MARK)
    return " ".join(advice.split()) if found else ""


def summary_of(test: Callable[..., Any]) -> str:
    """Return the assertion of a test: the first paragraph of its docstring on one line."""
    first, _, _ = (inspect.getdoc(test) or "").partition("\n\n")
    return " ".join(first.split())

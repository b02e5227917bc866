"""Advice: the last paragraph of a test's docstring, "How to fix: …", shown wherever the test fails."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["advice_of", "summary_of"]

MARK = "How to fix:"


def advice_of(test: Callable[..., Any]) -> str:
    """The advice on one line, without its "How to fix:"; empty where the docstring has none."""
    _, found, advice = (inspect.getdoc(test) or "").partition(MARK)
    return " ".join(advice.split()) if found else ""


def summary_of(test: Callable[..., Any]) -> str:
    """What the test asserts: the docstring's first paragraph on one line."""
    first, _, _ = (inspect.getdoc(test) or "").partition("\n\n")
    return " ".join(first.split())

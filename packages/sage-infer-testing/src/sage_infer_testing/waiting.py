"""Wait for a condition: poll it until a deadline, then fail with its description."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

__all__ = ["eventually"]

_POLL_S = 0.004


async def eventually(
    condition: Callable[[], bool], what: Callable[[], str] | str, *, within_s: float
) -> None:
    """Return as soon as ``condition`` holds; fail the test with ``what`` after ``within_s`` seconds."""
    __tracebackhide__ = True
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what if isinstance(what, str) else what()} (waited {within_s:g} s)")
        await asyncio.sleep(_POLL_S)

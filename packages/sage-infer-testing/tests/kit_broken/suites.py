"""Test classes made from broken implementations.

``FOUND_BY`` pairs each class with a test that must fail on it.
"""

from __future__ import annotations

import itertools
from typing import Any

__all__ = ["COUNTER", "FOUND_BY", "SUITES", "suite"]

SUITES: dict[str, type] = {}
FOUND_BY: list[tuple[str, str]] = []
COUNTER = itertools.count(1)


def suite(kit: type, factory: str, *tests: str, **settings: Any) -> Any:
    """Make a test class of ``kit`` from a broken implementation, which the tests must fail."""

    def register(broken: Any) -> Any:
        made = {factory: lambda self, *args: broken(*(_store_args(self, *args) if args else ()))}
        name = f"Test{broken.__name__}"
        SUITES[name] = type(kit)(name, (kit,), {"settle_s": 0.2, "timeout_s": 5.0, **settings, **made})
        FOUND_BY.extend((name, test) for test in tests)
        return broken

    return register


def _store_args(kit: Any, capacity: int) -> tuple[Any, ...]:
    return kit.model_id, kit.kv_schema, capacity

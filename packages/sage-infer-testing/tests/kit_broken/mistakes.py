"""Which contract test must fail on which broken engine."""

from __future__ import annotations

from typing import Any

from attrs import frozen

__all__ = ["MISTAKES", "Mistake", "found_by"]


@frozen
class Mistake:
    """A broken engine, by its module and name, and a test that finds it."""

    module: str
    engine: str
    test: str

    def __str__(self) -> str:
        return f"{self.engine}-{self.test}"


MISTAKES: list[Mistake] = []


def found_by(*tests: str) -> Any:
    """Register a broken engine under each test that must fail on it."""

    def register(engine: type) -> type:
        MISTAKES.extend(Mistake(engine.__module__, engine.__name__, test) for test in tests)
        return engine

    return register

"""Markers for tests that apply only if a feature is claimed, or only if it is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

__all__ = ["claim_problem", "unless_claimed", "when_claimed"]

TestT = TypeVar("TestT", bound=Callable[..., Any])

_WANTED = "__when_claimed__"
_UNWANTED = "__unless_claimed__"


def when_claimed(*features: str) -> Callable[[TestT], TestT]:
    """Skip the test if the backend does not claim all of these features; the reason names the missing ones."""
    return _marker(_WANTED, features)


def unless_claimed(*features: str) -> Callable[[TestT], TestT]:
    """Skip the test if the backend claims all of these features; the test asserts that they are refused."""
    return _marker(_UNWANTED, features)


def _marker(attribute: str, features: tuple[str, ...]) -> Callable[[TestT], TestT]:
    def mark(test: TestT) -> TestT:
        setattr(test, attribute, features)
        return test

    return mark


def claim_problem(test: Callable[..., Any], fixtures: Mapping[str, Any]) -> str:
    """Return why the test does not apply to the backend among its fixtures; empty if it applies."""
    wanted: tuple[str, ...] = getattr(test, _WANTED, ())
    unwanted: tuple[str, ...] = getattr(test, _UNWANTED, ())
    if not wanted and not unwanted:
        return ""
    claimed = fixtures["backend"].get_capability().features
    missing = [feature for feature in wanted if feature not in claimed]
    if missing:
        return f"backend does not claim {', '.join(map(repr, missing))}"
    if unwanted and all(feature in claimed for feature in unwanted):
        return f"backend claims {', '.join(map(repr, unwanted))}, so it does not refuse them"
    return ""

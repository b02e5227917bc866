"""Guard against contract tests that are silently disabled.

The name of a contract test must refer to the kit's own function, or to an override marked ``xfail`` with a reason.
Anything else (a test that is redefined, deleted, set to None or marked ``skip``) raises ``TypeError`` when the class is
created or changed, so that its module fails at collection.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any

import pytest

from sage_infer_testing.running import runnable

__all__ = ["ContractMeta", "contract_tests", "xfail"]

_KIT = "__contract_kit__"  # on a test: the kit class that defines it
_REPLACES = "__contract_replaces__"  # on an xfail override: the kit's test that it runs

ADVICE = (
    "fix the implementation, or declare the known failure: decorate the override with "
    "sage_infer_testing.xfail(reason=…), which still runs the kit's test"
)


def xfail(*, reason: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark an override of a contract test as a known failure. Every report shows it with its reason.

    The kit's own test runs instead of the body of the override. If the test passes, the mark is reported as a failure.
    """
    if not reason.strip():
        raise ValueError("xfail needs a reason: what fails, and the issue that tracks it if there is one")
    return pytest.mark.xfail(reason=reason, strict=True)


def contract_tests(cls: type) -> dict[str, FunctionType]:
    """Return the contract tests that a class inherits, by name."""
    return {
        name: value
        for base in reversed(cls.__mro__)
        for name, value in vars(base).items()
        if isinstance(value, FunctionType) and getattr(value, _KIT, "") == base.__qualname__
    }


class ContractMeta(type):
    """Metaclass of all kits (``kit=True``) and their subclasses; subclasses cannot disable a test."""

    def __new__(
        mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], *, kit: bool = False
    ) -> ContractMeta:
        inherited = {n: test for base in reversed(bases) for n, test in contract_tests(base).items()}
        for key, value in list(namespace.items()):
            if key in inherited:
                namespace[key] = _expected_to_fail(inherited[key], value)
            elif key.startswith("test") and isinstance(value, FunctionType):
                namespace[key] = runnable(value)
                if kit:
                    setattr(namespace[key], _KIT, namespace["__qualname__"])
        cls = super().__new__(mcs, name, bases, namespace)
        for problem in _problems(cls):
            raise TypeError(f"{name}: {problem}; {ADVICE}")
        _refuse_marks(cls, namespace.get("pytestmark", ()))
        return cls

    def __init__(
        cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], *, kit: bool = False
    ) -> None:
        super().__init__(name, bases, namespace)

    def __setattr__(cls, name: str, value: object) -> None:
        if name in contract_tests(cls):
            raise TypeError(f"{cls.__name__}.{name} is a contract test and cannot be replaced; {ADVICE}")
        if name == "pytestmark":
            _refuse_marks(cls, value)
        super().__setattr__(name, value)

    def __delattr__(cls, name: str) -> None:
        if name in contract_tests(cls):
            raise TypeError(f"{cls.__name__}.{name} is a contract test and cannot be deleted; {ADVICE}")
        super().__delattr__(name)


def _problems(cls: type) -> Iterator[str]:
    for name, test in contract_tests(cls).items():
        home = next(base for base in cls.__mro__ if name in vars(base))
        found = vars(home)[name]
        if found is not test and getattr(found, _REPLACES, None) is not test:
            what = "overrides" if callable(found) else "removes"
            yield f"{home.__name__} {what} the contract test {name!r}"


def _expected_to_fail(test: FunctionType, override: object) -> object:
    """Return the kit's test marked with the override's ``xfail``; without this mark, the override, to be rejected."""
    marks = _marks(getattr(override, "pytestmark", ()))
    xfails = [mark for mark in marks if mark.name == "xfail"]
    if (
        not xfails
        or not xfails[0].kwargs.get("reason")
        or any(mark.name in ("skip", "skipif") for mark in marks)
    ):
        return override

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        test(*args, **kwargs)

    run.__dict__.update({_KIT: "", _REPLACES: test, "pytestmark": marks})
    return run


def _refuse_marks(cls: type, value: object) -> None:
    for mark in _marks(value):
        if mark.name == "skip":
            raise TypeError(
                f"{cls.__name__} is marked skip; use skipif with its condition and a reason, or {ADVICE}"
            )
        if mark.name == "xfail":
            raise TypeError(f"{cls.__name__} is marked xfail as a whole; {ADVICE}")


def _marks(value: object) -> list[pytest.Mark]:
    several: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    return [item.mark if isinstance(item, pytest.MarkDecorator) else item for item in several]

"""The ``schema`` decorator, and the registry of schema classes and their versions.

A schema is a frozen, slotted, keyword-only attrs class decorated with ``@schema("1.0")`` above ``@frozen``.
A minor version only adds optional fields (``docs/compatibility.md``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["all_schemas", "schema", "schema_version"]

T = TypeVar("T", bound=type)

_REGISTRY: dict[str, type] = {}
_VERSIONS: dict[type, str] = {}


def schema(version: str) -> Callable[[T], T]:
    """Register a class as a schema of version ``MAJOR.MINOR``."""

    def register(cls: T) -> T:
        _REGISTRY[cls.__name__] = cls
        _VERSIONS[cls] = version
        return cls

    return register


def schema_version(cls: type[Any]) -> str | None:
    """Return the ``MAJOR.MINOR`` version of a schema class, or ``None`` for any other class."""
    return _VERSIONS.get(cls)


def all_schemas() -> dict[str, type]:
    """Return every schema class of the core by name, in alphabetical order."""
    return dict(sorted(_REGISTRY.items()))

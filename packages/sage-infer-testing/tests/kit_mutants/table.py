"""The list of mutants: each fault, the implementation that has it, and the kit's test and words for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

__all__ = ["MUTANTS", "Mutant", "mutant"]


@frozen(kw_only=True)
class Mutant:
    """An implementation with one fault.

    Attributes:
        name: of the implementation; the test class is called after it.
        kind: ``backend``, ``embedder`` or ``store``.
        fault: what is wrong with it, for the table.
        test: the kit's test that fails.
        says: words of the failure.
        suite: the test class.
    """

    name: str
    kind: str
    fault: str
    test: str
    says: str
    suite: type = field(repr=False, eq=False)


MUTANTS: list[Mutant] = []


def mutant(
    kind: str,
    kit: type,
    made: Mapping[str, Any],
    broken: type,
    fault: str,
    test: str,
    says: str,
    **settings: Any,
) -> None:
    """Add a mutant; ``made`` are methods of its test class that create it, ``settings`` attributes."""
    suite = type(kit)(f"Test{broken.__name__}", (kit,), {**settings, **made})
    MUTANTS.append(Mutant(name=broken.__name__, kind=kind, fault=fault, test=test, says=says, suite=suite))

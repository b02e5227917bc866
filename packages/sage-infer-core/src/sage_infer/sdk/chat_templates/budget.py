"""What one rendering of a template may compute: steps, and characters of new texts."""

from __future__ import annotations

import contextvars
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set, Sized, ValuesView
from typing import Any

import jinja2
import jinja2.utils

__all__ = ["BUDGET", "CALL", "PER_STEP", "SCALARS", "Budget", "TemplateLimitError", "as_text", "iterated"]

_MOST_STEPS = 500_000  # of about a microsecond at most
CALL, _ITEM = 20, 4  # steps of a call, and of an item of a loop
_MOST_CHARACTERS = 4 * 2**20  # of all texts that a rendering creates, and ...
_PER_CHARACTER = 16  # ... for each character of its input
PER_STEP = 64  # characters that are read in the time of a step
_DEEPEST = 500  # nested values; hashing deep ones overflows the C stack

SCALARS = (bool, int, float, type(None), jinja2.Undefined)


class TemplateLimitError(jinja2.TemplateRuntimeError):
    """A template computes too much."""


class Budget:
    """What one rendering may compute. ``data`` are the values it gets, whose size adds to the limit on characters."""

    def __init__(self, data: Any = ()) -> None:
        self._data = data
        self._steps = _MOST_STEPS
        self._characters = _MOST_CHARACTERS
        self._is_extended = False

    def spend(self, steps: int) -> None:
        self._steps -= steps
        if self._steps < 0:
            raise TemplateLimitError(f"it takes more than {_MOST_STEPS} steps")

    def read(self, text: Sequence[Any]) -> None:
        """Something reads all characters of a text."""
        self.spend(1 + len(text) // PER_STEP)

    def create(self, characters: int) -> None:
        """A text is about to be created."""
        self._characters -= characters
        if self._characters < 0 and not self._is_extended:
            self._is_extended = True
            self._characters += _PER_CHARACTER * self._size(self._data, count=False)
        if self._characters < 0:
            raise TemplateLimitError("it creates too much text")

    def visit(self, value: Any) -> int:
        """Something visits all parts of a value; returns about the number of characters of its text."""
        if type(value) is str:
            self.read(value)
            return len(value)
        if isinstance(value, SCALARS):
            return 32
        return self._size(value, count=True)

    def _size(self, value: Any, *, count: bool) -> int:
        total, depth, todo = 0, 0, [value]
        while todo:  # level by level
            parts, todo, depth = todo, [], depth + 1
            if depth > _DEEPEST:
                raise TemplateLimitError(f"it nests more than {_DEEPEST} values")
            for part in parts:
                if isinstance(part, str):
                    total += len(part)
                inner = _parts(part)
                total += 32 * (1 + len(inner))
                if count:
                    self.spend(1 + len(inner) + (len(part) // PER_STEP if isinstance(part, str) else 0))
                todo += inner
        return total

    def counted(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.spend(_ITEM)
            yield value


def _parts(value: Any) -> Any:
    """The values that a value holds, sized."""
    if isinstance(value, (*SCALARS, str, bytes)):
        return ()
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, jinja2.utils.Namespace):
        return value._Namespace__attrs.values()
    return value if isinstance(value, Set | Sequence | ValuesView) else ()


BUDGET: contextvars.ContextVar[Budget] = contextvars.ContextVar("_budget")


class _Counted:
    """An iterable of known length that counts each item it returns."""

    def __init__(self, values: Any, budget: Budget) -> None:
        self._values, self._budget = values, budget

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        return self._budget.counted(self._values)


def iterated(values: Any) -> Iterable[Any]:
    budget = BUDGET.get()
    return _Counted(values, budget) if isinstance(values, Sized) else budget.counted(values)


def as_text(value: Any) -> str:
    if not isinstance(value, SCALARS):
        budget = BUDGET.get()
        budget.create(budget.visit(value))
    return str(value)

"""Field checks: one definition of a rule for three uses.

A check is an attrs validator for direct construction. It also validates fields while JSON is read, so that all
problems are reported together, and generates its JSON Schema. Messages name the rule, the value and its type.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from attrs import Attribute, field, frozen

from sage_infer.errors import Problem, SchemaError

__all__ = [
    "Check",
    "Choice",
    "Each",
    "Entries",
    "Flag",
    "Instance",
    "Integer",
    "Json",
    "JsonWithin",
    "Number",
    "Text",
    "as_frozenset",
    "as_optional_tuple",
    "as_tuple",
    "optional",
]

_SHOWN = 60  # characters of an invalid value quoted in a message


def shown(value: object) -> str:
    """Return a truncated representation of a value and its type, for a message."""
    if isinstance(value, str | bytes):
        text = repr(value[:_SHOWN]) if len(value) > _SHOWN else repr(value)
    elif isinstance(value, Sequence | Mapping) and len(value) > _SHOWN:
        text = f"{len(value)} items"
    else:
        text = repr(value)
    return (text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…") + f" ({type(value).__name__})"


def as_tuple(value: Iterable[Any]) -> tuple[Any, ...]:
    """Converter: lists and other iterables become tuples; a bare string is kept for the check to reject."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return value  # type: ignore[return-value]  # the field's check reports the problem
    return tuple(value)


def as_optional_tuple(value: Iterable[Any] | None) -> tuple[Any, ...] | None:
    """Converter: like ``as_tuple``, and ``None`` stays."""
    return None if value is None else as_tuple(value)


def as_frozenset(value: Collection[Any]) -> frozenset[Any]:
    """Converter: sets and lists become frozensets; a bare string is kept for the check to reject."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return value  # type: ignore[return-value]  # the field's check reports the problem
    return frozenset(value)


class Check(Protocol):
    """One rule about a field's value."""

    def problems(self, value: object, path: str) -> Iterable[Problem]:
        """Every way in which ``value`` violates the rule; ``path`` is its location, such as
        ``$.steps[2].bytes``.
        """
        ...

    def json_schema(self) -> dict[str, Any]:
        """Keywords that this rule adds to the field's JSON Schema 2020-12."""
        ...


class _Validator:
    """Makes a check callable as an attrs validator."""

    def problems(self, value: object, path: str) -> Iterable[Problem]:
        raise NotImplementedError

    def fits(self, value: object) -> bool:
        """Whether a value of the usual type follows the rule; much faster than looking for problems."""
        return False

    def __call__(self, instance: object, attribute: Attribute[Any], value: object) -> None:
        if value is attribute.default or self.fits(value):  # defaults follow their rules
            return
        found = list(self.problems(value, f"$.{attribute.name}"))
        if found:
            raise SchemaError(type(instance).__name__, found)


@frozen
class Integer(_Validator):
    """An integer within inclusive bounds. ``True`` and ``False`` are rejected."""

    ge: int | None = None
    le: int | None = None

    def problems(self, value: object, path: str) -> Iterable[Problem]:
        if isinstance(value, bool) or not isinstance(value, int):
            yield Problem(path, f"must be an integer, got {shown(value)}")
        elif not self._is_within(value):
            yield Problem(path, f"must be {_bounds(ge=self.ge, le=self.le)}, got {value}")

    def fits(self, value: object) -> bool:
        return type(value) is int and self._is_within(value)

    def _is_within(self, value: int) -> bool:
        return (self.ge is None or value >= self.ge) and (self.le is None or value <= self.le)

    def fits_all(self, values: Collection[Any]) -> bool:
        """Return whether all values are within the bounds; much faster than checking each one."""
        return (
            bool(values)
            and set(map(type, values)) == {int}
            and self._is_within(min(values))
            and self._is_within(max(values))
        )

    def json_schema(self) -> dict[str, Any]:
        return _without_none({"minimum": self.ge, "maximum": self.le})


@frozen
class Number(_Validator):
    """A finite number within bounds."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def problems(self, value: object, path: str) -> Iterable[Problem]:
        if isinstance(value, bool) or not isinstance(value, int | float):
            yield Problem(path, f"must be a number, got {shown(value)}")
        elif not math.isfinite(value):
            yield Problem(path, f"must be finite, got {value}")
        elif not self._is_within(value):
            yield Problem(
                path, f"must be {_bounds(ge=self.ge, gt=self.gt, le=self.le, lt=self.lt)}, got {value}"
            )

    def fits(self, value: object) -> bool:
        return type(value) is float and math.isfinite(value) and self._is_within(value)

    def _is_within(self, value: float) -> bool:
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def json_schema(self) -> dict[str, Any]:
        return _without_none(
            {
                "minimum": self.ge,
                "exclusiveMinimum": self.gt,
                "maximum": self.le,
                "exclusiveMaximum": self.lt,
            }
        )


@frozen
class Text(_Validator):
    """A string, optionally matching a whole-string pattern. ``hint`` describes the pattern in words."""

    pattern: str | None = None
    min_length: int = 0
    hint: str = ""
    max_length: int | None = None

    def problems(self, value: object, path: str) -> Iterable[Problem]:
        if not isinstance(value, str):
            yield Problem(path, f"must be a string, got {shown(value)}")
        elif len(value) < self.min_length:
            yield Problem(path, f"must have at least {self.min_length} character(s), got {shown(value)}")
        elif self.max_length is not None and len(value) > self.max_length:
            yield Problem(path, f"must have at most {self.max_length} characters, got {len(value)}")
        elif self.pattern is not None and re.fullmatch(self.pattern, value) is None:
            yield Problem(path, f"must be {self.hint or 'a match of ' + self.pattern}, got {shown(value)}")

    def json_schema(self) -> dict[str, Any]:
        pattern = None if self.pattern is None else f"^(?:{self.pattern})$"
        return _without_none(
            {"minLength": self.min_length or None, "maxLength": self.max_length, "pattern": pattern}
        )


@frozen
class Flag(_Validator):
    """``True`` or ``False``."""

    def problems(self, value: object, path: str) -> Iterable[Problem]:
        if not isinstance(value, bool):
            yield Problem(path, f"must be true or false, got {shown(value)}")

    def json_schema(self) -> dict[str, Any]:
        return {}


@frozen
class Choice(_Validator):
    """One of a fixed set of strings."""

    options: tuple[str, ...] = field(converter=as_tuple)

    def problems(self, value: object, path: str) -> Iterable[Problem]:
        if not isinstance(value, str) or value not in self.options:
            yield Problem(path, f"must be one of {', '.join(self.options)}; got {shown(value)}")

    def json_schema(self) -> dict[str, Any]:
        return {"enum": list(self.options)}


@frozen
class Instance(_Validator):
    """An instance of a class, such as a nested schema (whose own fields were checked when it was built)."""

    cls: type

    def problems(self, value: object, path: str) -> Iterable[Problem]:
        if not isinstance(value, self.cls):
            yield Problem(path, f"must be a {self.cls.__name__}, got {shown(value)}")

    def json_schema(self) -> dict[str, Any]:
        return {}


@frozen
class Each(_Validator):
    """A tuple or frozenset whose every member passes ``check``."""

    check: Check
    min_items: int = 0
    unique: bool = False
    max_items: int | None = None

    def problems(self, value: object, path: str) -> Iterable[Problem]:
        if not isinstance(value, tuple | frozenset):
            yield Problem(path, f"must be a list, got {shown(value)}")
            return
        if len(value) < self.min_items:
            yield Problem(path, f"must have at least {self.min_items} item(s), got {len(value)}")
        if self.max_items is not None and len(value) > self.max_items:
            yield Problem(path, f"must have at most {self.max_items} items, got {len(value)}")
            return
        if not (isinstance(self.check, Integer) and self.check.fits_all(value)):
            for index, item in enumerate(value):
                yield from self.check.problems(item, f"{path}[{index}]")
        if self.unique and _has_repeats(value):
            yield Problem(path, "must not repeat an item")

    def json_schema(self) -> dict[str, Any]:
        schema: dict[str, Any] = {"items": self.check.json_schema()} if self.check.json_schema() else {}
        if self.min_items:
            schema["minItems"] = self.min_items
        if self.max_items is not None:
            schema["maxItems"] = self.max_items
        if self.unique:
            schema["uniqueItems"] = True
        return schema


@frozen
class Entries(_Validator):
    """A mapping from strings to values that each pass ``check``."""

    check: Check

    def problems(self, value: object, path: str) -> Iterable[Problem]:
        if not isinstance(value, Mapping):
            yield Problem(path, f"must be a mapping, got {shown(value)}")
            return
        for key, item in value.items():
            if not isinstance(key, str):
                yield Problem(path, f"must have string keys, got {shown(key)}")
            else:
                yield from self.check.problems(item, f"{path}.{key}")

    def json_schema(self) -> dict[str, Any]:
        inner = self.check.json_schema()
        return {"additionalProperties": inner} if inner else {}


@frozen
class Json(_Validator):
    """Any JSON value."""

    def problems(self, value: object, path: str) -> Iterable[Problem]:
        if value is None or isinstance(value, str | bool | int):
            return
        if isinstance(value, float):
            if not math.isfinite(value):
                yield Problem(path, f"must be finite, got {value}")
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                yield from self.problems(item, f"{path}[{index}]")
        elif isinstance(value, Mapping):
            yield from Entries(self).problems(value, path)
        else:
            yield Problem(path, f"must be JSON data, got {shown(value)}")

    def json_schema(self) -> dict[str, Any]:
        return {}


@frozen
class JsonWithin(_Validator):
    """A mapping of JSON data of limited size; the size is checked before anything more expensive.

    ``max_characters`` bounds all keys and strings together; ``max_depth`` bounds the nesting of lists and
    mappings.
    """

    max_values: int
    max_depth: int
    max_characters: int

    def problems(self, value: object, path: str) -> Iterable[Problem]:
        excess = self._excess(value)
        if excess:
            yield Problem(path, excess)
        else:
            yield from Entries(Json()).problems(value, path)

    def _excess(self, value: object) -> str:
        values = characters = 0
        open_values: list[tuple[object, int]] = [(value, 1)]
        while open_values:
            item, depth = open_values.pop()
            values += 1
            if isinstance(item, str):
                characters += len(item)
            elif isinstance(item, Mapping | list | tuple):
                if depth > self.max_depth:
                    return f"must be at most {self.max_depth} levels deep"
                if len(item) + values + len(open_values) > self.max_values:
                    return f"must have at most {self.max_values} values"
                if isinstance(item, Mapping):
                    characters += sum(len(key) for key in item if isinstance(key, str))
                    item = item.values()
                open_values += [(member, depth + 1) for member in item]
            if characters > self.max_characters:
                return f"must have at most {self.max_characters} characters in total"
        return ""

    def json_schema(self) -> dict[str, Any]:
        return {}


@frozen
class optional(_Validator):
    """``None``, or a value that passes ``check``."""

    check: Check

    def problems(self, value: object, path: str) -> Iterable[Problem]:
        return () if value is None else self.check.problems(value, path)

    def json_schema(self) -> dict[str, Any]:
        return self.check.json_schema()


def _has_repeats(value: Collection[object]) -> bool:
    try:
        return len(set(value)) < len(value)
    except TypeError:  # unhashable members, of which there are few
        pass
    seen: list[object] = []
    for item in value:
        if item in seen:
            return True
        seen.append(item)
    return False


def _bounds(**bounds: float | None) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    words = [
        f"{signs[name]} {str(bound).removesuffix('.0')}"
        for name, bound in bounds.items()
        if bound is not None
    ]
    return " and ".join(words)


def _without_none(keywords: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in keywords.items() if value is not None}

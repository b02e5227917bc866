"""Conversion of schemas to and from plain data.

Reading is strict by default: one error reports every unknown key, missing key and invalid value, each with its
path. ``tolerant`` reading ignores unknown keys; it is meant for messages between nodes whose minor versions differ.
Values are not coerced: ``"5"`` is rejected where an integer is expected.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, Literal, TypeVar, cast, get_args, get_origin

import attrs
from cattrs import Converter
from cattrs.dispatch import StructureHook

from sage_infer.checks import Check, Choice, Flag, Integer, Json, Number, Text, shown
from sage_infer.errors import Problem, SchemaError
from sage_infer.schemas.base import schema_version

__all__ = ["from_dict", "from_json", "to_dict", "to_json"]

T = TypeVar("T")

VERSION_KEY = "schema_version"

_SCALARS: Mapping[type, Check] = {bool: Flag(), int: Integer(), float: Number(), str: Text()}


def to_dict(value: Any) -> dict[str, Any]:
    """Convert a schema instance to JSON-ready data, with its version under ``schema_version``."""
    data = cast(dict[str, Any], _converter(tolerant=False).unstructure(value))
    version = schema_version(type(value))
    return data if version is None else {VERSION_KEY: version, **data}


def to_json(value: Any, *, indent: int | None = None) -> str:
    return json.dumps(to_dict(value), indent=indent, ensure_ascii=False, allow_nan=False)


def from_dict(data: object, cls: type[T], *, tolerant: bool = False) -> T:
    """Build a schema instance from JSON-like data.

    Raises:
        SchemaError: the data is invalid; the error lists every problem.
    """
    if isinstance(data, Mapping) and VERSION_KEY in data:
        problem = _version_problem(data[VERSION_KEY], cls, tolerant)
        if problem is not None:
            raise SchemaError(cls.__name__, [Problem(f"$.{VERSION_KEY}", problem)])
        data = {key: value for key, value in data.items() if key != VERSION_KEY}
    try:
        return _converter(tolerant).structure(data, cls)
    except _ProblemsFound as found:
        raise SchemaError(cls.__name__, found.under("$")) from None


def from_json(text: str | bytes, cls: type[T], *, tolerant: bool = False) -> T:
    """Build a schema instance from JSON text.

    Raises:
        SchemaError: the text is not JSON, or the data is invalid.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SchemaError(cls.__name__, [Problem("$", f"is not JSON: {error}")]) from None
    return from_dict(data, cls, tolerant=tolerant)


class _ProblemsFound(Exception):
    """Problems in a nested value, with paths relative to it; each enclosing level prepends its own step."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(problems)
        self.problems = problems

    def under(self, step: str) -> list[Problem]:
        return [Problem(step + p.path, p.message) for p in self.problems]


def _version_problem(stated: object, cls: type, tolerant: bool) -> str | None:
    own = schema_version(cls)
    if own is None:
        return f"is not a key of {cls.__name__}"
    if (
        not isinstance(stated, str)
        or not all(part.isdigit() for part in stated.split("."))
        or stated.count(".") != 1
    ):
        return f"must be MAJOR.MINOR such as {own!r}, got {stated!r}"
    major, minor = (int(part) for part in stated.split("."))
    own_major, own_minor = (int(part) for part in own.split("."))
    if major != own_major:
        return f"{stated} is not supported: this sage-infer reads {own}; use a release with the same major version"
    if minor > own_minor and not tolerant:
        return f"{stated} is newer than {own}, the version of this sage-infer; upgrade it, or read in tolerant mode"
    return None


@cache
def _converter(tolerant: bool) -> Converter:
    converter = Converter(detailed_validation=False)

    def scalar_hook(check: Check) -> StructureHook:
        def structure(value: object, _: Any) -> Any:
            found = list(check.problems(value, ""))
            if found:
                raise _ProblemsFound(found)
            return value

        return structure

    for kind, check in _SCALARS.items():
        converter.register_structure_hook(kind, scalar_hook(check))
    converter.register_structure_hook_func(lambda t: t is Any, scalar_hook(Json()))
    converter.register_structure_hook_factory(
        partial(_is_a, Literal), lambda t: scalar_hook(Choice(get_args(t)))
    )
    converter.register_structure_hook_factory(_is_optional, lambda t: _optional_hook(t, converter))
    converter.register_structure_hook_factory(
        partial(_is_a, tuple), lambda t: _tuple_hook(get_args(t)[0], converter)
    )
    converter.register_structure_hook_factory(
        partial(_is_a, Mapping),
        lambda t: _mapping_hook(get_args(t)[1], converter),
    )
    converter.register_structure_hook_factory(attrs.has, lambda cls: _class_hook(cls, converter, tolerant))
    return converter


def _is_a(origin: Any, t: Any) -> bool:
    return get_origin(t) is origin


def _is_optional(t: Any) -> bool:
    return type(None) in get_args(t)


def _optional_hook(t: Any, converter: Converter) -> StructureHook:
    (inner,) = (arg for arg in get_args(t) if arg is not type(None))
    return lambda value, _: None if value is None else converter.structure(value, inner)


def _collect(problems: list[Problem], step: str, build: Callable[[], Any]) -> Any:
    """Return ``build()``, or ``None`` after adding its problems to ``problems`` under ``step``."""
    try:
        return build()
    except _ProblemsFound as found:
        problems += found.under(step)
    except SchemaError as error:  # raised by the class's own check of several fields
        problems += [Problem(step + p.path.removeprefix("$"), p.message) for p in error.problems]
    return None


def _tuple_hook(item: Any, converter: Converter) -> StructureHook:
    def structure(value: object, _: Any) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise _ProblemsFound([Problem("", f"must be a list, got {shown(value)}")])
        problems: list[Problem] = []
        built = [
            _collect(problems, f"[{i}]", partial(converter.structure, member, item))
            for i, member in enumerate(value)
        ]
        if problems:
            raise _ProblemsFound(problems)
        return tuple(built)

    return structure


def _mapping_hook(item: Any, converter: Converter) -> StructureHook:
    def structure(value: object, _: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise _ProblemsFound([Problem("", f"must be a mapping, got {shown(value)}")])
        problems = [
            Problem("", f"must have string keys, got {shown(k)}") for k in value if not isinstance(k, str)
        ]
        built = {
            key: _collect(problems, f".{key}", partial(converter.structure, member, item))
            for key, member in value.items()
        }
        if problems:
            raise _ProblemsFound(problems)
        return built

    return structure


def _class_hook(cls: type, converter: Converter, tolerant: bool) -> StructureHook:
    resolved = attrs.resolve_types(cls)
    fields = {a.name: a for a in attrs.fields(resolved)}

    def structure(value: object, _: Any) -> Any:
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise _ProblemsFound([Problem("", f"must be a mapping, got {shown(value)}")])
        problems: list[Problem] = []
        if not tolerant:
            problems += [Problem(f".{key}", _unknown_key(key, fields)) for key in value if key not in fields]
        arguments: dict[str, Any] = {}
        for name, attribute in fields.items():
            if name not in value:
                if attribute.default is attrs.NOTHING:
                    problems.append(Problem(f".{name}", "is missing"))
                continue
            before = len(problems)
            structure_field = partial(converter.structure, value[name], cast(Any, attribute.type))
            built = _collect(problems, f".{name}", structure_field)
            if len(problems) == before:
                if attribute.validator is not None:
                    check = cast(Check, attribute.validator)
                    problems += check.problems(built, f".{name}")
                arguments[name] = built
        if problems:
            raise _ProblemsFound(problems)
        built = _collect(problems, "", partial(cls, **arguments))
        if problems:
            raise _ProblemsFound(problems)
        return built

    return structure


def _unknown_key(key: object, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(str(key), known, n=1)
    return (
        f"is not a known key; did you mean {near[0]!r}?"
        if near
        else f"is not a known key; known: {', '.join(known)}"
    )

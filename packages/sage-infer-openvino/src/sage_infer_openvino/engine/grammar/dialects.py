"""Rewrites keywords of JSON Schema that llguidance lacks as equivalent ones that it implements."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

__all__ = ["DATA", "rewritten"]

DATA = ("const", "enum", "default", "examples")
"""Keywords whose values are data, not schemas."""

_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")  # names to schemas
_IN_FRAGMENTS = "#/%~:!$&'()*+,;=@?-._"  # characters that a reference may have
_TYPED = frozenset(("type", "$ref", "$dynamicRef", "const", "enum", "allOf", "anyOf", "oneOf"))
_IDLE: Mapping[str, tuple[Any, ...]] = {
    "uniqueItems": (False,),
    "unevaluatedProperties": (True, {}),
    "unevaluatedItems": (True, {}),
    "additionalItems": (True, {}),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "dependencies": ({},),
    "minContains": (0,),
}
# Zod's pattern of e-mail addresses has look-aheads: no dot at the start, and no two in a row.
_ZOD_EMAIL = (
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
)
_EMAIL = (
    r"^([A-Za-z0-9_'+\-]+\.)*[A-Za-z0-9_'+\-]*[A-Za-z0-9_+\-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
)
# Pydantic's patterns of decimal numbers have look-aheads: at least one digit, and no more digits than allowed.
_DECIMAL = re.compile(r"\^\(\?!\^\[-\+\.\]\*\$\)\[\+-\]\?0\*\\d\*\\\.\?\\d(?:\*|\{0,(?P<places>\d+)\}0\*)\$")
_SHORT_DECIMAL = re.compile(
    r"\^\(\?!\^\[-\+\.\]\*\$\)\[\+-\]\?0\*\(\?:\\d\{0,(?P<whole>\d+)\}\|\(\?=\[\\d\.\]\{1,(?P<all>\d+)\}0\*\$\)"
    r"\\d\{0,(?P=whole)\}\\\.\\d\{0,(?P<places>\d+)\}0\*\$\)"
)
_COUNTS = (
    "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains",
)  # fmt: skip
_ANNOTATIONS = frozenset(("type", "title", "description", "$comment"))


def rewritten(schema: Any) -> Any:
    """The schema and all inside of it, rewritten."""
    if isinstance(schema, list):
        return [rewritten(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, Mapping):
            found[key] = {name: rewritten(inner) for name, inner in value.items()}
        else:
            found[key] = value if key in DATA else rewritten(value)
    for rewrite in _REWRITES:
        rewrite(found)
    return found


def _reference(schema: dict[str, Any]) -> None:
    """Names of generic types, such as ``Page[Item]``, are not escaped by all generators."""
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        schema["$ref"] = quote(reference, safe=_IN_FRAGMENTS)


def _exclusive_bounds(schema: dict[str, Any]) -> None:
    """In draft 4 and OpenAPI 3.0, ``exclusiveMinimum`` says whether ``minimum`` is excluded."""
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if schema.get(exclusive) is True and bound in schema:
            schema[exclusive] = schema.pop(bound)
        elif isinstance(schema.get(exclusive), bool):
            del schema[exclusive]


def _property_names(schema: dict[str, Any]) -> None:
    """Zod writes records with ``propertyNames``; names are texts anyway."""
    names = schema.get("propertyNames")
    if names is True:
        names = {}
    if not isinstance(names, Mapping) or names.get("type", "string") != "string":
        return
    rules = names.keys() - _ANNOTATIONS
    if not rules:
        del schema["propertyNames"]
        return
    if schema.keys() & {"properties", "patternProperties", "$ref", "allOf", "anyOf", "oneOf"}:
        return
    values = schema.get("additionalProperties", {})
    if rules == {"pattern"} and isinstance(names["pattern"], str):
        schema["patternProperties"] = {names["pattern"]: values}
    elif (
        rules == {"enum"}
        and isinstance(names["enum"], list)
        and all(isinstance(n, str) for n in names["enum"])
    ):
        schema["properties"] = dict.fromkeys(names["enum"], values)
    else:
        return
    schema["additionalProperties"] = False
    del schema["propertyNames"]


def _without_effect(schema: dict[str, Any]) -> None:
    """Keywords that llguidance lacks, with values that forbid nothing."""
    for key, idle in _IDLE.items():
        if key in schema and any(schema[key] is value or schema[key] == value for value in idle):
            del schema[key]
    if "if" not in schema:
        for key in ("then", "else"):
            schema.pop(key, None)
    elif "then" not in schema and "else" not in schema:
        del schema["if"]


def _untyped(schema: dict[str, Any]) -> None:
    """A schema with properties and without a type is meant as that of an object."""
    if isinstance(schema.get("properties"), Mapping) and not schema.keys() & _TYPED:
        schema["type"] = "object"


def _patterns(schema: dict[str, Any]) -> None:
    pattern = schema.get("pattern")
    if not isinstance(pattern, str):
        return
    if pattern == _ZOD_EMAIL:
        schema["pattern"] = _EMAIL
        schema.pop("format", None)
    elif found := _DECIMAL.fullmatch(pattern):
        schema["pattern"] = _decimal(r"\d+", found["places"])
    elif found := _SHORT_DECIMAL.fullmatch(pattern):
        whole, places = int(found["whole"]), int(found["places"])
        if int(found["all"]) == whole + places + 1:
            schema["pattern"] = _decimal(rf"(?:0+\d{{0,{whole}}}|\d{{1,{max(whole, 1)}}})", found["places"])


def _decimal(whole: str, places: str | None) -> str:
    """A number with ``whole`` before the point, or digits after it; zeros at its end do not count as places."""
    if places is None:
        return rf"^[+-]?(?:{whole}(?:\.\d*)?|\.\d+)$"
    some = "0+" if int(places) == 0 else rf"\d{{1,{places}}}0*"
    return rf"^[+-]?(?:{whole}(?:\.\d{{0,{places}}}0*)?|\.{some})$"


def _nullable(schema: dict[str, Any]) -> None:
    """OpenAPI 3.0 has ``nullable`` for a union with ``null``."""
    kind = schema.get("type")
    if schema.get("nullable") is not True or not isinstance(kind, str):
        return
    schema["type"] = [kind, "null"]
    values = schema.get("enum")
    if isinstance(values, list) and None not in values:
        schema["enum"] = [*values, None]


def _required_properties(schema: dict[str, Any]) -> None:
    """In draft 3, a property says itself that it is required."""
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return
    named = schema.get("required", [])
    for name, own in properties.items():
        if isinstance(own, dict) and isinstance(own.get("required"), bool):
            is_required = own.pop("required")
            if is_required and isinstance(named, list) and name not in named:
                named = schema["required"] = [*named, name]


def _lenient_values(schema: dict[str, Any]) -> None:
    """Counts may be written as ``1.0``, and formats may be empty."""
    for key in _COUNTS:
        value = schema.get(key)
        if isinstance(value, float) and value.is_integer():
            schema[key] = int(value)
    if schema.get("format") == "":
        del schema["format"]


_REWRITES: tuple[Callable[[dict[str, Any]], None], ...] = (
    _reference, _exclusive_bounds, _property_names, _without_effect, _untyped, _patterns, _nullable, _lenient_values,
    _required_properties,
)  # fmt: skip

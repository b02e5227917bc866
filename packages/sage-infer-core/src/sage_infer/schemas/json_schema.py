"""JSON Schema 2020-12 documents for all schemas, generated from their annotations and validators."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, Literal, cast, get_args, get_origin

import attrs

from sage_infer.checks import Check
from sage_infer.schemas.base import all_schemas, schema_version
from sage_infer.schemas.codec import VERSION_KEY

__all__ = ["field_docs", "json_schema", "json_schemas"]

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_SCALARS: Mapping[Any, dict[str, Any]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    Any: {},
}


def json_schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schema document of every schema by name."""
    return {name: json_schema(cls) for name, cls in all_schemas().items()}


def json_schema(cls: type) -> dict[str, Any]:
    """Return a self-contained JSON Schema document; nested schemas are in its ``$defs``."""
    definitions: dict[str, dict[str, Any]] = {}
    body = _object(cls, definitions)
    definitions.pop(cls.__name__, None)
    version = schema_version(cls) or "1.0"
    major = version.split(".")[0]
    body["properties"] = {
        VERSION_KEY: {"type": "string", "pattern": rf"^{major}\.\d+$"},
        **body["properties"],
    }
    document = {
        "$schema": DIALECT,
        "$id": f"urn:sage-infer:{cls.__name__}:{version}",
        "title": cls.__name__,
        **body,
    }
    if definitions:
        document["$defs"] = dict(sorted(definitions.items()))
    return document


def field_docs(cls: type) -> dict[str, str]:
    """Return the description of each field from the ``Attributes:`` section of the class docstring."""
    _, _, section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    docs: dict[str, str] = {}
    for name, text in re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", section, flags=re.MULTILINE):
        docs[name] = " ".join(text.split())
    return docs


def _object(cls: type, definitions: dict[str, dict[str, Any]]) -> dict[str, Any]:
    docs = field_docs(cls)
    properties: dict[str, Any] = {}
    required: list[str] = []
    for attribute in attrs.fields(attrs.resolve_types(cls)):
        check = cast("Check | None", attribute.validator)
        property_schema = _type(attribute.type, check.json_schema() if check else {}, definitions)
        if attribute.name in docs:
            property_schema["description"] = docs[attribute.name]
        if attribute.default is attrs.NOTHING:
            required.append(attribute.name)
        elif not isinstance(attribute.default, attrs.Factory):  # type: ignore[arg-type]  # Factory is a class
            default = attribute.default
            property_schema["default"] = list(default) if isinstance(default, tuple) else default
        properties[attribute.name] = property_schema
    summary = inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0]
    schema: dict[str, Any] = {
        "type": "object",
        "description": " ".join(summary.split()),
        "properties": properties,
    }
    if required:
        schema["required"] = required
    return {**schema, "additionalProperties": False}


def _type(t: Any, keywords: dict[str, Any], definitions: dict[str, dict[str, Any]]) -> dict[str, Any]:
    arguments = get_args(t)
    if type(None) in arguments:
        (inner,) = (a for a in arguments if a is not type(None))
        return {"anyOf": [_type(inner, keywords, definitions), {"type": "null"}]}
    if get_origin(t) is Literal:
        return {"type": "string", "enum": list(arguments)}
    if get_origin(t) is tuple:
        item = _type(arguments[0], keywords.get("items", {}), definitions)
        return {"type": "array", **keywords, "items": item}
    if get_origin(t) is Mapping:
        inner = _type(arguments[1], keywords.get("additionalProperties", {}), definitions)
        return {"type": "object", "additionalProperties": inner or True}
    if attrs.has(t):
        if t.__name__ not in definitions:
            definitions[t.__name__] = {}
            definitions[t.__name__] = _object(t, definitions)
        return {"$ref": f"#/$defs/{t.__name__}"}
    return {**_SCALARS[t], **keywords}

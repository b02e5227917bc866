"""Constraints for forced tool calls (``tool_choice: required``), and parsing of the resulting text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sage_infer.contracts import ToolCall

from sage_infer_serve.openai.schema import Tool
from sage_infer_serve.openai.tool_calls import whole_call

__all__ = ["call_of", "schema_of_any"]

_DATA = ("const", "enum", "default", "examples")  # keywords whose values are data, not schemas
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")  # names to schemas
_BEGINNING = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"]*)("?)\s*(?:,\s*"arguments"\s*:\s*(.*))?', re.DOTALL)


def schema_of_any(tools: Sequence[Tool]) -> dict[str, Any]:
    """JSON Schema of a call of any of ``tools``, as ``{"name": …, "arguments": …}``.

    The parameters of each tool become a definition at the root; their references (``#``, ``#/$defs/…``) are rewritten.
    """
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.function.name},
                "arguments": {"$ref": f"#/$defs/{tool.function.name}"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    defined = {tool.function.name: _moved(tool.function.parameters, tool.function.name) for tool in tools}
    return {**(calls[0] if len(calls) == 1 else {"anyOf": calls}), "$defs": defined}


def _moved(parameters: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """Parameters as the definition ``name``. ``$id`` is removed, as it would start a new document."""
    if not parameters:
        return {"type": "object"}
    own = parameters.get("$id")
    roots = ("#",) if not isinstance(own, str) else ("#", own.removesuffix("#") + "#")
    moved: dict[str, Any] = _with_references(parameters, roots, f"#/$defs/{name}")
    return {key: value for key, value in moved.items() if key not in ("$id", "$schema")}


def _with_references(schema: Any, roots: tuple[str, ...], new: str) -> Any:
    if isinstance(schema, list):
        return [_with_references(item, roots, new) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str):
            root = next((r for r in roots if value == r or value.startswith(r + "/")), None)
            found[key] = value if root is None else new + value[len(root) :]
        elif key in _NAMED and isinstance(value, dict):
            found[key] = {name: _with_references(inner, roots, new) for name, inner in value.items()}
        else:
            found[key] = value if key in _DATA else _with_references(value, roots, new)
    return found


def call_of(text: str, names: Sequence[str]) -> ToolCall | None:
    """The possibly truncated call in a text of ``schema_of_any``; None if the function's name is missing."""
    whole = whole_call(text)
    if whole is not None:
        return whole if whole.name in names else None
    if match := _BEGINNING.match(text):
        name, is_whole, arguments = match[1], bool(match[2]), match[3] or ""
    elif '{"name":"'.startswith("".join(text.split())):
        name, is_whole, arguments = "", False, ""
    else:
        return None
    called = [known for known in names if (known == name if is_whole else known.startswith(name))]
    return ToolCall(name=called[0], arguments=arguments) if len(called) == 1 else None

"""Constraints for forced tool calls (``tool_choice: required``), and readers of the resulting text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urljoin

from sage_infer.contracts import AnswerDelta
from sage_infer.schemas import ToolCallDelta
from sage_infer.sdk.answers import json_answer_format

from sage_infer_serve.openai.schema import Tool

__all__ = ["NO_PARAMETERS", "NamedCallReader", "RequiredCallReader", "schema_of_any"]

NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
"""JSON Schema of a function that declares no parameters, which is one without any."""

_DATA = ("const", "enum", "default", "examples")  # keywords whose values are data, not schemas
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")  # names to schemas
_BEGINNING = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"]*)("?)')
_JSON_CALLS = json_answer_format()


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
        return dict(NO_PARAMETERS)
    own = parameters.get("$id")
    base = own.removesuffix("#") if isinstance(own, str) else ""
    moved: dict[str, Any] = _with_references(parameters, base, f"#/$defs/{name}")
    return {key: value for key, value in moved.items() if key not in ("$id", "$schema")}


def _with_references(schema: Any, base: str, new: str) -> Any:
    if isinstance(schema, list):
        return [_with_references(item, base, new) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str):
            pointer = _pointer(value, base)
            found[key] = value if pointer is None else new + pointer
        elif key in _NAMED and isinstance(value, dict):
            found[key] = {name: _with_references(inner, base, new) for name, inner in value.items()}
        else:
            found[key] = value if key in _DATA else _with_references(value, base, new)
    return found


def _pointer(reference: str, base: str) -> str | None:
    """The JSON pointer of a reference into the schema itself, whose ``$id`` is ``base``; None for other references."""
    document, _, fragment = reference.partition("#")
    try:
        is_own = not document or (bool(base) and urljoin(base, document) == base)
    except ValueError:  # an address that is not valid
        return None
    return fragment if is_own and fragment[:1] in ("", "/") else None


class NamedCallReader:
    """An ``AnswerReader`` of a text that is the arguments of one function."""

    is_reasoning = False

    def __init__(self, name: str) -> None:
        self._name = name

    def feed(self, text: str) -> AnswerDelta:
        return self._delta(text) if text else AnswerDelta()

    def end(self) -> AnswerDelta:
        return self._delta("") if self._name else AnswerDelta()

    def _delta(self, arguments: str) -> AnswerDelta:
        name, self._name = self._name, ""
        return AnswerDelta(tool_calls=(ToolCallDelta(index=0, name=name, arguments=arguments),))


class RequiredCallReader:
    """An ``AnswerReader`` of a text by ``schema_of_any``. Cut off before its arguments, it is a call without any if its
    beginning fits only one of ``names``, and content otherwise.
    """

    is_reasoning = False

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        tools = [{"function": {"name": name}} for name in names]
        self._reader = _JSON_CALLS.reader(tools=tools)
        self._text: list[str] | None = []  # until the call has begun

    def feed(self, text: str) -> AnswerDelta:
        return self._only_calls(text, self._reader.feed(text))

    def end(self) -> AnswerDelta:
        delta = self._only_calls("", self._reader.end())
        if self._text is None:
            return delta
        text = "".join(self._text)
        name = self._named_by(text)
        if name is None:
            return AnswerDelta(content=text)
        return AnswerDelta(tool_calls=(ToolCallDelta(index=0, name=name),))

    def _only_calls(self, text: str, delta: AnswerDelta) -> AnswerDelta:
        if delta.tool_calls:
            self._text = None
        elif self._text is not None:
            self._text.append(text)
        return AnswerDelta(tool_calls=delta.tool_calls)

    def _named_by(self, text: str) -> str | None:
        if match := _BEGINNING.match(text):
            fits = str.__eq__ if match[2] else str.startswith
            called = [name for name in self._names if fits(name, match[1])]
        else:
            is_beginning = '{"name":"'.startswith("".join(text.split()))
            called = list(self._names) if is_beginning else []
        return called[0] if len(called) == 1 else None

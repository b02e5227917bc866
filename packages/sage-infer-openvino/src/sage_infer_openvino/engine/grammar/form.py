"""Convert constraints to llguidance's format and check them. Does not import the engine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import llguidance

from sage_infer_openvino.engine.grammar.dialects import DATA, rewritten

__all__ = ["CompileError", "first_line", "llguidance_form", "matcher_of", "vocabulary_of"]

# The format of json.dumps, which models know best. Free white space would allow endless white space.
_JSON_FORM: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_OPENED = ("additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames")
_UNKNOWN_FORMAT = re.compile(r"Unknown format: ([^\s\"']+)")
_IMPOSSIBLE_PROPERTY = re.compile(r"required property '.*' is unsatisfiable")
_MOST_FORMATS = 64


class CompileError(Exception):
    """The constraint is malformed or impossible.

    Attributes:
        is_unsupported: llguidance does not implement it.
        is_expensive: it took all of its time, or ended the process that compiled it.
    """

    def __init__(self, reason: str, *, is_unsupported: bool = False, is_expensive: bool = False) -> None:
        super().__init__(reason)
        self.is_unsupported, self.is_expensive = is_unsupported, is_expensive


def vocabulary_of(tokenizer_json: str, n_vocab: int, eos_token_ids: list[int]) -> llguidance.LLTokenizer:
    """The vocabulary that constraints are compiled for; takes about a second for 50,000 tokens."""
    return llguidance.LLTokenizer(tokenizer_json, n_vocab=n_vocab, eos_token=eos_token_ids)


# What llguidance says of keywords, of regular expressions, and of bounds beyond 64 bits.
_UNSUPPORTED = (
    "Unimplemented",
    "is not supported",
    "are not supported",
    "Failed to generate regex for integer range",
)


def matcher_of(vocabulary: llguidance.LLTokenizer, form: str) -> llguidance.LLMatcher:
    """
    Raises:
        CompileError: the constraint cannot be compiled.
    """
    matcher = llguidance.LLMatcher(vocabulary, form, log_level=0)
    if matcher.is_error():
        reason = first_line(matcher)
        if _IMPOSSIBLE_PROPERTY.search(reason):
            reason += "; declare it in properties with a schema that some value matches"
        if "coerce_one_of" in reason:
            raise CompileError("oneOf of schemas that may overlap; use anyOf", is_unsupported=True)
        raise CompileError(reason, is_unsupported=any(sign in reason for sign in _UNSUPPORTED))
    return matcher


def llguidance_form(kind: str, text: str, vocabulary: llguidance.LLTokenizer) -> str:
    """Convert a constraint (``json_schema``, ``regex``, ``grammar`` or ``choice``; data as JSON) to llguidance's
    format.

    Raises:
        CompileError: it is malformed.
    """
    match kind:
        case "json_schema":
            return _schema_form(json.loads(text), vocabulary)
        case "regex":
            return llguidance.LLMatcher.grammar_from_regex(text)
        case "grammar":
            try:
                return llguidance.grammar_from("grammar", text)
            except ValueError as error:
                raise CompileError(f"the grammar is neither Lark nor GBNF: {error}") from error
        case _:
            return llguidance.grammar_from("choice", text)


def _schema_form(schema: Any, vocabulary: llguidance.LLTokenizer) -> str:
    """Unknown formats are annotations (JSON Schema 2020-12, 7.2.1) and are removed."""
    schema = rewritten(schema)
    if not _composes(schema):
        schema = _closed(schema)
    for _ in range(_MOST_FORMATS):
        form = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=_JSON_FORM)
        matcher = llguidance.LLMatcher(vocabulary, form, log_level=0)
        unknown = _UNKNOWN_FORMAT.search(matcher.get_error()) if matcher.is_error() else None
        if unknown is None:
            return form
        schema = _without_format(schema, unknown[1])
    raise CompileError(f"the schema has more than {_MOST_FORMATS} unknown formats")


def _composes(schema: Any) -> bool:
    """Whether objects are composed of several schemas; then none of them may forbid the others' properties."""
    if isinstance(schema, list):
        return any(map(_composes, schema))
    if not isinstance(schema, Mapping):
        return False
    together = schema.get("allOf")
    if isinstance(together, list) and len(together) > 1:
        return True
    if isinstance(schema.get("properties"), Mapping) and ("$ref" in schema or "allOf" in schema):
        return True
    return any(_composes(value) for key, value in schema.items() if key not in DATA)


def _closed(schema: Any) -> Any:
    """Forbid additional properties by default, as is common: models would otherwise add arbitrary ones.

    Required properties that are not declared may have any value, as in JSON Schema.
    """
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {key: value if key in DATA else _closed(value) for key, value in schema.items()}
    properties = schema.get("properties")
    if isinstance(properties, Mapping) and not any(key in schema for key in _OPENED):
        found["additionalProperties"] = False
        required = schema.get("required")
        names = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
        found["properties"] = {
            **found["properties"],
            **{name: {} for name in names if name not in properties},
        }
    return found


def _without_format(schema: Any, name: str) -> Any:
    if isinstance(schema, list):
        return [_without_format(item, name) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: value if key in DATA else _without_format(value, name)
        for key, value in schema.items()
        if not (key == "format" and value == name)
    }


def first_line(matcher: llguidance.LLMatcher) -> str:
    """The matcher's error on one line: the first line is the error, further lines locate it in a regular expression."""
    lines = [line.strip() for line in matcher.get_error().partition("<state>")[0].splitlines()]
    return "; ".join(line for line in lines if line and not line.startswith("^"))[:300]

"""Schemas as generators write them: outputs follow keywords of other drafts, of OpenAPI and of Zod."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openvino_toy import EOS, VOCABULARY, toy_tokenizer
from sage_infer.errors import InvalidRequest, UnsupportedFeature
from sage_infer.schemas import GuidedDecoding
from sage_infer_openvino.engine.grammar.compiler import GrammarCompiler


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(toy_tokenizer(), VOCABULARY)
    yield compiler
    compiler.close()


def accepts(compiler: GrammarCompiler, schema: dict[str, Any], text: str) -> bool:
    matcher = compiler.compile(GuidedDecoding(json_schema=schema))
    for byte in text.encode():
        if not matcher.allowed(VOCABULARY)[byte]:
            return False
        matcher.accept(byte)
    return bool(matcher.allowed(VOCABULARY)[EOS])


INTEGER = {"type": "integer"}
EMAIL = {
    "type": "string",
    "format": "email",
    "pattern": r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$",
}
OPEN_30 = {"type": "integer", "minimum": 1, "exclusiveMinimum": True, "maximum": 3, "exclusiveMaximum": False}
RECORD = {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": INTEGER}
ENUM = {**RECORD, "propertyNames": {"type": "string", "enum": ["a", "b"]}, "required": ["a"]}
MATCHED = {**RECORD, "propertyNames": {"pattern": "^[a-z]$"}}
GENERIC = {"$defs": {"Page[Item]": INTEGER, "Liste«É»": {"type": "null"}}, "type": "array", "minItems": 2}
GENERIC["prefixItems"] = [{"$ref": "#/$defs/Page[Item]"}, {"$ref": "#/$defs/Liste«É»"}]


def decimal(rest: str) -> dict[str, Any]:
    """As Pydantic writes a decimal number that is a string."""
    return {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*" + rest}


DECIMAL = decimal(r"\d*\.?\d*$")
IDLE = {
    "type": "array", "items": INTEGER, "maxItems": 2, "uniqueItems": False, "unevaluatedItems": True,
    "additionalItems": {}, "minContains": 0, "dependencies": {}, "dependentRequired": {}, "dependentSchemas": {},
    "if": {"type": "array"}, "default": {"uniqueItems": False},
}  # fmt: skip
DRAFT_3 = {
    "type": "object",
    "properties": {"a": {"type": "integer", "required": True}, "b": {"type": "integer", "required": False}},
}
UNTYPED = {"properties": {"a": INTEGER}, "required": ["a"]}


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        (OPEN_30, ["2", "3"], ["1", "4"]),
        (RECORD, ["{}", '{"x y": 1}'], ['{"x": "y"}']),
        ({**RECORD, "propertyNames": True}, ['{"x": 1}'], ["1"]),
        (ENUM, ['{"a": 1}', '{"a": 1, "b": 2}'], ["{}", '{"c": 1}', '{"a": 1, "c": 2}']),
        (MATCHED, ["{}", '{"x": 1}'], ['{"xy": 1}', '{"x": "y"}']),
        (GENERIC, ["[1, null]"], ["[null, 1]"]),
        (IDLE, ["[1, 1]"], ["[1, 1, 1]"]),
        (UNTYPED, ['{"a": 1}'], ["1", "[]", "{}"]),
        ({"anyOf": [UNTYPED, {"type": "null"}]}, ['{"a": 1}', "null"], ["1"]),
        ({"properties": {"pattern": INTEGER, "if": INTEGER}, "required": ["if"]}, ['{"if": 1}'], ["{}"]),
        (DECIMAL, ['"1"', '"-0.50"', '".5"', '"+12."', '"007"'], ['""', '"."', '"-"', '"1a"', '"1.2.3"']),
        (decimal(r"\d*\.?\d{0,2}0*$"), ['"1.25"', '"1.2500"', '".5"', '"1."'], ['"1.253"', '"."', '"+"']),
        (decimal(r"\d*\.?\d{0,0}0*$"), ['"1"', '"1.0"', '".00"'], ['"1.5"', '"."']),
        (
            decimal(r"(?:\d{0,3}|(?=[\d.]{1,6}0*$)\d{0,3}\.\d{0,2}0*$)"),
            ['"123"', '"0123.45"', '".4500"', '"00"'], ['"1234"', '"1.234"', '"."', '""', '"12a"'],
        ),
        ({"type": "string", "nullable": True}, ["null", '"a"'], ["1"]),
        ({"type": "string", "enum": ["a"], "nullable": True}, ["null", '"a"'], ['"b"']),
        ({"type": "string", "nullable": False}, ['"a"'], ["null"]),
        (DRAFT_3, ['{"a": 1}', '{"a": 1, "b": 1}'], ["{}", '{"b": 1}']),
        ({"type": "string", "minLength": 1.0, "maxLength": 2.0, "format": ""}, ['"a"', '"ab"'], ['""', '"abc"']),
        (EMAIL, ['"a.b+c@d-e.org"', '"x@y.zz"'], ['".a@b.cc"', '"a..b@c.dd"', '"a.@b.cc"', '"a@b"']),
    ],
)  # fmt: skip
def test_answers_follow(
    compiler: GrammarCompiler, schema: dict[str, Any], valid: list[str], invalid: list[str]
) -> None:
    assert [text for text in valid if not accepts(compiler, schema, text)] == []
    assert [text for text in invalid if accepts(compiler, schema, text)] == []


@pytest.mark.parametrize(
    ("schema", "error", "says"),
    [
        ({"type": "object", "propertyNames": {"minLength": 2}}, UnsupportedFeature, "propertyNames"),
        ({**RECORD, "properties": {"a": INTEGER}, "propertyNames": {"pattern": "a"}}, UnsupportedFeature, "propertyN"),
        ({"oneOf": [INTEGER, {"type": "number"}]}, UnsupportedFeature, "oneOf of schemas that may overlap; use anyOf"),
        ({"type": "array", "uniqueItems": True}, UnsupportedFeature, "uniqueItems"),
        ({"if": INTEGER, "then": {"minimum": 1}}, UnsupportedFeature, "if"),
        ({"$ref": "#/$defs/none"}, InvalidRequest, "does not exist"),
        ({"type": "string", "pattern": "^(?=a)a$"}, UnsupportedFeature, "look-ahead"),
        ({"type": "string", "pattern": r"^(a)\1$"}, UnsupportedFeature, "backreferences"),
        ({"type": "integer", "minimum": 10**30}, UnsupportedFeature, "integer range"),
        ({"type": "string", "pattern": "("}, InvalidRequest, "regex parse error"),
    ],
)  # fmt: skip
def test_what_is_not_implemented_is_refused_by_name(
    compiler: GrammarCompiler, schema: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        compiler.compile(GuidedDecoding(json_schema=schema))

"""Forced tool calls: the constraint of ``tool_choice: required``, and the calls in its output."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from sage_infer.contracts import AnswerReader
from sage_infer_serve.openai.forced_calls import NamedCallReader, RequiredCallReader, schema_of_any
from sage_infer_serve.openai.schema import Function, Tool


def read(reader: AnswerReader, pieces: Iterable[str]) -> tuple[str, list[tuple[str, str]]]:
    content, calls = "", []
    for delta in [*map(reader.feed, pieces), reader.end()]:
        content += delta.content
        for call in delta.tool_calls:
            if call.index == len(calls):
                calls.append((call.name, ""))
            calls[call.index] = calls[call.index][0], calls[call.index][1] + call.arguments
    return content, calls


POINT = {"type": "object", "properties": {"x": {"type": "integer"}}}


@pytest.mark.parametrize("key", ["$defs", "definitions"])
def test_references_of_parameters_lead_to_the_parameters(key: str) -> None:
    parameters = {
        "$id": "https://example.com/p", "$schema": "http://json-schema.org/draft-07/schema#", "type": "object",
        "properties": {
            "p": {"$ref": f"#/{key}/Point"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
            "whole": {"$ref": "https://example.com/p#"}, "const": {"$ref": "#"},
            "data": {"const": {"$ref": "#/x"}}, "out": {"$ref": "https://example.com/other#/x"},
            "relative": {"$ref": f"p#/{key}/Point"}, "anchor": {"$ref": "#a"}, "bad": {"$ref": "http://[x#/a"},
        },
        key: {"Point": POINT},
    }  # fmt: skip
    tools = [
        Tool(type="function", function=Function(name=name, parameters=schema))
        for name, schema in (("f", parameters), ("g", None))
    ]
    for some in (tools, tools[:1]):
        schema = schema_of_any(some)
        calls = schema.get("anyOf", [schema])
        assert [c["properties"]["arguments"] for c in calls] == [
            {"$ref": f"#/$defs/{tool.function.name}"} for tool in some
        ]
        f = schema["$defs"]["f"]
        assert set(f) == {"type", "properties", key}
        assert f["properties"] == {
            "p": {"$ref": f"#/$defs/f/{key}/Point"}, "next": {"anyOf": [{"$ref": "#/$defs/f"}, {"type": "null"}]},
            "whole": {"$ref": "#/$defs/f"}, "const": {"$ref": "#/$defs/f"},
            "data": {"const": {"$ref": "#/x"}}, "out": {"$ref": "https://example.com/other#/x"},
            "relative": {"$ref": f"#/$defs/f/{key}/Point"}, "anchor": {"$ref": "#a"}, "bad": {"$ref": "http://[x#/a"},
        }  # fmt: skip
        assert f[key] == {"Point": POINT}


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ('{"name": "find", "arguments": {"n": 1.10, "n": 2}}', ("find", '{"n": 1.10, "n": 2}')),
        ('{"arguments": {"n": 1}, "name": "find"}', ("find", '{"n": 1}')),
        ('{"name": "find", "arguments": {"city": "Ro', ("find", '{"city": "Ro')),
        ('{"name": "find", "argum', ("find", "")),
        ('{"name": "find_a', ("find_all", "")),
        ('{"name": "fin', None),  # either
        ("{", None),
        ("no call", None),
    ],
)
def test_a_truncated_forced_call_is_returned(text: str, call: tuple[str, str] | None) -> None:
    for pieces in ([text], text):
        assert read(RequiredCallReader(["find", "find_all"]), pieces) == (
            ("", [call]) if call else (text, [])
        )
    if call is None and text != "no call":
        assert read(RequiredCallReader(["find"]), [text]) == ("", [("find", "")])


def test_the_arguments_of_a_named_call_are_delivered_as_they_arrive() -> None:
    assert read(NamedCallReader("find"), ['{"n"', "", ": 1"]) == ("", [("find", '{"n": 1')])
    assert read(NamedCallReader("find"), []) == ("", [("find", "")])
    reader = RequiredCallReader(["find"])
    reader.feed('{"name": "find", "arguments": ')
    assert [reader.feed(piece).tool_calls[0].arguments for piece in ('{"n', '": ', "1}")] == [
        '{"n',
        '": ',
        "1}",
    ]

"""Reading tool calls: every form, however its text is cut, and nothing lost of what is no call."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sage_infer.contracts import ToolCall
from sage_infer_serve.openai.forced_calls import call_of, schema_of_any
from sage_infer_serve.openai.schema import Function, Tool
from sage_infer_serve.openai.tool_calls import FORMS, ToolCallReader, call_as_dict

CALL = '{"name": "weather", "arguments": {"city": "Paris", "note": "a } ] \\" <tool_call> b"}}'
ARGUMENTS = {"city": "Paris", "note": 'a } ] " <tool_call> b'}
LLAMA = CALL.replace("arguments", "parameters")

ANSWERS = {
    # what the family's template shows models to write: (text, content, how many calls)
    "Hermes": (f"<tool_call>\n{CALL}\n</tool_call>", "", 1),
    "Hermes, several": (f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", "", 2),
    "Hermes, with words": (f"I look it up. <tool_call>{CALL}</tool_call>", "I look it up.", 1),
    "Hermes, cut off after the call": (f"<tool_call>{CALL}", "", 1),
    "Mistral": (f"[TOOL_CALLS][{CALL}]", "", 1),
    "Mistral, several": (f"[TOOL_CALLS] [{CALL}, {CALL}]", "", 2),
    "Mistral from 2025": ("[TOOL_CALLS]weather[ARGS]" + json.dumps(ARGUMENTS), "", 1),
    "Mistral from 2025, several": (
        ("[TOOL_CALLS]weather[CALL_ID]abc[ARGS]" + json.dumps(ARGUMENTS)) * 2,
        "",
        2,
    ),
    "Llama 3": (LLAMA, "", 1),
    "Llama 3, several": (f"{LLAMA}; {LLAMA}", "", 2),
    "Llama 3 with its mark": (f"<|python_tag|>{LLAMA}", "", 1),
    "Llama 3, white space before": (f"\n\n{LLAMA}", "", 1),
}
NO_CALLS = [
    "plain words",
    "a < b and <tool> and [TOOL and [1, 2] {x}",
    "<tool_call>not JSON</tool_call>",
    "<tool_call>",
    '<tool_call>{"name": ',
    '<tool_call>{"no name": 1}</tool_call>',
    "[TOOL_CALLS]",
    "[TOOL_CALLS] a sentence about calls",
    '{"answer": 42}',
    '{"name": "unknown function", "parameters": {}}',
    "{ braces } are no JSON",
    '{"name": "weather"',
    "  {not json",
    "{{}}",
    'Here is JSON: {"name": "weather", "parameters": {}}',
    "",
]


def read(pieces: Iterable[str]) -> tuple[str, list[tuple[str, object]]]:
    reader = ToolCallReader(["weather"])
    texts, calls = [], []
    for piece in pieces:
        text, found = reader.feed(piece)
        texts.append(text)
        calls += found
    text, found = reader.end()
    return "".join([*texts, text]), [(call.name, json.loads(call.arguments)) for call in [*calls, *found]]


def cut(text: str, places: list[int]) -> list[str]:
    marks = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in itertools.pairwise(marks)]


@pytest.mark.parametrize("name", ANSWERS)
def test_forms(name: str) -> None:
    text, content, count = ANSWERS[name]
    assert read([text]) == (content, [("weather", ARGUMENTS)] * count)
    assert read(text) == (content, [("weather", ARGUMENTS)] * count)  # character by character


@given(st.sampled_from(sorted(ANSWERS)), st.lists(st.integers(0, 10**6), max_size=12))
def test_it_does_not_matter_where_the_text_is_cut(name: str, places: list[int]) -> None:
    text, content, count = ANSWERS[name]
    assert read(cut(text, places)) == (content, [("weather", ARGUMENTS)] * count)


@pytest.mark.parametrize("text", NO_CALLS)
def test_what_only_looks_like_a_call_is_content(text: str) -> None:
    assert read([text]) == (text, [])
    assert read(text) == (text, [])


marks = st.sampled_from(
    [form.opens for form in FORMS] + ["</tool_call>", '"name"', ":", "}", "[", "]", ";", "\\", "[ARGS]"]
)
texts = st.lists(marks | st.text(max_size=5), max_size=12).map("".join)


@given(texts, st.lists(st.integers(0, 10**6), max_size=12))
def test_no_text_is_lost_or_cut_differently(text: str, places: list[int]) -> None:
    """Whatever is said: as one piece and in many it is the same, and without calls it is all content."""
    whole = read([text])
    assert read(cut(text, places)) == whole
    if not whole[1]:
        assert whole[0] == text


@pytest.mark.parametrize(
    ("written", "given"),
    [
        ('{"amount": 1.10,  "id": 12345678901234567890.5}', None),
        ('{"a": 1, "a": 2}', None),
        ('{"x": "\\ud83d", "y": "\\u00e9"}', None),
        (
            '{"x": NaN, "y": [-Infinity, 1e999], "z": "NaN \\" Infinity"}',
            '{"x": null, "y": [null, 1e999], "z": "NaN \\" Infinity"}',
        ),
        ('"{\\"x\\": 1.10}"', '{"x": 1.10}'),
        ('{"n": ' + "1" * 5000 + "}", None),
    ],
)
def test_arguments_are_the_models_own_text(written: str, given: str | None) -> None:
    call = '{"name": "weather", "arguments": ' + written + "}"
    for text, count in (
        (f"<tool_call>\n{call}\n</tool_call>", 1),
        (f"[TOOL_CALLS] [ {call} , {call}]", 2),
        (call.replace('"arguments"', '"parameters" '), 1),
    ):
        reader = ToolCallReader(["weather"])
        _, found = reader.feed(text)
        found += reader.end()[1]
        assert [c.arguments for c in found] == [given or written] * count


def test_text_that_is_nested_too_deeply_is_content() -> None:
    text = '<tool_call>{"name": "weather", "arguments": ' + '{"a":' * 100_000 + "1" + "}" * 100_001
    assert read([text]) == (text, [])


def test_half_a_surrogate_pair_becomes_its_escape() -> None:
    call = call_as_dict(ToolCall(name="f", arguments='{"x": "\ud83d"}'), "1")
    assert json.loads(call["function"]["arguments"]) == {"x": "\ud83d"}
    json.dumps(call, ensure_ascii=False).encode()


POINT = {"type": "object", "properties": {"x": {"type": "integer"}}}


@pytest.mark.parametrize("key", ["$defs", "definitions"])
def test_references_of_parameters_lead_to_the_parameters(key: str) -> None:
    parameters = {
        "$id": "https://example.com/p", "$schema": "http://json-schema.org/draft-07/schema#", "type": "object",
        "properties": {
            "p": {"$ref": f"#/{key}/Point"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
            "whole": {"$ref": "https://example.com/p#"}, "const": {"$ref": "#"},
            "data": {"const": {"$ref": "#/x"}}, "out": {"$ref": "https://example.com/other#/x"},
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
def test_a_forced_call_is_given_as_far_as_it_got(text: str, call: tuple[str, str] | None) -> None:
    found = call_of(text, ["find", "find_all"])
    assert (None if found is None else (found.name, found.arguments)) == call
    if call is None and text != "no call":
        assert call_of(text, ["find"]) == ToolCall(name="find", arguments="")


def test_text_is_not_held_back_for_long() -> None:
    """Words go out at once; only what may begin a mark waits."""
    reader = ToolCallReader(["weather"])
    assert reader.feed("The sky ") == ("The sky", [])
    assert reader.feed("is < blue") == (" is < blue", [])
    assert reader.feed(" <tool") == ("", [])
    assert reader.feed("box>") == (" <toolbox>", [])


def test_long_arguments_take_time_in_proportion() -> None:
    """A call of a hundred thousand pieces is not read from its beginning at each of them."""
    reader = ToolCallReader(["weather"])
    reader.feed('<tool_call>{"name": "weather", "arguments": {"text": "')
    for _ in range(100_000):
        assert reader.feed("word ") == ("", [])
    _, (call,) = reader.feed('"}}</tool_call>')
    assert json.loads(call.arguments) == {"text": "word " * 100_000}

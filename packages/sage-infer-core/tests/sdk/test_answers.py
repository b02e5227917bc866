"""Reading answers: every family's form, however the text is split, and nothing lost of what is no call."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sage_infer.contracts import AnswerFormat, AnswerReader, ChatAnswer, ToolCall
from sage_infer.sdk.answers import FAMILIES, ModelFormat, answer_format, read_whole
from sage_infer.sdk.answers.families import FORMS

CALL = '{"name": "weather", "arguments": {"city": "Paris", "note": "a } ] \\" <tool_call> b"}}'
ARGUMENTS = {"city": "Paris", "note": 'a } ] " <tool_call> b'}
WRITTEN = json.dumps(ARGUMENTS)
NOTE = ARGUMENTS["note"]
TAGS = f"<function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=note>\n{NOTE}\n</parameter>\n</function>"
GEMMA = f"call:weather{{city:<escape>Paris<escape>,note:<escape>{NOTE}<escape>}}"
CALLS = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
DEEPSEEK = f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{WRITTEN}\n```<｜tool▁call▁end｜>"
LLAMA = CALL.replace("arguments", "parameters")
PYTHON = 'weather(city=\'Paris\', note="a } ] \\" <tool_call> b")'
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "note": {}}},
        },
    },
    {"type": "function", "function": {"name": "now"}},
]

# (template, answer, content, how many calls of weather)
ANSWERS: dict[str, tuple[str, str, str, int]] = {
    "Hermes": ("<tool_call>", f"<tool_call>\n{CALL}\n</tool_call>", "", 1),
    "Hermes, several": (
        "<tool_call>",
        f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>\n",
        "",
        2,
    ),
    "Hermes, with words": ("<tool_call>", f"I look. <tool_call>{CALL}</tool_call> So.", "I look. So.", 1),
    "Hermes, without its closing mark": ("<tool_call>", f"<tool_call>{CALL}", "", 1),
    "Hermes, without its last brace": ("<tool_call>", f"<tool_call>{CALL[:-1]}</tool_call>", "", 1),
    "Hermes, two in one": ("<tool_call>", f"<tool_call>\n{CALL}\n{CALL}\n</tool_call>", "", 2),
    "SmolLM3": ("xml_tools python_tools", f"<tool_call>\n{CALL}\n</tool_call>", "", 1),
    "SmolLM3 in Python": ("xml_tools python_tools", f"<code>\n{PYTHON}\n{PYTHON}\n</code>", "", 2),
    "Mistral": ("[TOOL_CALLS]", f"[TOOL_CALLS][{CALL}]", "", 1),
    "Mistral, several": ("[TOOL_CALLS]", f"[TOOL_CALLS] [{CALL}, {CALL}]", "", 2),
    "Mistral from 2025": ("[TOOL_CALLS]", f"[TOOL_CALLS]weather[ARGS]{WRITTEN}", "", 1),
    "Mistral from 2025, several": (
        "[TOOL_CALLS]",
        f"[TOOL_CALLS]weather[CALL_ID]abc[ARGS]{WRITTEN}[TOOL_CALLS]weather{WRITTEN}",
        "",
        2,
    ),
    "Phi-4": ("<|tool_call|><|/tool_call|>", f"<|tool_call|>{CALL}<|/tool_call|>", "", 1),
    "Phi-4, a list": ("<|tool_call|><|/tool_call|>", f"<|tool_call|>[{CALL},{CALL}]<|/tool_call|>", "", 2),
    "Phi-4 mini": ("functools[", f"functools[{CALL}]", "", 1),
    "Granite 3": ("<|tool_call|>", f"<|tool_call|>[{CALL}, {CALL}]", "", 2),
    "Granite 20B": ("<function_call>", f"<function_call> {CALL}", "", 1),
    "xLAM": ("developed by Salesforce xLAM team", f"[{CALL}, {CALL}]", "", 2),
    "Llama 4": ("<|header_start|>", f"[{PYTHON}, {PYTHON}]", "", 2),
    "Llama 4 with its marks": ("<|header_start|>", f"<|python_start|>[{PYTHON}]<|python_end|>", "", 1),
    "Llama 3": ("<|start_header_id|>", LLAMA, "", 1),
    "Llama 3, several": ("<|start_header_id|>", f"{LLAMA}; {LLAMA}", "", 2),
    "Llama 3, a type before the name": ("ipython", '{"type": "function", ' + LLAMA[1:], "", 1),
    "Llama 3 with its mark": ("<|start_header_id|>", f"<|python_tag|>{LLAMA}", "", 1),
    "Llama 3, white space before": ("<|start_header_id|>", f"\n\n{LLAMA}", "", 1),
    "Llama 3.2 in Python": ("<|start_header_id|>", f"[{PYTHON}]", "", 1),
    "Llama 3.1 in a tag": ("ipython", f"<function=weather>{WRITTEN}</function>", "", 1),
    "Hermes in a code block": ("<tool_call>", f"<tool_call>\n```json\n{CALL}\n```\n</tool_call>", "", 1),
    "Hermes, OpenAI's form": (
        "<tool_call>",
        f'<tool_call>{{"type": "function", "function": {CALL}}}</tool_call>',
        "",
        1,
    ),
    "Hermes, a function": (
        "<tool_call>",
        f"<tool_call>{CALL.replace('name', 'function')}</tool_call>",
        "",
        1,
    ),
    "Qwen 3 Coder": ("<tool_call>\n<function=", f"I look.\n<tool_call>\n{TAGS}\n</tool_call>", "I look.", 1),
    "Qwen 3 Coder, several": (
        "<tool_call>\n<function=",
        f"<tool_call>\n{TAGS}\n</tool_call>\n<tool_call>\n{TAGS}\n</tool_call>",
        "",
        2,
    ),
    "Qwen 3 Coder, without the first mark": ("<function=", f"{TAGS}\n</tool_call>", "", 1),
    "Qwen 3 Coder, on one line": ("<function=", f"<tool_call>{TAGS.replace(chr(10), '')}</tool_call>", "", 1),
    "DeepSeek R1": ("<｜tool▁calls▁begin｜>", f"{CALLS[0]}{DEEPSEEK}\n{DEEPSEEK}{CALLS[1]}", "", 2),
    "DeepSeek V3.1": (
        "<｜tool▁calls▁begin｜>",
        f"{CALLS[0]}<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{WRITTEN}<｜tool▁call▁end｜>{CALLS[1]}",
        "",
        1,
    ),
    "FunctionGemma": (
        "<start_function_call>",
        f"<start_function_call>{GEMMA}<end_function_call>" * 2,
        "",
        2,
    ),
    "Gemma": ("tool_code", f"```tool_code\n{PYTHON}\n```", "", 1),
    "Nemotron Nano": ("<TOOLCALL>", f"<TOOLCALL>[{CALL}, {CALL}]</TOOLCALL>", "", 2),
    "OLMo 3": ("<function_calls>", f"<function_calls>\n{PYTHON}\n{PYTHON}\n</function_calls>", "", 2),
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
    '{"name": "weather", "age": 3',
    "  {not json",
    "{{}}",
    "[1, 2]",
    "[unknown(a=1)]",
    "[weather, now]",
    "[weather",
    "functools is a module; functools [ too",
    "<code>\nprint(weather())\n</code>",
    'Here is JSON: {"name": "weather", "parameters": {}}',
    "<tool_call><function=wea",
    "<tool_call><function=weather>words",
    "<function=unknown>{}</function>",
    "the tag <function=",
    f"{CALLS[0]} and words",
    f"{CALLS[0]}<｜tool▁call▁begin｜>function<｜tool▁sep｜>wea",
    "<start_function_call>call:wea",
    "<start_function_call>call me",
    '<tool_call>{"function": {"function": {"name": "weather"}}}</tool_call>',
    "",
]


def read(
    pieces: Iterable[str], form: AnswerFormat | None = None, **options: Any
) -> tuple[str, list[tuple[str, str]], str]:
    """Content, calls and thoughts."""
    reader = (form or answer_format()).reader(tools=TOOLS, **options)
    contents, thoughts, calls = [], [], []
    for delta in [*map(reader.feed, pieces), reader.end()]:
        contents.append(delta.content)
        thoughts.append(delta.reasoning)
        for call in delta.tool_calls:
            assert call.index >= len(calls) - 1
            if call.index == len(calls):
                calls.append((call.name, ""))
            else:
                assert not call.name
            calls[-1] = calls[-1][0], calls[-1][1] + call.arguments
    return "".join(contents), calls, "".join(thoughts)


def split(text: str, places: list[int]) -> list[str]:
    marks = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in itertools.pairwise(marks)]


splits = st.lists(st.integers(0, 10**6), max_size=12)


@pytest.mark.parametrize("name", ANSWERS)
def test_every_form_of_every_family(name: str) -> None:
    template, text, content, count = ANSWERS[name]
    form = answer_format(template)
    assert form.family in {family.name for family in FAMILIES}
    for some in (form, answer_format()):  # by the family's forms, and by all of them
        for pieces in ([text], text):
            found, calls, _ = read(pieces, some)
            assert found == content
            assert [(n, json.loads(a)) for n, a in calls] == [("weather", ARGUMENTS)] * count
            if "PYTHON" not in text and "city='" not in text:
                assert {a for _, a in calls} == {WRITTEN}


@given(st.sampled_from(sorted(ANSWERS)), splits)
def test_it_does_not_matter_where_the_text_is_split(name: str, places: list[int]) -> None:
    template, text, *_ = ANSWERS[name]
    form = answer_format(template)
    assert read(split(text, places), form) == read([text], form)


@given(st.sampled_from(sorted(ANSWERS)), st.integers(0, 200), splits)
def test_a_call_that_is_cut_off_is_delivered_as_far_as_it_got(
    name: str, length: int, places: list[int]
) -> None:
    """What arrives earlier stays: a longer text has the same calls, and further ones."""
    template, text, *_ = ANSWERS[name]
    form = answer_format(template)
    part, whole = read([text[:length]], form), read([text], form)
    assert read(split(text[:length], places), form) == part
    for (name_so_far, so_far), (called, arguments) in zip(part[1], whole[1], strict=False):
        assert name_so_far == called
        assert arguments.startswith(so_far)


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('<tool_call>{"name": "weather", "arguments": {"city": "Par', [("weather", '{"city": "Par')]),
        ('<tool_call>{"name": "weather", "argu', [("weather", "")]),
        ('<tool_call>{"arguments": {"city": 1}, "name": "weather"', [("weather", '{"city": 1}')]),
        (f'<tool_call>{CALL}</tool_call><tool_call>{{"name": "now"', [("weather", WRITTEN), ("now", "")]),
        ("[TOOL_CALLS]weather[ARGS]", [("weather", "")]),
        ('[TOOL_CALLS]weather[ARGS]{"x": "\\', [("weather", '{"x": "\\')]),
        (f'[TOOL_CALLS][{CALL}, {{"na', [("weather", WRITTEN)]),
        ('{"name": "weather", "parameters": {"a": Na', [("weather", '{"a": Na')]),
        ("[weather(city='Par", [("weather", '{"city": "Par')]),
        ("[weather(city='Par\\u00e", [("weather", '{"city": "Par')]),
        ("[weather(city='Paris', note=[1, 2", [("weather", '{"city": "Paris"')]),
        ("[now(), weather(", [("now", "{}"), ("weather", "{")]),
        ("[now(), wea", [("now", "{}")]),
        ('<tool_call>{"name": "weather", "arguments": "{\\"a\\": 1, \\u00', [("weather", '{"a": 1, ')]),
        ("<function=weather>", [("weather", "")]),
        ("<function=weather><parameter=ci", [("weather", "{")]),
        ("<function=weather><parameter=city>\nPar\n</para", [("weather", '{"city": "Par')]),
        ("<function=weather><parameter=note>\n[1, ", [("weather", "{")]),
        ("<function=weather><parameter=city>a</parameter></fun", [("weather", '{"city": "a"')]),
        (f"{CALLS[0]}{DEEPSEEK}<｜tool▁call▁begin｜>now", [("weather", WRITTEN)]),
        (f"{CALLS[0]}<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n``", [("now", "")]),
        ("<start_function_call>call:weather{city:<escape>Par<esc", [("weather", '{"city": "Par')]),
    ],
)
def test_what_a_cut_call_has(text: str, calls: list[tuple[str, str]]) -> None:
    assert read([text]) == ("", calls, "")
    assert read(text) == ("", calls, "")


@pytest.mark.parametrize("text", NO_CALLS)
def test_what_only_looks_like_a_call_is_content(text: str) -> None:
    assert read([text]) == (text, [], "")
    assert read(text) == (text, [], "")


marks = st.sampled_from(
    [form.opens for form in FORMS]
    + [
        "<function=weather>",
        "<parameter=city>",
        "</parameter>",
        "</function>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
    ]
    + ["call:weather", "<escape>", "```", '"function":', "\n"]
    + ["</tool_call>", '"name"', ":", "}", "[", "]", ";", "\\", "[ARGS]", "{", "weather", "(", ")", "="]
    + ['{"name": "weather", "arguments": ', "'", '"', ",", "<think>", "</think>", "</code>", "NaN", "now()"]
)
texts = st.lists(marks | st.text(max_size=5), max_size=12).map("".join)
formats = st.sampled_from([answer_format(), *(answer_format(family.signs[0]) for family in FAMILIES)])


@given(texts, splits, formats)
def test_no_text_is_lost_or_read_differently(text: str, places: list[int], form: ModelFormat) -> None:
    """Whatever is said: as one piece and in many it is the same, and without calls it is all content."""
    whole = read([text], form)
    assert read(split(text, places), form) == whole
    if not whole[1]:
        assert whole[0] == text


@pytest.mark.parametrize(
    ("written", "given"),
    [
        ('{"amount": 1.10,  "id": 12345678901234567890.5}', None),
        ('{"a": 1, "a": 2}', None),
        ('{"x": "\\ud83d", "y": "\\u00e9"}', None),
        (
            '{"x": NaN, "y": [-Infinity, 1e999, -1], "z": "NaN \\" Infinity"}',
            '{"x": null, "y": [null, 1e999, -1], "z": "NaN \\" Infinity"}',
        ),
        ('"{\\"x\\": 1.10}"', '{"x": 1.10}'),
        ('{"n": ' + "1" * 5000 + "}", None),
        ('{"oops": maybe}', None),
        ("null", None),
    ],
)
def test_arguments_are_the_models_own_text(written: str, given: str | None) -> None:
    call = '{"name": "weather", "arguments": ' + written + ', "id": [1, "}"]}'
    early = '{"id": null, "arguments": ' + written + ', "name": "weather"}'
    for text, count in (
        (f"<tool_call>\n{call}\n</tool_call>", 1),
        (f"<tool_call>\n{early}\n</tool_call>", 1),
        (f"[TOOL_CALLS] [ {call} , {call}]", 2),
        (call.replace('"arguments"', '"parameters" '), 1),
    ):
        for pieces in ([text], text):
            assert read(pieces) == ("", [("weather", given or written)] * count, "")


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("weather()", "{}"),
        ("weather(city = 'Rome' , note=None)", '{"city": "Rome", "note": null}'),
        ("weather('Rome', 3, 4)", '{"city": "Rome", "note": 3, "arg2": 4}'),
        ("weather(a=1.10, b=-2e5, c=007, d=0x10)", '{"a": 1.10, "b": -2e5, "c": "007", "d": 16}'),
        ("weather(a=[1, 'x', {'k': (True, None)}])", '{"a": [1, "x", {"k": [true, null]}]}'),
        ("weather(a=true, b=[null, false])", '{"a": true, "b": [null, false]}'),
        ("weather(a='it\\'s \\u00e9', b=\"x\ny\")", '{"a": "it\'s é", "b": "x\\ny"}'),
        ("weather(a=now(), b=x == y, c={1, 2})", '{"a": "now()", "b": "x == y", "c": "{1, 2}"}'),
        ("weather(a=1,)", '{"a": 1}'),
        ("weather(a=" + "[" * 3000 + "]" * 3000 + ")", json.dumps({"a": "[" * 3000 + "]" * 3000})),
    ],
)
def test_python_literals_become_json(call: str, arguments: str) -> None:
    for text in (f"[{call}]", f"<code>{call}</code>"):
        for pieces in ([text], text):
            content, calls, _ = read(pieces)
            assert (content, calls) == ("", [("weather", arguments)])


TYPED: Any = {
    "text": {"type": "string"}, "count": {"type": "integer"}, "price": {"type": "number"}, "is_on": {"type": "boolean"},
    "list": {"type": "array"}, "other": {"type": "object"}, "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    "either": {"type": ["string", "integer"]}, "level": {"enum": [1, 2]}, "name": {"const": "a"}, "any": {},
}  # fmt: skip


@pytest.mark.parametrize(
    ("parameter", "text", "value"),
    [
        ("text", "42", '"42"'),
        ("text", "null", '"null"'),
        ("text", ' a\n"b"\\\t', '" a\\n\\"b\\"\\\\\\t"'),
        ("count", "42", "42"),
        ("count", "many", '"many"'),
        ("price", "1.10", "1.10"),
        ("price", "3", "3"),
        ("price", "NaN", '"NaN"'),
        ("is_on", "True", "true"),
        ("is_on", "false", "false"),
        ("list", "[1,  2]", "[1,  2]"),
        ("list", "['a', None]", '["a", null]'),
        ("other", '{"a": 1.10}', '{"a": 1.10}'),
        ("maybe", "None", "null"),
        ("maybe", "7", "7"),
        ("either", "7", "7"),
        ("either", "[7]", '"[7]"'),
        ("level", "2", "2"),
        ("name", "a", '"a"'),
        ("any", '"a"', '"\\"a\\""'),
        ("any", '{"a": 1}', '{"a": 1}'),
        ("unknown", "01", '"01"'),
        ("list", "[" * 3000 + "]" * 3000, json.dumps("[" * 3000 + "]" * 3000)),
    ],
)
def test_text_in_a_tag_gets_the_type_of_its_parameter(parameter: str, text: str, value: str) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": TYPED}}}]
    whole = (
        f"<tool_call>\n<function=f>\n<parameter={parameter}>\n{text}\n</parameter>\n</function>\n</tool_call>"
    )
    reader = answer_format().reader(tools=tools)
    (call,) = reader.feed(whole).tool_calls
    assert call.arguments == f'{{"{parameter}": {value}}}'
    reader = answer_format().reader(tools=tools)
    fed = "".join(call.arguments for piece in whole for call in reader.feed(piece).tool_calls)
    assert fed == call.arguments


def test_text_in_a_tag_is_delivered_as_it_arrives() -> None:
    reader = answer_format().reader(tools=TOOLS)
    reader.feed("<tool_call>\n<function=weather>\n<parameter=city>\nPar")
    assert [reader.feed(piece).tool_calls[0].arguments for piece in ("is", " é", "\n <")] == [
        "is",
        " é",
        "\\n ",
    ]
    assert reader.feed("/parameter></function>").tool_calls[0].arguments == '"}'


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ("{}", "{}"),
        ("{a:1.10,b:true,c:null}", '{"a": 1.10, "b": true, "c": null}'),
        ("{a:{b:[1,<escape>x, {y}: <escape>]},c:word}", '{"a": {"b": [1, "x, {y}: "]}, "c": "word"}'),
        ("{a:" + "[" * 3000 + "]" * 3000 + "}", '{"a": ' + "[" * 3000 + "]" * 3000 + "}"),
    ],
)
def test_function_gemmas_values_become_json(written: str, arguments: str) -> None:
    text = f"<start_function_call>call:weather{written}<end_function_call>"
    for pieces in ([text], text):
        assert read(pieces) == ("", [("weather", arguments)], "")


def test_text_that_is_nested_deeply_is_read() -> None:
    nested = '{"a":' * 100_000 + "1" + "}" * 100_000
    text = '<tool_call>{"name": "weather", "arguments": ' + nested + "}</tool_call>"
    assert read([text]) == ("", [("weather", nested)], "")


def test_text_is_not_held_back_for_long() -> None:
    """Words go out immediately; only what may begin a mark waits."""
    reader = answer_format().reader(tools=TOOLS)
    fed = [reader.feed(t).content for t in ("The sky ", "is < blue", " <tool", "box>")]
    assert fed == ["The sky", " is < blue", "", " <toolbox>"]
    reader = answer_format().reader(tools=TOOLS)
    assert reader.feed('{"answer": ').content == '{"answer":'


def test_arguments_are_delivered_as_they_arrive() -> None:
    reader = answer_format().reader(tools=TOOLS)
    assert not reader.feed('<tool_call>{"name": "weather", ').tool_calls
    (first,) = reader.feed('"arguments": {"city": "Pa').tool_calls
    assert (first.index, first.name, first.arguments) == (0, "weather", '{"city": "Pa')
    for piece in ("r", "is", '"}'):
        (more,) = reader.feed(piece).tool_calls
        assert (more.index, more.name, more.arguments) == (0, "", piece)


def test_long_arguments_take_time_in_proportion() -> None:
    """Arguments of a hundred thousand pieces are not read from their beginning at each of them."""
    reader = answer_format().reader(tools=TOOLS)
    reader.feed('<tool_call>{"name": "weather", "arguments": {"text": "')
    for _ in range(100_000):
        assert reader.feed("word ").tool_calls[0].arguments == "word "
    assert reader.feed('"}}</tool_call>').tool_calls[0].arguments == '"}'


def test_without_tools_no_calls_are_read() -> None:
    text = f"<tool_call>{CALL}</tool_call> "
    assert read_whole(answer_format("<tool_call>").reader(), text) == ChatAnswer(content=text)
    assert read_whole(answer_format("<tool_call>").reader(tools=TOOLS), text) == ChatAnswer(
        content="", tool_calls=(ToolCall(name="weather", arguments=WRITTEN),)
    )


def test_a_family_is_recognised_by_its_template_or_by_special_tokens() -> None:
    assert answer_format("no sign", special_tokens=["[TOOL_CALLS]"]).family == "Mistral"
    assert (
        answer_format("<tool_call>", special_tokens=["[TOOL_CALLS]"]).family == "Hermes, Qwen and Granite 4"
    )
    # Tools in a generic form: the model may use that, or the one that it was trained on.
    generic = answer_format("<|start_header_id|>", tool_template="", special_tokens=["<|python_tag|>"])
    assert (generic.family, generic.forms) == ("", FORMS)
    named = answer_format("plain", tool_template="<|tool_call|>")
    assert named.family == "Granite 3"


THINKING = answer_format("<think> <tool_call>")


@pytest.mark.parametrize(
    ("template", "prompt", "text", "thoughts", "content"),
    [
        ("<think>", "", "<think>\nHm, 2.\n</think>\n\nTwo.", "Hm, 2.", "Two."),
        ("<think>", "assistant\n<think>\n", "Hm.\n</think>\n\nTwo.", "Hm.", "Two."),
        ("<think>", "", "<think>\n\n</think>\n\nTwo.", "", "Two."),
        ("</think>", "", " \n<think>cut off ", "cut off", ""),
        ("<think>", "", "Two </think> three.", "", "Two </think> three."),
        ("<think>", "", " \n Two, <think>no</think>", "", " \n Two, <think>no</think>"),
        ("<think>", "", "<thin", "", "<thin"),
        ("<think>", "", "<think>a </thin", "a </thin", ""),
        ("<think>", "", "<think>a</think><response>Two.</response>", "a", "Two."),
        ("[THINK]", "", "[THINK]a [b] c[/THINK]Two.", "a [b] c", "Two."),
        ("<seed:think>", "", "<seed:think>a</seed:think>b", "a", "b"),
        (
            "Here is my thought process:", "",
            "Here's my thought process:\nHere is a.\nHere is my response:\nTwo.", "Here is a.", "Two.",
        ),
        ("no thoughts", "<think>", "<think>a</think>b", "", "<think>a</think>b"),
    ],
)  # fmt: skip
def test_thoughts(template: str, prompt: str, text: str, thoughts: str, content: str) -> None:
    form = answer_format(template)
    for pieces in ([text], text):
        assert read(pieces, form, prompt=prompt) == (content, [], thoughts)
    assert bool(form.thought_ends) == (template != "no thoughts")
    if not prompt:
        assert read([text], form, reads_thoughts=False)[2] == ""


@given(
    st.lists(marks | st.text(max_size=5), max_size=12).map("".join), splits, st.sampled_from(["", "<think>"])
)
def test_thoughts_do_not_depend_on_how_the_text_is_split(text: str, places: list[int], prompt: str) -> None:
    whole = read([text], THINKING, prompt=prompt)
    assert read(split(text, places), THINKING, prompt=prompt) == whole


def test_calls_in_thoughts_are_thoughts() -> None:
    text = f"<think>I could <tool_call>{CALL}</tool_call>.</think>\n<tool_call>{CALL}</tool_call>"
    content, calls, thoughts = read([text], THINKING)
    assert (content, calls) == ("", [("weather", WRITTEN)])
    assert thoughts == f"I could <tool_call>{CALL}</tool_call>."


def test_a_reader_knows_whether_it_reads_thoughts() -> None:
    reader: AnswerReader = THINKING.reader()
    states = []
    for piece in ("<think>", "a", "</think>", "b"):
        reader.feed(piece)
        states.append(reader.is_reasoning)
    assert states == [True, True, False, False]
    assert THINKING.reader(prompt="<think>\n").is_reasoning
    assert answer_format("x", special_tokens=["<think>", "</think>"]).thoughts_need_special_tokens
    assert not THINKING.thoughts_need_special_tokens

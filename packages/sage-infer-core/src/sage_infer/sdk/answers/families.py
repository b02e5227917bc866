"""Formats of reasoning and calls by model family, and recognition of the family.

A family is recognized by marks in its chat template, else by special tokens of its vocabulary. If there are none, all
formats are parsed: marks are unlikely to occur by chance, and a call without a mark must name a known function at the
start of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from attrs import field, frozen

from sage_infer.sdk.answers.json_calls import json_calls, known_json_calls, mistral_calls
from sage_infer.sdk.answers.python_calls import python_list, python_statements
from sage_infer.sdk.answers.reader import TextAnswerReader
from sage_infer.sdk.answers.sink import CallSink
from sage_infer.sdk.answers.source import Scan, Source, skip_space
from sage_infer.sdk.answers.tag_calls import (
    deepseek_calls,
    function_gemma_call,
    function_tag,
    json_or_function_tags,
)
from sage_infer.sdk.answers.thoughts import ThoughtForm

__all__ = [
    "FAMILIES",
    "FORMS",
    "THOUGHTS",
    "CallForm",
    "Family",
    "ModelFormat",
    "answer_format",
    "json_answer_format",
]


@frozen(kw_only=True)
class CallForm:
    """A format of tool calls.

    Attributes:
        opens: mark before the calls; empty for calls without a mark, at the start of an answer.
        closes: mark after the calls; it may be missing.
        scan: parses the calls between the marks, and returns whether there was one.
    """

    opens: str
    closes: str = ""
    scan: Callable[[Source, CallSink], Scan[bool]] = field(repr=False)


@frozen
class Family:
    """A row of the table: models with one of ``signs`` in the template, or else in the vocabulary, use ``forms``."""

    name: str
    signs: tuple[str, ...]
    forms: tuple[CallForm, ...]


def _without_mark(source: Source, sink: CallSink) -> Scan[bool]:
    if (yield from skip_space(source)) == "[":
        source.at += 1
        inside = yield from skip_space(source)
        source.back()
        source.mark = source.at
        if inside != "{":
            return (yield from python_list(source, sink))
    return (yield from known_json_calls(source, sink))


_HERMES = CallForm(opens="<tool_call>", closes="</tool_call>", scan=json_or_function_tags)
_FUNCTION = CallForm(opens="<function=", closes="</tool_call>", scan=function_tag)
_DEEPSEEK = CallForm(opens="<｜tool▁calls▁begin｜>", closes="<｜tool▁calls▁end｜>", scan=deepseek_calls)
_FUNCTION_GEMMA = CallForm(
    opens="<start_function_call>", closes="<end_function_call>", scan=function_gemma_call
)
_TOOL_CODE = CallForm(opens="```tool_code", closes="```", scan=python_statements)
_NEMOTRON = CallForm(opens="<TOOLCALL>", closes="</TOOLCALL>", scan=json_calls)
_FUNCTION_CALLS = CallForm(opens="<function_calls>", closes="</function_calls>", scan=python_statements)
_TOKENS = CallForm(opens="<|tool_call|>", closes="<|/tool_call|>", scan=json_calls)
_FUNCTION_CALL = CallForm(opens="<function_call>", closes="</function_call>", scan=json_calls)
_FUNCTOOLS = CallForm(opens="functools", scan=json_calls)
_MISTRAL = CallForm(opens="[TOOL_CALLS]", scan=mistral_calls)
_PYTHON_TAG = CallForm(opens="<|python_tag|>", scan=json_calls)
_PYTHON_START = CallForm(opens="<|python_start|>", closes="<|python_end|>", scan=python_list)
_CODE = CallForm(opens="<code>", closes="</code>", scan=python_statements)
_BARE = CallForm(opens="", scan=_without_mark)

FAMILIES: tuple[Family, ...] = (
    Family("SmolLM3", ("python_tools",), (_HERMES, _CODE)),
    Family("Mistral", ("[TOOL_CALLS]",), (_MISTRAL,)),
    Family("Phi-4", ("<|/tool_call|>", "functools["), (_TOKENS, _FUNCTOOLS)),
    Family("Granite 3", ("<|tool_call|>", "<function_call>"), (_TOKENS, _FUNCTION_CALL)),
    Family("Qwen 3 Coder", ("<function=",), (_HERMES, _FUNCTION)),
    Family("DeepSeek R1, distilled", ("<｜tool▁calls▁begin｜>",), (_DEEPSEEK,)),
    Family("FunctionGemma", ("<start_function_call>",), (_FUNCTION_GEMMA,)),
    Family("Nemotron Nano", ("<TOOLCALL>",), (_NEMOTRON,)),
    Family("OLMo 3", ("<function_calls>",), (_FUNCTION_CALLS,)),
    Family("Hermes, Qwen and Granite 4", ("<tool_call>",), (_HERMES,)),
    Family("xLAM", ("xLAM", "in a single JSON array"), (_BARE,)),
    Family("Llama 4", ("<|header_start|>", "<|python_start|>", "func_name1(param"), (_PYTHON_START, _BARE)),
    Family("Llama 3", ("<|python_tag|>", "<|start_header_id|>", "ipython"), (_PYTHON_TAG, _FUNCTION, _BARE)),
    Family("Gemma with tool_code", ("tool_code",), (_TOOL_CODE,)),
)
"""Model families; the first matching row applies."""

FORMS: tuple[CallForm, ...] = tuple(dict.fromkeys(form for family in FAMILIES for form in family.forms))
"""All formats, without repetition."""

THOUGHTS: tuple[ThoughtForm, ...] = (
    ThoughtForm(opens=("<think>",), closes=("</think>",), around=("<response>", "</response>")),
    ThoughtForm(opens=("[THINK]",), closes=("[/THINK]",)),
    ThoughtForm(opens=("<seed:think>",), closes=("</seed:think>",)),
    ThoughtForm(
        opens=("Here is my thought process:", "Here's my thought process:"),
        closes=("Here is my response:", "Here's my response:"),
    ),
)
"""Qwen, DeepSeek, SmolLM3 and Granite 3.3; Mistral; Seed; Granite 3.2."""


@frozen(kw_only=True)
class ModelFormat:
    """The format of one model's answers; an ``AnswerFormat``."""

    family: str
    forms: tuple[CallForm, ...]
    thoughts: ThoughtForm | None = None
    thoughts_need_special_tokens: bool = False

    @property
    def thought_ends(self) -> tuple[str, ...]:
        return () if self.thoughts is None else self.thoughts.closes

    def reader(
        self,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        prompt: str = "",
        reads_thoughts: bool = True,
    ) -> TextAnswerReader:
        return TextAnswerReader(
            () if tools is None else self.forms,
            self.thoughts if reads_thoughts else None,
            parameters=dict(map(_parameters, tools or ())),
            prompt=prompt,
        )


def _parameters(tool: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    function = tool.get("function", tool)
    schema = function.get("parameters")
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    return str(function.get("name")), properties if isinstance(properties, Mapping) else {}


def answer_format(
    template: str = "", *, tool_template: str | None = None, special_tokens: Collection[str] = ()
) -> ModelFormat:
    """The format of a model with these chat templates and special tokens.

    ``tool_template`` renders chats with tools: None where it is ``template``, and empty where none has a place for
    tools, so that they are described in a generic form.
    """
    calling = template if tool_template is None else tool_template
    family = _family(lambda sign: sign in calling)
    if family is None and calling:
        family = _family(lambda sign: sign in special_tokens)
    told = template + (tool_template or "")
    thoughts = _thoughts(lambda mark: mark in told) or _thoughts(lambda mark: mark in special_tokens)
    return ModelFormat(
        family="" if family is None else family.name,
        forms=FORMS if family is None else family.forms,
        thoughts=thoughts,
        thoughts_need_special_tokens=thoughts is not None
        and not {*thoughts.opens, *thoughts.closes}.isdisjoint(special_tokens),
    )


def json_answer_format() -> ModelFormat:
    """The format of answers that are one JSON object, a call of a known function."""
    return ModelFormat(family="JSON", forms=(CallForm(opens="", scan=known_json_calls),))


def _family(has: Callable[[str], bool]) -> Family | None:
    return next((family for family in FAMILIES if any(map(has, family.signs))), None)


def _thoughts(has: Callable[[str], bool]) -> ThoughtForm | None:
    return next((form for form in THOUGHTS if any(map(has, (*form.opens, *form.closes)))), None)

"""Calls in tags: ``<function=f><parameter=a>…``, DeepSeek's and FunctionGemma's.

Arguments become JSON. Text in ``<parameter=…>`` is a string or a value of another type, by the parameter's schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from sage_infer.sdk.answers.json_calls import copy_value, json_calls
from sage_infer.sdk.answers.python_calls import as_json
from sage_infer.sdk.answers.sink import CallSink
from sage_infer.sdk.answers.source import (
    LONGEST_NAME,
    NAME,
    Put,
    Scan,
    Source,
    char,
    expect,
    skip_space,
    take,
)
from sage_infer.sdk.answers.thoughts import beginning_of

__all__ = ["deepseek_calls", "function_gemma_call", "function_tag", "json_or_function_tags"]

_VALUE_ENDS = ("</parameter>", "<parameter=", "</function>")
_VALUE_END = re.compile(r"(?:\r?\n)?(?:</parameter>|(?=<parameter=|</function>))")
_PARAMETER = re.compile(r"[^<>\n]*")
_LONGEST_PARAMETER = 1000
_FENCE = re.compile(r"[`\w]*")
_LONGEST_FENCE = 20
_BARE = re.compile(r"[^,:{}\[\]<]*")
_LONGEST_BARE = 1000
_WORDS = {"True": "true", "False": "false", "None": "null"}
_SEPARATOR = "<｜tool▁sep｜>"
_ESCAPE = "<escape>"


def json_or_function_tags(source: Source, sink: CallSink) -> Scan[bool]:
    """Parse calls as JSON, possibly in a code block, or in tags, and return whether there was one."""
    first = yield from skip_space(source)
    if first == "<":
        if not (yield from expect(source, "<function=")):
            return False
        return (yield from _function(source, sink, known_only=False))
    if first == "`":
        yield from take(source, _FENCE, _LONGEST_FENCE)
    if not (yield from json_calls(source, sink)):
        return False
    if first == "`" and (yield from skip_space(source)) == "`":
        yield from take(source, _FENCE, _LONGEST_FENCE)
    return True


def function_tag(source: Source, sink: CallSink) -> Scan[bool]:
    """Parse a call of a known function after ``<function=``, and return whether it was one."""
    return (yield from _function(source, sink, known_only=True))


def _function(source: Source, sink: CallSink, *, known_only: bool) -> Scan[bool]:
    name = yield from take(source, NAME, LONGEST_NAME)
    if not (yield from expect(source, ">")) or not name or (known_only and name not in sink.parameters):
        return False
    first = yield from skip_space(source)
    if first == "":
        sink.call(name, "")
        return True
    if first == "{":
        sink.begin(name)
        yield from copy_value(source, sink.put)
        yield from _end(source, "</function>")
        return True
    is_begun = False
    while (yield from skip_space(source)) == "<":
        if len(source.text) - source.at < 2 and not source.closed:
            yield
            continue
        mark = "</function>" if source.text.startswith("</", source.at) else "<parameter="
        if not (yield from expect(source, mark)):
            break
        if not is_begun:
            sink.begin(name)
            sink.put("{")
        if mark == "</function>":
            sink.put("}")
            return True
        key = yield from take(source, _PARAMETER, _LONGEST_PARAMETER)
        if not (yield from expect(source, ">")):
            is_begun = True
            break
        written = f"{', ' if is_begun else ''}{json.dumps(key, ensure_ascii=False)}: "
        is_begun = True
        schema = sink.parameters.get(name, {}).get(key)
        if not (yield from _parameter(source, sink, written, _kinds(schema))):
            return True
    if is_begun and not source.at_end:
        sink.put("}")
    elif source.at_end and not is_begun:
        sink.call(name, "")
    return is_begun or source.at_end


def _parameter(source: Source, sink: CallSink, key: str, kinds: frozenset[str]) -> Scan[bool]:
    """Read a value and put it with its key, and return whether it is whole."""
    if (yield from char(source)) == "\r":
        source.at += 1
    if (yield from char(source)) == "\n":
        source.at += 1
    if kinds == {"string"}:
        sink.put(key + '"')
        is_whole = yield from _copy_text(source, lambda text: sink.put(_inside(text)))
        if is_whole:
            sink.put('"')
        return is_whole
    parts: list[str] = []
    is_whole = yield from _copy_text(source, parts.append)
    if is_whole:
        sink.put(key + _typed("".join(parts), kinds))
    return is_whole


def _copy_text(source: Source, put: Put) -> Scan[bool]:
    """Copy text up to the end of a parameter, and return whether that came."""
    while True:
        if end := _VALUE_END.search(source.text, source.at):
            put(source.text[source.at : end.start()])
            source.at = end.end()
            return True
        rest = source.text[source.at :]
        rest = rest[: len(rest) - beginning_of(_VALUE_ENDS, rest)]
        rest = rest.removesuffix("\n").removesuffix("\r")  # it may belong to the mark
        if rest:
            put(rest)
            source.at += len(rest)
        if source.closed:
            source.at = len(source.text)
            return False
        yield


def _kinds(schema: object) -> frozenset[str]:
    """JSON types that a parameter's schema allows, as far as it says."""
    if not isinstance(schema, Mapping):
        return frozenset()
    found: set[str] = set()
    stated = schema.get("type")
    found.update(kind for kind in (stated if isinstance(stated, list) else [stated]) if isinstance(kind, str))
    values = [*_listed(schema, "enum"), *([schema["const"]] if "const" in schema else [])]
    found.update(map(_kind, values))
    for key in ("anyOf", "oneOf", "allOf"):
        for inner in _listed(schema, key):
            if isinstance(inner, Mapping):  # one level: references and nesting are left to the text
                stated = inner.get("type")
                found.update(
                    k for k in (stated if isinstance(stated, list) else [stated]) if isinstance(k, str)
                )
    return frozenset(found)


def _listed(schema: Mapping[str, Any], key: str) -> list[Any]:
    value = schema.get(key)
    return value if isinstance(value, list) else []


def _kind(value: object) -> str:
    kinds = (("boolean", bool), ("string", str), ("integer", int), ("number", float), ("array", list))
    if value is None:
        return "null"
    return next((name for name, kind in kinds if isinstance(value, kind)), "object")


def _typed(text: str, kinds: frozenset[str]) -> str:
    """A value as JSON: as it was written if that is JSON of one of ``kinds``, which may be empty, else a string."""
    written = text.strip()
    written = _WORDS.get(written, written)
    try:
        kind = _kind(json.loads(written, parse_constant=_refuse))
    except (ValueError, RecursionError):
        if kinds and "string" not in kinds:
            return as_json(written)
    else:
        allowed = kinds | {"integer"} if "number" in kinds else kinds
        if kind in allowed or ("string" not in kinds and (kinds or kind != "string")):
            return written
    return json.dumps(text, ensure_ascii=False)


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _inside(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _end(source: Source, mark: str) -> Scan[None]:
    """Skip a mark, if it is next after white space."""
    yield from skip_space(source)
    yield from expect(source, mark)


def deepseek_calls(source: Source, sink: CallSink) -> Scan[bool]:
    """Parse calls, and return whether there was one.

    Each is ``function<｜tool▁sep｜>f`` and a code block, or the newer ``f<｜tool▁sep｜>{…}``, between
    ``<｜tool▁call▁begin｜>`` and ``<｜tool▁call▁end｜>``.
    """
    is_any = False
    while True:
        yield from skip_space(source)
        begins = yield from expect(source, "<｜tool▁call▁begin｜>")
        if not begins or not (yield from _deepseek_call(source, sink)):
            if is_any and source.at_end:
                source.mark = None
            if is_any:
                source.back()
            return is_any
        yield from _end(source, "<｜tool▁call▁end｜>")
        is_any = True
        source.mark = source.at


def _deepseek_call(source: Source, sink: CallSink) -> Scan[bool]:
    name = yield from take(source, NAME, LONGEST_NAME)
    if not (yield from expect(source, _SEPARATOR)):
        return False
    first = yield from skip_space(source)
    if name == "function" and first != "{":
        name = yield from take(source, NAME, LONGEST_NAME)
        if source.at_end:  # it may be longer
            return False
        first = yield from skip_space(source)
    is_block = first == "`"
    if is_block:
        yield from take(source, _FENCE, _LONGEST_FENCE)
        first = yield from skip_space(source)
    if not name or first not in ("", "{"):
        return False
    if first == "":
        sink.call(name, "")
        return True
    sink.begin(name)
    yield from copy_value(source, sink.put)
    if is_block:
        yield from _end(source, "```")
    return True


def function_gemma_call(source: Source, sink: CallSink) -> Scan[bool]:
    """Parse ``call:f{a:<escape>text<escape>,b:1}``, and return whether it was a call."""
    if not (yield from expect(source, "call:")):
        return False
    name = yield from take(source, NAME, LONGEST_NAME)
    if source.at_end:  # it may be longer
        return False
    first = yield from skip_space(source)
    if not name or first not in ("", "{"):
        return False
    sink.begin(name)
    if first:
        yield from _copy_escaped(source, sink.put)
    return True


def _copy_escaped(source: Source, put: Put) -> Scan[None]:
    """Copy an object whose strings are between ``<escape>`` and whose keys have no quotes, as JSON."""
    open_brackets: list[str] = []
    is_key = False
    while True:
        found = yield from skip_space(source)
        if found == "":
            return
        if found in "{[":
            put(found)
            open_brackets.append("}" if found == "{" else "]")
        elif found in "}]":
            put(open_brackets.pop())
        elif found == "<":
            if not (yield from expect(source, _ESCAPE)):
                return
            if not (yield from _copy_string(source, put)):
                return
            continue
        elif found in ",:":
            put(found + " ")
        else:
            word = yield from take(source, _BARE, _LONGEST_BARE)
            if source.at_end:
                return
            put(json.dumps(word.strip(), ensure_ascii=False) if is_key else as_json(word.strip()))
            continue
        source.at += 1
        if not open_brackets:
            return
        is_key = found == "{" or (found == "," and open_brackets[-1] == "}")


def _copy_string(source: Source, put: Put) -> Scan[bool]:
    """Copy text up to ``<escape>`` as a JSON string, and return whether that came."""
    put('"')
    while True:
        end = source.text.find(_ESCAPE, source.at)
        rest = source.text[source.at :] if end < 0 else source.text[source.at : end]
        if end < 0:
            rest = rest[: len(rest) - beginning_of((_ESCAPE,), rest)]
        put(_inside(rest))
        source.at += len(rest)
        if end >= 0:
            put('"')
            source.at += len(_ESCAPE)
            return True
        if source.closed:
            source.at = len(source.text)
            return False
        yield

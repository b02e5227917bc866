"""Calls as Python: ``[weather(city="Paris"), now()]``, or statements.

Only calls of known functions are parsed. Literals in their arguments are converted to JSON (numbers unchanged), and
other expressions become strings. Positional arguments get the names of the parameters, in order.
"""

from __future__ import annotations

import ast
import json
import re

from sage_infer.sdk.answers.sink import CallSink
from sage_infer.sdk.answers.source import LONGEST_NAME, NAME, Scan, Source, char, skip_space, take

__all__ = ["as_json", "python_list", "python_statements"]

_KEYWORD = re.compile(r"([A-Za-z_]\w*)\s*=(?!=)")
_KEYWORD_BEGINS = re.compile(r"[A-Za-z_]\w*\s*=?\Z")
_PLAIN = re.compile(r"[^\"'()\[\]{},]*")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?")


def python_list(source: Source, sink: CallSink) -> Scan[bool]:
    """Parse a list of calls and return whether there was one."""
    if (yield from skip_space(source)) != "[":
        return False
    source.at += 1
    return (yield from _calls(source, sink, separator=",", end="]"))


def python_statements(source: Source, sink: CallSink) -> Scan[bool]:
    """Parse call statements up to the first other statement, and return whether there was one."""
    return (yield from _calls(source, sink, separator=";", end=""))


def _calls(source: Source, sink: CallSink, *, separator: str, end: str) -> Scan[bool]:
    yield from skip_space(source)
    if not (yield from _call(source, sink)):
        return False
    while True:
        source.mark = source.at
        found = yield from skip_space(source)
        if end and found == end:
            source.at += 1
            source.mark = None
            return True
        if found == separator:
            source.at += 1
            yield from skip_space(source)
        if (found == separator or not end) and (yield from _call(source, sink)):
            continue
        if source.at_end and end:
            source.mark = None
        source.back()
        return True


def _call(source: Source, sink: CallSink) -> Scan[bool]:
    name = yield from take(source, NAME, LONGEST_NAME)
    if name not in sink.parameters or (yield from char(source)) != "(":
        return False
    source.at += 1
    sink.begin(name)
    sink.put("{")
    parameters = tuple(sink.parameters[name])
    count = 0
    while True:
        found_char = yield from skip_space(source)
        if found_char == ")":
            source.at += 1
            sink.put("}")
            return True
        if found_char == "":
            return True
        key = yield from _keyword(source)
        if key is None:
            key = parameters[count] if count < len(parameters) else f"arg{count}"
        text, is_whole = yield from _expression(source)
        value = as_json(text.strip()) if is_whole else _beginning_as_json(text.strip())
        if value:
            sink.put(f"{', ' if count else ''}{json.dumps(key)}: {value}")
        if not is_whole:
            return True
        count += 1
        if (yield from char(source)) == ",":
            source.at += 1


def _keyword(source: Source) -> Scan[str | None]:
    """The name of ``name=``; None where there is none."""
    while True:
        if found := _KEYWORD.match(source.text, source.at):
            if found.end() == len(source.text) and not source.closed:  # it may become ==
                yield
                continue
            source.at = found.end()
            return found[1]
        if source.closed or not _KEYWORD_BEGINS.match(source.text, source.at):
            return None
        yield


def _expression(source: Source) -> Scan[tuple[str, bool]]:
    """Text up to the next comma or bracket that does not belong to it, and whether that came."""
    parts: list[str] = []
    depth = 0
    while True:
        plain = _PLAIN.match(source.text, source.at)
        assert plain is not None
        parts.append(plain[0])
        source.at = plain.end()
        found = yield from char(source)
        if found == "":
            return "".join(parts), False
        if found in "\"'":
            parts.append((yield from _quoted(source, found)))
            continue
        if depth == 0 and found in ",)]}":
            if found in "]}":  # not balanced: it cannot end the arguments
                parts.append(found)
                source.at += 1
                continue
            return "".join(parts), True
        depth += 1 if found in "([{" else -1 if found in ")]}" else 0
        parts.append(found)
        source.at += 1


def _quoted(source: Source, quote: str) -> Scan[str]:
    parts = [quote]
    source.at += 1
    while True:
        found = yield from char(source)
        if found == "":
            return "".join(parts)
        source.at += 1
        parts.append(found)
        if found == quote:
            return "".join(parts)
        if found == "\\":
            escaped = yield from char(source)
            parts.append(escaped)
            source.at += len(escaped)


def as_json(text: str) -> str:
    """A Python or JSON literal as JSON, numbers unchanged; other text as a string."""
    if _NUMBER.fullmatch(text):
        return text
    literal = text.replace("\n", "\\n") if text[:1] in ("'", '"') else text
    for read in (ast.literal_eval, json.loads):
        try:
            return json.dumps(read(literal), ensure_ascii=False, allow_nan=False)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
    return json.dumps(text, ensure_ascii=False)


def _beginning_as_json(text: str) -> str:
    """The beginning of a string, without its closing quote; nothing of other values."""
    if text[:1] not in ("'", '"'):
        return ""
    for left_out in range(min(len(text), 12)):  # an escape that is cut off
        part = text[: len(text) - left_out].replace("\n", "\\n")
        try:
            value = ast.literal_eval(part + text[0])
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return json.dumps(value, ensure_ascii=False)[:-1] if isinstance(value, str) else ""
    return ""

"""Tool calls in a model's text: formats of model families, and an incremental parser.

Each family has its own format, defined by its chat template. The parser emits content that cannot be part of a call,
holds back a possible start of a call, and emits a call once it is complete. Text that only resembles a call
is emitted as content: no character is lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from attrs import field, frozen
from sage_infer.contracts import ToolCall

__all__ = ["FORMS", "Form", "ToolCallReader", "call_as_dict", "whole_call"]

Parse = Callable[[str], tuple[list[ToolCall], int]]
"""Parse the text after the opening mark; returns calls and their length, ``([], 0)`` if they are incomplete.

Raises ``ValueError`` if it cannot become a call."""

_decoder = json.JSONDecoder(parse_int=str, parse_float=str)  # values are checked and kept as written
_NOT_JSON = re.compile(r'("(?:[^"\\]|\\.)*")|-?Infinity|NaN', re.DOTALL)
_SPACE = " \t\r\n"


@frozen(kw_only=True)
class Form:
    """The call format of one family.

    Attributes:
        name: the family.
        opens: opening mark before the calls.
        parse: parses the text after it.
        only_first: whether it is recognized only at the start of an answer (bare JSON would match everywhere).
    """

    name: str
    opens: str
    parse: Parse = field(repr=False)
    only_first: bool = False


def _json_at(text: str, start: int) -> tuple[Any, int] | None:
    """A JSON value and its end; None if it is incomplete.

    Raises:
        ValueError: no further text can complete it.
    """
    while start < len(text) and text[start] in _SPACE:
        start += 1
    if start == len(text):
        return None
    if text[start] not in "{[":
        raise ValueError("calls are JSON objects")
    inside = text[start + 1 :].lstrip(_SPACE)
    if text[start] == "{" and inside and inside[0] not in '"}':
        raise ValueError("no JSON object")
    try:
        return _decoder.raw_decode(text, start)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except json.JSONDecodeError as error:
        if _may_go_on(text, start):
            return None
        raise ValueError("no JSON") from error


def _may_go_on(text: str, start: int) -> bool:
    """Whether brackets opened from ``start`` on are unclosed at the end of the text."""
    depth, in_string, escaped = 0, False, False
    for char in text[start:]:
        if in_string:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                in_string = False
        elif char == '"':
            in_string = True
        elif char in "{[":
            depth += 1
        elif char in "}]":
            depth -= 1
            if depth == 0:
                return False
    return True


def _calls_at(text: str, start: int) -> tuple[list[ToolCall], int] | None:
    """Calls from ``{"name": …, "arguments" or "parameters": …}``, one or a list, and their end; None if incomplete.

    Raises:
        ValueError: no further text can make it calls.
    """
    found = _json_at(text, start)
    if found is None:
        return None
    while text[start] in _SPACE:
        start += 1
    if text[start] == "{":
        return [_call(text, start)], found[1]
    calls = []
    start = _after_space(text, start + 1)
    while text[start] != "]":
        calls.append(_call(text, start))
        start = _after_space(text, _decoder.raw_decode(text, start)[1])
        if text[start] == ",":
            start = _after_space(text, start + 1)
    return calls, found[1]


def _call(text: str, start: int) -> ToolCall:
    """The call in the complete object at ``start``."""
    if text[start] != "{":
        raise ValueError("a call is an object")
    members: dict[str, tuple[Any, str]] = {}
    place = _after_space(text, start + 1)
    while text[place] != "}":
        key, place = _decoder.raw_decode(text, place)
        place = _after_space(text, _after_space(text, place) + 1)
        value, end = _decoder.raw_decode(text, place)
        members[key] = value, text[place:end]
        place = _after_space(text, end)
        if text[place] == ",":
            place = _after_space(text, place + 1)
    name = members.get("name", (None, ""))[0]
    if not isinstance(name, str):
        raise ValueError("a call is an object with a name")
    value, written = members.get("arguments", members.get("parameters", ({}, "{}")))
    return ToolCall(name=name, arguments=value if isinstance(value, str) else _as_json(written))


def _after_space(text: str, start: int) -> int:
    while text[start] in _SPACE:
        start += 1
    return start


def _as_json(written: str) -> str:
    """Arguments as the model wrote them, except that ``NaN`` and ``Infinity``, which are not JSON, become null."""
    return _NOT_JSON.sub(lambda match: match[1] or "null", written)


def whole_call(text: str) -> ToolCall | None:
    """The call, if the whole text is one; otherwise None."""
    try:
        found = _calls_at(text, 0)
    except ValueError:
        return None
    return found[0][0] if found is not None and len(found[0]) == 1 and not text[found[1] :].strip() else None


def _hermes(text: str) -> tuple[list[ToolCall], int]:
    """``<tool_call>{…}</tool_call>``: the JSON ends the call, with or without its closing mark."""
    found = _calls_at(text, 0)
    if found is None:
        return [], 0
    calls, end = found
    closing = "</tool_call>"
    rest = text[end:].lstrip(_SPACE)
    if closing.startswith(rest) and rest != closing:
        raise _Incomplete(calls, len(text))
    if rest.startswith(closing):
        end = text.index(closing, end) + len(closing)
    return calls, end


def _mistral(text: str) -> tuple[list[ToolCall], int]:
    """``[TOOL_CALLS][{…}, …]``, and the later ``[TOOL_CALLS]name[ARGS]{…}``."""
    stripped = text.lstrip(_SPACE)
    if not stripped:
        return [], 0
    if stripped[0] in "[{":
        return _calls_at(text, 0) or ([], 0)
    brace = text.find("{")
    if brace < 0:
        if "\n" in stripped or len(stripped) > 200:
            raise ValueError("no arguments")
        return [], 0
    name = text[:brace].partition("[CALL_ID]")[0].removesuffix("[ARGS]").strip()
    if not name or any(c in _SPACE for c in name):
        raise ValueError("a function's name has no spaces")
    found = _json_at(text, brace)
    if found is None:
        return [], 0
    return [ToolCall(name=name, arguments=_as_json(text[brace : found[1]]))], found[1]


def _llama(text: str) -> tuple[list[ToolCall], int]:
    """``{"name": …, "parameters": {…}}``, several with ``;`` between them, or a list."""
    calls: list[ToolCall] = []
    end = 0
    while True:
        found = _calls_at(text, end)
        if found is None:
            return [], 0
        calls += found[0]
        end = found[1]
        rest = text[end:].lstrip(_SPACE)
        if not rest.startswith(";"):
            if not rest:
                raise _Incomplete(calls, len(text))
            return calls, end
        end = text.index(";", end) + 1


class _Incomplete(Exception):
    """Calls are complete, but more of them may follow."""

    def __init__(self, calls: list[ToolCall], end: int) -> None:
        super().__init__()
        self.calls, self.end = calls, end


FORMS: tuple[Form, ...] = (
    Form(name="Hermes and Qwen", opens="<tool_call>", parse=_hermes),
    Form(name="Mistral", opens="[TOOL_CALLS]", parse=_mistral),
    Form(name="Llama 3", opens="<|python_tag|>", parse=_llama),
    Form(name="Llama 3 without its mark", opens="{", parse=lambda text: _llama("{" + text), only_first=True),
)


class ToolCallReader:
    """Parses one answer incrementally. ``names`` are the known functions: in bare JSON only these are calls.

    Trailing white space is held back: before a call, or after the last one, it belongs to
    the format and is dropped.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._held = ""
        self._space = ""
        self._form: Form | None = None
        self._begun = False  # content or a call was emitted
        self._found = False
        self._open_json = False  # held back: JSON that needs a closing bracket

    def feed(self, text: str) -> tuple[str, list[ToolCall]]:
        """Process the next piece of text; returns definite content and complete calls."""
        self._held += text
        if self._open_json and "}" not in text and "]" not in text:
            return "", []
        return self._read(at_end=False)

    def end(self) -> tuple[str, list[ToolCall]]:
        """The text held back."""
        content, calls = self._read(at_end=True)
        return content + ("" if self._found else self._space), calls

    def _read(self, *, at_end: bool) -> tuple[str, list[ToolCall]]:
        content: list[str] = []
        calls: list[ToolCall] = []
        more = True
        while more and (self._held or (self._form is not None and at_end)):
            if self._form is None:
                more = self._open(content, at_end)
            else:
                more = self._parse(self._form, content, calls, at_end)
        return "".join(content), calls

    def _say(self, text: str, content: list[str]) -> None:
        text = self._space + text
        said = text.rstrip(_SPACE)
        self._space = text[len(said) :]
        if said:
            self._begun = True
            content.append(said)

    def _open(self, content: list[str], at_end: bool) -> bool:
        """Emit the text before the next opening mark; False if more text is needed."""
        text = self._held
        best: tuple[int, Form] | None = None
        for form in FORMS:
            place = self._place(form, text)
            if place is not None and (best is None or place < best[0]):
                best = place, form
        if best is not None:
            place, self._form = best
            self._say(text[:place], content)
            self._held = text[place + len(self._form.opens) :]
            return True
        keep = 0 if at_end else _beginning_of_a_mark(text)
        self._say(text[: len(text) - keep], content)
        self._held = text[len(text) - keep :]
        return False

    def _place(self, form: Form, text: str) -> int | None:
        if not form.only_first:
            place = text.find(form.opens)
            return None if place < 0 else place
        start = len(text) - len(text.lstrip(_SPACE))
        return start if not self._begun and text.startswith(form.opens, start) else None

    def _parse(self, form: Form, content: list[str], calls: list[ToolCall], at_end: bool) -> bool:
        """Parse calls after a mark; False if more text is needed."""
        try:
            found, end = form.parse(self._held)
        except _Incomplete as incomplete:
            self._open_json = False
            if not at_end:
                return False
            found, end = incomplete.calls, incomplete.end
        except ValueError:
            found, end = [], -1
        if form.only_first and not all(call.name in self._names for call in found):
            found, end = [], -1
        self._open_json = not found and end == 0 and not at_end
        if self._open_json:
            return False
        self._form = None
        if not found:  # not a call
            self._say(form.opens, content)
            return True
        calls += found
        self._begun = self._found = True
        self._space = ""
        self._held = self._held[end:]
        return True


def _beginning_of_a_mark(text: str) -> int:
    """Number of characters at the end of ``text`` that may start an opening mark."""
    marks = [form.opens for form in FORMS if not form.only_first]
    longest = max(map(len, marks)) - 1
    for length in range(min(longest, len(text)), 0, -1):
        tail = text[-length:]
        if any(mark.startswith(tail) for mark in marks):
            return length
    return 0


def call_as_dict(call: ToolCall, call_id: str) -> dict[str, Any]:
    """A call in OpenAI's format. Lone surrogates, which UTF-8 cannot encode, are escaped."""
    name, arguments = (
        text.encode("utf-8", "backslashreplace").decode() for text in (call.name, call.arguments)
    )
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}

"""Calls as JSON: ``{"name": …, "arguments" or "parameters": …}``, one, several, or a list. ``{"function": …}`` with a
name or an object of these keys is taken, too.

Arguments are copied unchanged as they arrive; only ``NaN`` and ``Infinity``, which are not JSON, become null. A call is
certain when its name is known and its arguments start; earlier text is held back.
"""

from __future__ import annotations

import json
import re

from sage_infer.sdk.answers.sink import CallSink
from sage_infer.sdk.answers.source import Put, Scan, Source, char, skip_space

__all__ = ["copy_value", "json_calls", "known_json_calls", "mistral_calls"]

_IN_STRING = re.compile(r'[^"\\]*')
_OUTSIDE = re.compile(r'[^"{}\[\]NI-]*')
_SCALAR = re.compile(r"[-+.\w]*")
_NOT_JSON = ("NaN", "Infinity", "-Infinity")
_FIRST_KEYS = ("name", "type", "id", "function", "arguments", "parameters")
_MISTRAL = re.compile(r"([\w.-]{1,64})(?:\[CALL_ID\][\w-]*)?(?:\[ARGS\])?\s*")
_TWO_WORDS = re.compile(r"\S\s+\S")
_LONGEST_HEAD = 200


def json_calls(source: Source, sink: CallSink) -> Scan[bool]:
    """Parse calls with any name and return whether there was one. A call truncated before its arguments has none."""
    return (yield from _calls(source, sink, known_only=False))


def known_json_calls(source: Source, sink: CallSink) -> Scan[bool]:
    """Parse calls of known functions only, for text that may be other JSON."""
    return (yield from _calls(source, sink, known_only=True))


def mistral_calls(source: Source, sink: CallSink) -> Scan[bool]:
    """Parse a list of calls, or the newer format ``name[ARGS]{…}``, optionally with ``[CALL_ID]…`` after the name."""
    first = yield from skip_space(source)
    if first and first in "[{":
        return (yield from _calls(source, sink, known_only=False))
    while (brace := source.text.find("{", source.at)) < 0:
        head = source.text[source.at :]
        if source.closed or "\n" in head or len(head) > _LONGEST_HEAD or _TWO_WORDS.search(head):
            break
        yield
    head = source.text[source.at : brace] if brace >= 0 else source.text[source.at :]
    found = _MISTRAL.fullmatch(head)
    if found is None or (brace < 0 and "[ARGS]" not in head):
        return False
    source.at += len(head)
    sink.begin(found[1])
    if brace >= 0:
        yield from copy_value(source, sink.put)
    return True


def _calls(source: Source, sink: CallSink, *, known_only: bool) -> Scan[bool]:
    first = yield from skip_space(source)
    if first == "[":
        source.at += 1
        first = yield from skip_space(source)
        is_list = True
    else:
        is_list = False
    if first != "{" or not (yield from _call(source, sink, known_only)):
        return False
    while True:
        source.mark = source.at
        found = yield from skip_space(source)
        if found in ((",", "]") if is_list else (",", ";")):
            source.at += 1
            if found == "]":
                source.mark = None
                return True
            found = yield from skip_space(source)
        if found == "{" and (yield from _call(source, sink, known_only)):
            continue
        if source.at_end:  # the beginning of a further call
            source.mark = None
        source.back()
        return True


def _call(source: Source, sink: CallSink, known_only: bool, *, is_inner: bool = False) -> Scan[bool]:
    """Parse one object and return whether it was a call. ``is_inner``: it is the value of ``function``."""
    name: str | None = None
    early: list[str] | None = None  # arguments that precede the name
    is_begun = False
    is_first = True
    source.at += 1
    after = yield from skip_space(source)
    while after == '"':
        written, is_whole = yield from _string(source)
        key = _text_of(written) if is_whole else None
        if key is None or (known_only and is_first and key not in _FIRST_KEYS):
            break
        is_first = False
        if (yield from skip_space(source)) != ":":
            break
        source.at += 1
        value = yield from skip_space(source)
        if key == "function" and value == "{" and name is None and not is_begun and not is_inner:
            if not (yield from _call(source, sink, known_only, is_inner=True)):
                return False
            is_begun = True
        elif (key == "name" or (key == "function" and value == '"')) and name is None:
            written, is_whole = (yield from _string(source)) if value == '"' else ("", False)
            name = _text_of(written) if is_whole else None
            if name is None or (known_only and name not in sink.parameters):
                return False
        elif key in ("arguments", "parameters") and not is_begun and early is None:
            if value == "" or value not in '{["n':
                break
            if name is not None:
                sink.begin(name)
                is_begun = True
            else:
                early = []
            if not (yield from _copy_arguments(source, sink.put if early is None else early.append)):
                break
        elif not (yield from copy_value(source, lambda _: None)):
            break
        after = yield from skip_space(source)
        if after == "}":
            source.at += 1
            if not is_begun and name is not None:
                sink.call(name, "{}" if early is None else "".join(early))
            return is_begun or name is not None
        if after != ",":
            break
        source.at += 1
        after = yield from skip_space(source)
    if not is_begun and name is not None and not known_only and source.at_end:
        sink.call(name, "".join(early or ()))
        return True
    return is_begun


def _copy_arguments(source: Source, put: Put) -> Scan[bool]:
    """Copy arguments; a string holds their JSON text."""
    if (yield from char(source)) != '"':
        return (yield from copy_value(source, put))
    written, is_whole = yield from _string(source)
    text = _text_of(written if is_whole else _closed(written))
    put(written if text is None else text)
    return is_whole


def copy_value(source: Source, put: Put) -> Scan[bool]:
    """Copy a JSON value as it arrives and return whether it is complete. Only brackets are checked."""
    first = yield from skip_space(source)
    if first == "" or first not in '{["':
        return (yield from _copy_scalar(source, put))
    depth = 0
    while True:
        plain = _OUTSIDE.match(source.text, source.at)
        assert plain is not None
        if plain[0]:
            put(plain[0])
            source.at = plain.end()
        found = yield from char(source)
        if found == "":
            return False
        if found == '"':
            if not (yield from _copy_string(source, put)):
                return False
        elif found in "NI-":
            yield from _copy_word(source, put)
        elif found in "{}[]":
            depth += 1 if found in "{[" else -1
            put(found)
            source.at += 1
        if depth <= 0:
            return True


def _copy_scalar(source: Source, put: Put) -> Scan[bool]:
    is_empty = True
    while True:
        found = _SCALAR.match(source.text, source.at)
        assert found is not None
        if found[0]:
            put(found[0])
            is_empty = False
            source.at = found.end()
        if source.at < len(source.text):
            return not is_empty
        if source.closed:
            return False
        yield


def _copy_word(source: Source, put: Put) -> Scan[None]:
    while True:
        text = source.text[source.at : source.at + len(_NOT_JSON[-1])]
        word = next((word for word in _NOT_JSON if text.startswith(word)), None)
        if word is not None:
            put("null")
            source.at += len(word)
            return
        if source.closed or not any(word.startswith(text) for word in _NOT_JSON):
            put(text[0])
            source.at += 1
            return
        yield


def _copy_string(source: Source, put: Put) -> Scan[bool]:
    """Copy a string with its quotes as it arrives, and return whether it is complete."""
    put('"')
    source.at += 1
    while True:
        plain = _IN_STRING.match(source.text, source.at)
        assert plain is not None
        if plain[0]:
            put(plain[0])
            source.at = plain.end()
        found = yield from char(source)
        if found == "":
            return False
        if found not in '"\\':  # it arrived meanwhile
            continue
        source.at += 1
        if found == '"':
            put(found)
            return True
        escaped = yield from char(source)
        put(found + escaped)
        source.at += len(escaped)


def _string(source: Source) -> Scan[tuple[str, bool]]:
    """A string as written, and whether it is whole."""
    parts: list[str] = []
    is_whole = yield from _copy_string(source, parts.append)
    return "".join(parts), is_whole


def _text_of(written: str) -> str | None:
    """The text of a string; None where it is not valid."""
    try:
        text = json.loads(written, strict=False)
    except ValueError:
        return None
    return text if isinstance(text, str) else None


def _closed(written: str) -> str:
    """The beginning of a string as a string, without an escape that is cut off."""
    return re.sub(r"(?<!\\)((?:\\\\)*)\\(?:u[0-9a-fA-F]{0,3})?$", r"\1", written) + '"'

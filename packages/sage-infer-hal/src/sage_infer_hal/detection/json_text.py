"""Strict JSON: each value is checked as it is read, and errors name the path."""

from __future__ import annotations

import json
import re
from typing import Any

from sage_infer_hal.detection.text import ToolText

__all__ = ["integer", "is_json", "items", "load"]

_START = re.compile(r"\s*(\{|\[\s*(\{|$))")


def is_json(text: ToolText) -> bool:
    """Whether a line starts an object or a list of objects; a tool may print warnings before it."""
    return any(_START.match(line.text) for line in text.lines)


def load(text: ToolText) -> Any:
    """The document.

    Raises:
        ToolOutputError: it is truncated, not JSON, or repeats a key in one object.
    """
    lines = {line.number: line.text for line in text.lines}
    start = next((line.number for line in text.lines if _START.match(line.text)), 1)
    content = "\n".join(lines.get(number, "") for number in range(start, max(lines, default=0) + 1))
    try:
        return json.loads(content, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        where = error.lineno + start - 1
        line = next((line for line in text.lines if line.number == where), None)
        raise text.error(line, f"JSON ({error.msg})") from error
    except _TwiceError as error:
        raise text.error(None, f"the key {error} is repeated in one object") from error
    except RecursionError as error:
        raise text.error(None, "it is nested too deeply") from error


class _TwiceError(ValueError):
    pass


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise _TwiceError(repr(key))
    return dict(pairs)


def items(text: ToolText, value: Any, what: str, *, count: int | None = None) -> list[Any]:
    """``value`` as a list, of ``count`` members if that is known."""
    if not isinstance(value, list) or count not in (None, len(value)):
        size = "" if count is None else f" of {count}"
        raise text.error(None, f"{what} must be a list{size}")
    return value


def integer(text: ToolText, value: Any, what: str) -> int:
    """``value`` as a non-negative integer; a string of digits is accepted."""
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise text.error(None, f"{what} must be a whole number, not {str(value)[:40]!r}")
    return value

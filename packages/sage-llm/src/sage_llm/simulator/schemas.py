"""Schemas of published traces, and what their rows mean.

A schema is recognized by the columns of its first line (CSV) or by the fields of its first object (JSON lines).
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, NamedTuple

from attrs import frozen

__all__ = ["SCHEMAS", "Row", "RowError", "TraceSchema", "recognize"]


class RowError(ValueError):
    """A row is not valid; the message says what was expected."""


class Row(NamedTuple):
    """One request of a trace.

    Attributes:
        at: time of its arrival in seconds.
        prompt_tokens: tokens of its prompt, at least 1.
        output_tokens: tokens of its output, at least 1.
        keys: ids of the prompt's full blocks; equal ids in equal places mean equal prefixes.
        session: conversation that it belongs to; empty if unknown.
    """

    at: float
    prompt_tokens: int
    output_tokens: int
    keys: tuple[int, ...] = ()
    session: str = ""


Parse = Callable[[str], Row | None]


@frozen
class TraceSchema:
    """A schema of trace files.

    Attributes:
        name: its name in messages.
        fields: columns or fields that the first line must have.
        block: tokens per block.
        has_header: whether the first line has the names of columns (CSV); otherwise each line is a JSON object.
        reader: returns a function that parses one line, given the header.
    """

    name: str
    fields: tuple[str, ...]
    block: int
    has_header: bool
    reader: Callable[[str], Parse]

    @property
    def columns(self) -> str:
        return ", ".join(self.fields)


def recognize(line: str) -> TraceSchema | None:
    """Return the schema of a file with this first line; None if none fits."""
    if line.startswith("{"):
        try:
            names = set(_object(line))
        except RowError:
            return None
    else:
        names = set(_cells(line))
    is_json = line.startswith("{")
    return next((s for s in SCHEMAS if s.has_header != is_json and names >= set(s.fields)), None)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line]))]


def _object(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise RowError(f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise RowError("must be a JSON object")
    return found


def _count(value: Any, name: str, at_least: int = 1) -> int:
    try:
        number = float(value) if not isinstance(value, bool) else -1.0
    except (TypeError, ValueError):
        number = -1.0
    if not number.is_integer() or not at_least <= number <= 1e9:
        raise RowError(f"{name} must be a whole number of at least {at_least}, not {value!r}")
    return int(number)


def _time(value: Any, name: str) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else -1.0
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number < 1e15:
        raise RowError(f"{name} must be a time of at least 0, not {value!r}")
    return number


def _keys(value: Any, prompt_tokens: int, block: int) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(key) is int for key in value):
        raise RowError(f"hash_ids must be a list of whole numbers, not {value!r:.60}")
    return tuple(value[: prompt_tokens // block])  # engines reuse full blocks only


def _field(row: dict[str, Any], name: str) -> Any:
    if name not in row:
        raise RowError(f"the field {name!r} is missing")
    return row[name]


def _mooncake(header: str) -> Parse:
    def parse(line: str) -> Row:
        row = _object(line)
        prompt = _count(_field(row, "input_length"), "input_length")
        return Row(
            _time(_field(row, "timestamp"), "timestamp") / 1000.0,
            prompt,
            max(_count(_field(row, "output_length"), "output_length", 0), 1),
            _keys(_field(row, "hash_ids"), prompt, 512),
        )

    return parse


def _bailian(header: str) -> Parse:
    roots: dict[Any, str] = {}

    def parse(line: str) -> Row:
        row = _object(line)
        prompt = _count(_field(row, "input_length"), "input_length")
        chat, parent = _field(row, "chat_id"), _field(row, "parent_chat_id")
        if not isinstance(chat, (int, str)) or not isinstance(parent, (int, str)):
            raise RowError("chat_id and parent_chat_id must be numbers or texts")
        session = roots[chat] = roots.get(parent, str(chat))
        return Row(
            _time(_field(row, "timestamp"), "timestamp"),
            prompt,
            max(_count(_field(row, "output_length"), "output_length", 0), 1),
            _keys(_field(row, "hash_ids"), prompt, 16),
            session,
        )

    return parse


def _csv(header: str, take: Callable[[dict[str, str]], Row | None]) -> Parse:
    names = _cells(header)

    def parse(line: str) -> Row | None:
        cells = _cells(line)
        if len(cells) != len(names):
            raise RowError(f"must have {len(names)} columns ({', '.join(names)}), not {len(cells)}")
        return take(dict(zip(names, cells, strict=True)))

    return parse


def _azure(header: str) -> Parse:
    def take(row: dict[str, str]) -> Row:
        try:
            moment = _moment(row["TIMESTAMP"])
        except ValueError:
            raise RowError(
                f"TIMESTAMP must be a date and time, such as 2023-11-16 18:17:03.97, not {row['TIMESTAMP']!r}"
            ) from None
        at = (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
        prompt = _count(row["ContextTokens"], "ContextTokens")
        return Row(at, prompt, max(_count(row["GeneratedTokens"], "GeneratedTokens", 0), 1))

    return _csv(header, take)


def _moment(text: str) -> datetime:
    if sys.version_info < (3, 11):  # it reads fractions of six digits only, and no Z
        text = re.sub(r"\.(\d+)", lambda found: f".{found[1][:6]:0<6}", text)
        text = re.sub("Z$", "+00:00", text)
    return datetime.fromisoformat(text)


def _burstgpt(header: str) -> Parse:
    def take(row: dict[str, str]) -> Row | None:
        output = _count(row["Response tokens"], "Response tokens", 0)
        if not output:
            return None  # a request that failed
        prompt = _count(row["Request tokens"], "Request tokens")
        return Row(_time(row["Timestamp"], "Timestamp"), prompt, output)

    return _csv(header, take)


SCHEMAS = (
    TraceSchema(
        "Bailian",
        ("chat_id", "parent_chat_id", "timestamp", "input_length", "output_length", "hash_ids"),
        16,
        False,
        _bailian,
    ),
    TraceSchema(
        "Mooncake", ("timestamp", "input_length", "output_length", "hash_ids"), 512, False, _mooncake
    ),
    TraceSchema("Azure", ("TIMESTAMP", "ContextTokens", "GeneratedTokens"), 512, True, _azure),
    TraceSchema("BurstGPT", ("Timestamp", "Request tokens", "Response tokens"), 512, True, _burstgpt),
)
"""Known schemas; of several that fit, the first."""

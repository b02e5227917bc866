"""Traces of requests: their rows, and the reading of trace files.

A trace holds no prompts: lengths, times, and where it has them the ids of equal blocks of prompts. It is read again for
each run, row by row, so that its size does not matter.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from attrs import frozen
from sage_infer.errors import InvalidRequest

from sage_llm.simulator.schemas import SCHEMAS, Row, RowError, TraceSchema, recognize

__all__ = ["Trace", "TraceSummary", "open_trace"]


class TraceSummary(NamedTuple):
    """Sums over a trace.

    Attributes:
        requests: number of requests.
        prompt_tokens: their prompt tokens.
        output_tokens: their output tokens.
        blocks: blocks of their prompts, including partial ones.
        seconds: time from the first to the last request.
        tick_s: smallest time between two requests that do not arrive simultaneously; 0 if all do.
        has_keys: whether blocks of prompts are known, so that prefixes can be reused.
    """

    requests: int
    prompt_tokens: int
    output_tokens: int
    blocks: int
    seconds: float
    tick_s: float
    has_keys: bool


@frozen
class Trace:
    """Requests in the order of their arrival.

    Attributes:
        name: what it is called in reports.
        block: tokens per key.
        rows: yields its rows from the first one on, each time that it is called.
        summary: sums over its rows.
    """

    name: str
    block: int
    rows: Callable[[], Iterator[Row]]
    summary: TraceSummary

    @classmethod
    def of(cls, name: str, block: int, rows: Callable[[], Iterator[Row]]) -> Trace:
        """Return a trace of rows, which are read once for the summary, and kept only if they have to be sorted.

        Raises:
            InvalidRequest: there are no rows.
        """
        summary, is_sorted = _summary(rows(), block)
        if not summary.requests:
            raise InvalidRequest(f"{name}: the trace has no requests")
        if not is_sorted:
            kept = sorted(rows(), key=lambda row: row.at)
            return cls(name, block, lambda: iter(kept), _summary(kept, block)[0])
        return cls(name, block, rows, summary)

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows, with times from 0 on. Simultaneous requests are spread evenly over a tick.

        Traces round their times, some to seconds: without the spread each tick would be a burst.
        """
        start: float | None = None
        group: list[Row] = []
        for row in self.rows():
            if start is None:
                start = row.at
            if group and row.at != group[0].at:
                yield from self._spread(group, start)
                group = []
            group.append(row)
        if start is not None:
            yield from self._spread(group, start)

    def _spread(self, group: list[Row], start: float) -> Iterator[Row]:
        for place, row in enumerate(group):
            yield row._replace(at=row.at - start + self.summary.tick_s * place / len(group))


def _summary(rows: Iterable[Row], block: int) -> tuple[TraceSummary, bool]:
    count = prompt = output = blocks = 0
    first = last = 0.0
    tick, has_keys, is_sorted = float("inf"), False, True
    for row in rows:
        if not count:
            first = last = row.at
        if row.at < last:
            is_sorted = False
        elif row.at > last:
            tick = min(tick, row.at - last)
            last = row.at
        count += 1
        prompt += row.prompt_tokens
        output += row.output_tokens
        blocks += -(-row.prompt_tokens // block)
        has_keys = has_keys or bool(row.keys)
    tick = 0.0 if tick == float("inf") else tick
    return TraceSummary(count, prompt, output, blocks, last - first, tick, has_keys), is_sorted


def open_trace(path: Path) -> Trace:
    """Open a trace file; its schema is recognized by its first line. Files may be compressed by gzip.

    Raises:
        InvalidRequest: there is no such file, its schema is unknown, or a row is not valid; the message has the line.
    """
    schema = _schema_of(path)
    return Trace.of(path.name, schema.block, lambda: _rows(path, schema))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, with their numbers."""
    try:
        with path.open("rb") as file:
            is_packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if is_packed else path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if text:
                    yield number, text
    except UnicodeDecodeError:
        raise InvalidRequest(f"{path} is not a text file; a trace is CSV or JSON lines") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidRequest(f"cannot read the trace {path}: {reason}") from None


def _schema_of(path: Path) -> TraceSchema:
    for _, line in _lines(path):
        schema = recognize(line)
        if schema is not None:
            return schema
        known = "; ".join(f"{schema.name}: {schema.columns}" for schema in SCHEMAS)
        raise InvalidRequest(
            f"{path}, line 1: not a known trace; expected a first line with the columns or fields of {known}"
        )
    raise InvalidRequest(f"{path} is empty")


def _rows(path: Path, schema: TraceSchema) -> Iterator[Row]:
    lines = _lines(path)
    parse = schema.reader(next(lines)[1]) if schema.has_header else schema.reader("")
    for number, line in lines:
        try:
            row = parse(line)
        except RowError as error:
            raise InvalidRequest(f"{path}, line {number}: {error}") from None
        if row is not None:
            yield row

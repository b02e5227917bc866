"""``key : value`` lines in sections delimited by indentation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from attrs import frozen

from sage_infer_hal.detection.text import Line

__all__ = ["Entry", "entries"]

_LINE = re.compile(r"(\s*)([^:\s][^:]*?)\s*(?::\s*(.*?))?\s*")


@frozen
class Entry:
    """One value.

    Attributes:
        path: names of the enclosing sections and its own, joined by ``/``.
        first: whether it is the first in its section. If a section's head is lost, its entries fall into the
            previous section, and none of them is the first there.
    """

    line: Line
    path: str
    value: str
    first: bool


def entries(lines: Iterable[Line]) -> Iterator[Entry]:
    """The values. A line without a value opens a section, which ends at the next line indented no more than it."""
    sections: list[tuple[int, str]] = []
    first = False
    for line in lines:
        match = _LINE.fullmatch(line.text)
        if match is None:
            continue
        indent, name, value = len(match[1].expandtabs()), match[2], match[3] or ""
        while sections and indent <= sections[-1][0]:
            sections.pop()
            first = False
        if value:
            yield Entry(line, "/".join([*(section for _, section in sections), name]), value, first)
            first = False
        else:
            sections.append((indent, name))
            first = True

"""Text that arrives in pieces, and generators that parse it and yield when they need more text."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import TypeVar

__all__ = ["LONGEST_NAME", "NAME", "SPACE", "Put", "Scan", "Source", "char", "expect", "skip_space", "take"]

T = TypeVar("T")

Scan = Generator[None, None, T]
"""Reads from a ``Source``: yields until more text has arrived, and returns its result."""

Put = Callable[[str], object]
"""Takes the next piece of a text."""

SPACE = " \t\r\n"
NAME = re.compile(r"[\w.-]*")  # of a function
LONGEST_NAME = 64
_SPACES = re.compile(r"[ \t\r\n]*")


class Source:
    """Unparsed text, with a position to return to.

    Attributes:
        text: received text that is still needed.
        at: index of the next character.
        mark: index that ``back`` returns to; None if the text before ``at`` is no longer needed.
        closed: no more text follows.
    """

    __slots__ = ("at", "closed", "mark", "text")

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.mark: int | None = None
        self.closed = False

    def feed(self, text: str) -> None:
        """Append a piece, and forget what is settled. It moves ``at`` and ``mark``, so scans keep no other index."""
        settled = self.at if self.mark is None else self.mark
        self.text = self.text[settled:] + text
        self.at -= settled
        self.mark = None if self.mark is None else 0

    @property
    def at_end(self) -> bool:
        return self.closed and self.at >= len(self.text)

    def back(self) -> None:
        """Return to the mark, and remove it."""
        if self.mark is not None:
            self.at, self.mark = self.mark, None


def char(source: Source) -> Scan[str]:
    """Return the next character without consuming it; empty at the end."""
    while source.at >= len(source.text):
        if source.closed:
            return ""
        yield
    return source.text[source.at]


def skip_space(source: Source) -> Scan[str]:
    """Skip white space and return the next character without consuming it; empty at the end."""
    while True:
        found = _SPACES.match(source.text, source.at)
        assert found is not None
        source.at = found.end()
        if source.at < len(source.text):
            return source.text[source.at]
        if source.closed:
            return ""
        yield


def take(source: Source, pattern: re.Pattern[str], most: int) -> Scan[str]:
    """Consume the characters that ``pattern``, a class with ``*``, matches, until they are more than ``most``."""
    taken = ""
    while True:
        found = pattern.match(source.text, source.at)
        assert found is not None
        taken += found[0]
        source.at = found.end()
        if source.at < len(source.text) or source.closed or len(taken) > most:
            return taken
        yield


def expect(source: Source, text: str) -> Scan[bool]:
    """Consume ``text`` and return True if it is next. If the answer ends within it, its beginning is consumed."""
    while True:
        rest = source.text[source.at : source.at + len(text)]
        if rest == text:
            source.at += len(text)
            return True
        if not text.startswith(rest):
            return False
        if source.closed:
            source.at += len(rest)
            return False
        yield

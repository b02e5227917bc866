"""A tool's output as numbered lines, without terminal control sequences; errors name version and line."""

from __future__ import annotations

import re
from collections.abc import Iterator

from attrs import evolve, field, frozen
from sage_infer.errors import ToolOutputError

from sage_infer_hal.detection.log_prefixes import without_log_prefixes
from sage_infer_hal.detection.redaction import redacted
from sage_infer_hal.detection.wrapped import joined_lines

__all__ = ["Line", "ToolText", "bus_address", "is_masked", "mebibytes", "table_cells"]

_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[()*+][0-9A-Za-z]|[=>78]|[@-Z\\-_])"
)
_LINE_END = re.compile(r"\r*\n|\r(?!\r*\n)")  # terminals put \r before each \n, also before that of \r\n
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f\u200b\u2060\ufeff]")
_TRANSLATED = str.maketrans({"\xa0": " ", "\u202f": " ", "│": "|", "┃": "|", "║": "|", "｜": "|", "：": ":"})
_ANNOTATION = re.compile(r"\s*(?:←|⬅|<--+|<==+)(?:\s.*)?$")  # a person's remark at the end of a line
_BUS = re.compile(r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])", re.IGNORECASE)
_FRAME = {"|", "+"}
_CLOSING = ("|", "+", ">", "}", "]", ")", "==", "--")
_SHOWN = 60  # characters of an offending text quoted in a message

UNKNOWN_TEXTS = frozenset({
    "", "-", "--", "na", "n/a", "none", "null", "unknown", "[n/a]", "not supported", "[not supported]", "unavailable",
    "insufficient permissions", "[insufficient permissions]", "requested functionality has been deprecated",
})  # fmt: skip
"""Placeholders that tools print for an unknown value, in lower case."""


@frozen
class Line:
    """One line of output.

    Attributes:
        number: its number in the output, from 1.
        text: the line, stripped.
    """

    number: int
    text: str


@frozen
class ToolText:
    """The output of one call.

    Attributes:
        tool: the tool's name, for messages.
        lines: its non-blank lines, without colours, control characters, foreign line ends, log prefixes and remarks
            after an arrow.
        version: the tool's version as printed; None if it prints none.
        raw: all lines, including blank ones and trailing blanks.
        pattern: the pattern that finds the version.
    """

    tool: str
    lines: tuple[Line, ...] = field(repr=False)
    version: str | None = None
    raw: tuple[str, ...] = field(default=(), repr=False, eq=False)
    pattern: str | None = field(default=None, repr=False, eq=False)

    @classmethod
    def of(cls, text: str, *, tool: str, version: str | None = None) -> ToolText:
        """Clean ``text``; ``version`` is a pattern whose first group is the version."""
        lines_of_log = _plain(_LINE_END.sub("\n", text)).split("\n")
        # Logs in JSON have colours escaped.
        cleaned = [_plain(line) for line in without_log_prefixes(lines_of_log)]
        numbered = enumerate((_ANNOTATION.sub("", line).rstrip() for line in cleaned), start=1)
        lines = tuple(Line(number, line) for number, line in numbered if line.strip())
        match = re.search(version, "\n".join(line.text for line in lines)) if version else None
        return cls(tool, lines, match[1] if match else None, tuple(cleaned), version)

    def unwrapped(self) -> tuple[ToolText, int] | None:
        """The text with the lines that a terminal wrapped joined, and its width; None where none are wrapped."""
        found = joined_lines(self.raw)
        if found is None:
            return None
        return ToolText.of("\n".join(found[0]), tool=self.tool, version=self.pattern), found[1]

    @property
    def source(self) -> str:
        """The tool with its version, as ``HardwareProfile.sources`` names it."""
        return f"{self.tool} {self.version}" if self.version else self.tool

    def error(self, line: Line | None, expected: str) -> ToolOutputError:
        """The error for an unexpected line, or for the whole output if ``line`` is None.

        Serial numbers are redacted.
        """
        expected = redacted(expected)
        where = self.source if self.version else f"{self.tool} (no version shown)"
        if line is None:
            return ToolOutputError(f"{where}: {expected}; {_NEXT}")
        text = redacted(line.text.strip())
        shown = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
        return ToolOutputError(f"{where}, line {line.number}: expected {expected}, got {shown!r}; {_NEXT}")

    def search(self, pattern: str) -> Line | None:
        """The first line that matches the pattern."""
        return next((line for line in self.lines if re.search(pattern, line.text)), None)

    @property
    def may_end_early(self) -> bool:
        """Whether the text ends within a line that nothing closes, so that the line may be cut."""
        last = self.raw[-1].rstrip() if self.raw else ""
        return bool(last) and not last.endswith(_CLOSING)

    def without_last_line(self) -> ToolText:
        """The text up to its last line."""
        return evolve(self, lines=self.lines[:-1], raw=(*self.raw[:-1], ""))

    def rows(self) -> Iterator[tuple[Line, list[str]]]:
        """Lines of tables drawn with ``|``, with their cells; incomplete rows are left out."""
        for line in self.lines:
            cells = table_cells(line.text)
            if cells is not None:
                yield line, cells

    def cells(self, line: Line) -> list[str] | None:
        """Return the cells of a line; None for rules and other lines.

        Raises:
            ToolOutputError: it is half a row or half a rule: the text was cut there, or a terminal wrapped it.
        """
        text = line.text.strip()
        if (text[:1] in _FRAME and text[-1:] not in _FRAME) or (text[-1:] == "|" and text[:1] not in _FRAME):
            raise self.error(
                line, "a row of the table from its first | to its last; this one is cut or wrapped"
            )
        return table_cells(text)


_NEXT = "record it again unedited, or report it with this tool's version"


def table_cells(text: str) -> list[str] | None:
    """The cells of ``| a | b |``; None for rules and other lines."""
    text = text.strip()
    if not (len(text) > 2 and text[0] == text[-1] == "|") or re.fullmatch(r"[|+=\- ]*", text):
        return None
    return [cell.strip() for cell in text[1:-1].split("|")]


def is_masked(text: str) -> bool:
    """Whether the value was redacted before publication (``xxxxx``, ``****``)."""
    return re.search(r"[xX]{2,}|\*{2,}", text) is not None


def bus_address(text: str) -> str | None:
    """``00000000:C1:00.0`` → ``0000:c1:00.0``; None if the text is not a PCI address."""
    match = _BUS.fullmatch(text.strip())
    if match is None:
        return None
    domain, bus, device, function = match.groups()
    return f"{int(domain or '0', 16):04x}:{bus}:{device}.{function}".lower()


def mebibytes(count: int) -> int | None:
    """Bytes of that many MiB (these tools mean MiB by ``MB`` too); None for 0, which means unknown."""
    return count * 1024 * 1024 or None


def _plain(text: str) -> str:
    """The text without colours and control characters, and with usual characters for frames."""
    return _CONTROL.sub("", _ESCAPES.sub("", text).translate(_TRANSLATED))

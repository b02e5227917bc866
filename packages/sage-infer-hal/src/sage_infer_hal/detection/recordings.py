"""Identify which output of which tool a recording is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from attrs import frozen
from sage_infer.errors import SchemaError, ToolOutputError
from sage_infer.schemas import HardwareProfile

from sage_infer_hal.detection.profiles import build_profile
from sage_infer_hal.detection.text import ToolText

__all__ = ["OutputKind", "no_card", "read_recording"]


@frozen(kw_only=True)
class OutputKind:
    """One output of one tool.

    Attributes:
        command: the command that prints it.
        is_this: whether a text is that output, judged by its content, not by its file name.
        read: pure function that reads it; raises ``ToolOutputError`` for text that it does not understand.
    """

    command: str
    is_this: Callable[[ToolText], bool]
    read: Callable[[ToolText], HardwareProfile]


def no_card(pattern: str, *, shorter_than: float = math.inf) -> OutputKind:
    """The message that no card is present: a text of at most a few lines, one of which matches ``pattern``."""

    def read(text: ToolText) -> HardwareProfile:
        line = text.search(pattern)
        return build_profile([], sources=[text.source], notes=[line.text.strip()] if line else [])

    return OutputKind(
        command="a message that no card is present",
        is_this=lambda text: len(text.lines) < shorter_than and text.search(pattern) is not None,
        read=read,
    )


def read_recording(kinds: Sequence[OutputKind], text: ToolText, *, name: str) -> HardwareProfile:
    """Read a recording as the first kind that matches; ``name`` is its file name, for messages.

    Raises:
        ToolOutputError: no kind matches, or the text is malformed.
    """
    known = ", ".join(kind.command for kind in kinds)
    if not text.lines:
        raise ToolOutputError(f"{name}: the recording is empty; expected the output of one of: {known}")
    kind = next((kind for kind in kinds if kind.is_this(text)), None)
    if kind is None:
        first = text.lines[0]
        raise ToolOutputError(
            f"{name}: line {first.number}, {first.text.strip()[:60]!r}, does not start a known output of {text.tool}; "
            f"record one of: {known}"
        )
    try:
        return kind.read(text)
    except SchemaError as error:
        raise ToolOutputError(f"{name}: impossible values in the output of {text.source}: {error}") from error
    except ToolOutputError as error:
        raise ToolOutputError(f"{name}: {error}") from error

"""Identify which output of which tool a recording is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from attrs import evolve, frozen
from sage_infer.errors import SchemaError, ToolOutputError
from sage_infer.schemas import UNKNOWN_MODEL, AcceleratorDescriptor, HardwareProfile

from sage_infer_hal.detection.profiles import build_profile
from sage_infer_hal.detection.redaction import redacted
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
        return build_profile([], sources=[text.source], notes=[redacted(line.text.strip())] if line else [])

    return OutputKind(
        command="a message that no card is present",
        is_this=lambda text: len(text.lines) < shorter_than and text.search(pattern) is not None,
        read=read,
    )


def read_recording(kinds: Sequence[OutputKind], text: ToolText, *, name: str) -> HardwareProfile:
    """Read a recording as the first kind that matches; ``name`` is its file name, for messages.

    If the text cannot be parsed, lines that a terminal wrapped are joined, and a note says so.

    Raises:
        ToolOutputError: no kind matches, or the text is malformed.
    """
    try:
        return _to_its_end(kinds, text, name)
    except ToolOutputError:
        joined = text.unwrapped()
        if joined is None:
            raise
        try:
            profile = _read(kinds, joined[0], name)
        except ToolOutputError:
            pass  # the error of the original text is more useful
        else:
            note = f"lines were wrapped at {joined[1]} columns and are joined again"
            return evolve(profile, notes=(*profile.notes, note))
        raise


def _to_its_end(kinds: Sequence[OutputKind], text: ToolText, name: str) -> HardwareProfile:
    """Read the text; of a last line that may be cut, take devices and links, but no facts."""
    profile = _read(kinds, text, name)
    if not text.may_end_early or not profile.accelerators:
        return profile
    note = "the recording ends within a line, which may be cut"
    try:
        known = {
            (a.hardware_backend, a.index): a
            for a in _read(kinds, text.without_last_line(), name).accelerators
        }
    except ToolOutputError:
        known = {}
    devices = [known.get((a.hardware_backend, a.index)) or _unknown(a) for a in profile.accelerators]
    return evolve(
        build_profile(devices, sources=profile.sources), links=profile.links, notes=(*profile.notes, note)
    )


def _unknown(device: AcceleratorDescriptor) -> AcceleratorDescriptor:
    """The device without any facts: they are in a line that may be cut."""
    return AcceleratorDescriptor(
        hardware_backend=device.hardware_backend,
        vendor=device.vendor,
        model=UNKNOWN_MODEL,
        index=device.index,
    )


def _read(kinds: Sequence[OutputKind], text: ToolText, name: str) -> HardwareProfile:
    known = ", ".join(kind.command for kind in kinds)
    if not text.lines:
        raise ToolOutputError(f"{name}: the recording is empty; expected the output of one of: {known}")
    kind = next((kind for kind in kinds if kind.is_this(text)), None)
    if kind is None:
        first = text.lines[0]
        raise ToolOutputError(
            f"{name}: line {first.number}, {redacted(first.text.strip())[:60]!r}, does not start a known output of "
            f"{text.tool}; record one of: {known}"
        )
    try:
        return kind.read(text)
    except SchemaError as error:
        message = redacted(str(error))
        raise ToolOutputError(
            f"{name}: impossible values in the output of {text.source}: {message}"
        ) from error
    except ToolOutputError as error:
        raise ToolOutputError(f"{name}: {error}") from error

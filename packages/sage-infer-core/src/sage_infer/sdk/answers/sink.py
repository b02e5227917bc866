"""Collects the calls that a scan finds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sage_infer.schemas import ToolCallDelta
from sage_infer.sdk.answers.source import Source

__all__ = ["CallSink"]


class CallSink:
    """Calls of one answer: ``begin`` each, then ``put`` its arguments.

    Attributes:
        parameters: parameters of each known function: name to schema.
        count: calls that were begun.
    """

    def __init__(self, source: Source, parameters: Mapping[str, Mapping[str, Any]]) -> None:
        self.parameters = parameters
        self.count = 0
        self._source = source
        self._deltas: list[ToolCallDelta] = []

    def begin(self, name: str) -> None:
        """Start a call, whose text is certainly not content."""
        self._source.mark = None
        self._deltas.append(ToolCallDelta(index=self.count, name=name))
        self.count += 1

    def put(self, arguments: str) -> None:
        if not self._deltas:
            self._deltas.append(ToolCallDelta(index=self.count - 1))
        self._deltas[-1].arguments += arguments

    def call(self, name: str, arguments: str) -> None:
        self.begin(name)
        self.put(arguments)

    def take(self) -> tuple[ToolCallDelta, ...]:
        """Return the fragments that were added since the last call of this method."""
        deltas, self._deltas = self._deltas, []
        return tuple(deltas)

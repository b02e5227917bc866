"""Contract of parsing an answer while it is generated: reasoning, tool calls, and content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from attrs import frozen

from sage_infer.schemas import ToolCallDelta

__all__ = ["AnswerDelta", "AnswerFormat", "AnswerReader", "AnswerReading", "HybridAnswerReading"]


@frozen(kw_only=True)
class AnswerDelta:
    """The contents of a piece of text.

    Attributes:
        content: new text of the answer.
        reasoning: new text of the model's reasoning.
        tool_calls: new fragments in the answer's order, at most one per call.
    """

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


class AnswerReader(Protocol):
    """Incremental parser of one answer. The result does not depend on how the text is split into pieces."""

    @property
    def is_reasoning(self) -> bool:
        """Whether the next text belongs to the model's reasoning."""
        ...

    def feed(self, text: str) -> AnswerDelta:
        """Parse a piece of text and return the contents that are certain after it."""
        ...

    def end(self) -> AnswerDelta:
        """Return the remaining contents at the end of the answer, including the start of an incomplete call."""
        ...


class AnswerFormat(Protocol):
    """Format of a model's answers: marks of reasoning and tool calls."""

    @property
    def thought_ends(self) -> tuple[str, ...]:
        """Marks that can end the reasoning; empty for a model without reasoning."""
        ...

    @property
    def thoughts_need_special_tokens(self) -> bool:
        """Whether special tokens mark reasoning, so that answers must be generated with
        ``skip_special_tokens=False``. Answers with tool calls always are.
        """
        ...

    def reader(
        self,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        prompt: str = "",
        reads_thoughts: bool = True,
    ) -> AnswerReader:
        """Return a reader for one answer to ``prompt``, which may end with the mark that starts the reasoning.

        If ``tools`` is None, calls are not parsed. If ``reads_thoughts`` is false, reasoning is part of the content.
        """
        ...


@runtime_checkable
class AnswerReading(Protocol):
    """Additional method of a backend that knows the format of its model's answers."""

    async def answer_format(self) -> AnswerFormat | None:
        """Return the format; None if the model has no chat template."""
        ...


@runtime_checkable
class HybridAnswerReading(Protocol):
    """The same method for an instance with several models.

    Raises:
        ModelNotFound: no model has this name.
    """

    async def answer_format(self, *, model: str | None = None) -> AnswerFormat | None:
        """Return the format; None if the model's backend is not an ``AnswerReading``."""
        ...

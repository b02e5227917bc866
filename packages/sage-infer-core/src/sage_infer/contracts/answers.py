"""The contract of reading an answer's text while it is generated: thoughts, calls, and what is said beside them."""

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
    """Reads one answer. It does not matter how its text is split into pieces."""

    @property
    def is_reasoning(self) -> bool:
        """Whether the next text belongs to the model's thoughts."""
        ...

    def feed(self, text: str) -> AnswerDelta:
        """What is certain after this piece."""
        ...

    def end(self) -> AnswerDelta:
        """The rest, when the answer is over. A call that was cut off is delivered as far as it got."""
        ...


class AnswerFormat(Protocol):
    """How a model marks thoughts and calls."""

    @property
    def thought_ends(self) -> tuple[str, ...]:
        """Marks of which one ends the thoughts; empty for a model without thoughts."""
        ...

    @property
    def thoughts_need_special_tokens(self) -> bool:
        """Whether special tokens mark thoughts, so that answers are generated with ``skip_special_tokens=False``.
        Answers with calls always are.
        """
        ...

    def reader(
        self,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        prompt: str = "",
        reads_thoughts: bool = True,
    ) -> AnswerReader:
        """A reader of one answer to ``prompt``, which may end with the mark that opens the thoughts.

        With ``tools`` None no calls are read; without ``reads_thoughts`` thoughts are content.
        """
        ...


@runtime_checkable
class AnswerReading(Protocol):
    """Additional method of a backend that knows the format of its model's answers."""

    async def answer_format(self) -> AnswerFormat | None:
        """The format; None where the model has no chat template."""
        ...


@runtime_checkable
class HybridAnswerReading(Protocol):
    """The same method of an instance with several models.

    Raises:
        ModelNotFound: there is no such model.
    """

    async def answer_format(self, *, model: str | None = None) -> AnswerFormat | None:
        """The format; None where the model's backend is no ``AnswerReading``."""
        ...

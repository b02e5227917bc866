"""The contract of reading tool calls out of a model's answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from attrs import frozen

__all__ = ["ChatAnswer", "HybridToolCalling", "ToolCall", "ToolCalling"]


@frozen(kw_only=True)
class ToolCall:
    """A function that the model wants to be called; ``arguments`` is JSON text, as the model wrote it."""

    name: str
    arguments: str


@frozen(kw_only=True)
class ChatAnswer:
    """An answer taken apart: ``content`` is what is said beside the calls, which are in the model's order."""

    content: str
    tool_calls: tuple[ToolCall, ...] = ()


@runtime_checkable
class ToolCalling(Protocol):
    """Additional method of a backend that claims ``tool_calls``."""

    async def parse_tool_calls(
        self, text: str, *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> ChatAnswer:
        """Take the whole text of an answer apart, by the model's own form of tool calls.

        ``tools`` are those that the prompt was rendered with. A text without calls, or with what only looks
        like one, is all content. Special tokens may mark calls: generate with ``skip_special_tokens=False``.

        Raises:
            UnsupportedFeature: the backend does not claim ``tool_calls``.
        """
        ...


@runtime_checkable
class HybridToolCalling(Protocol):
    """The same method of an instance with several models.

    Raises:
        ModelNotFound: there is no such model.
        UnsupportedFeature: the model's backend does not claim ``tool_calls``.
    """

    async def parse_tool_calls(
        self, text: str, *, model: str | None = None, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> ChatAnswer: ...

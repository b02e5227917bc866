"""Contract of parsing tool calls from a model's answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from attrs import frozen

__all__ = ["ChatAnswer", "HybridToolCalling", "ToolCall", "ToolCalling"]


@frozen(kw_only=True)
class ToolCall:
    """A function call requested by the model.

    Attributes:
        name: the function.
        arguments: JSON text as the model wrote it.
    """

    name: str
    arguments: str


@frozen(kw_only=True)
class ChatAnswer:
    """A parsed answer.

    Attributes:
        content: the text outside the calls.
        tool_calls: the calls, in the model's order.
    """

    content: str
    tool_calls: tuple[ToolCall, ...] = ()


@runtime_checkable
class ToolCalling(Protocol):
    """Additional method of a backend that claims ``tool_calls``."""

    async def parse_tool_calls(
        self, text: str, *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> ChatAnswer:
        """Parse the complete text of an answer, using the model's tool call format.

        ``tools`` are the tools that the prompt was rendered with. Text without valid calls is returned as
        content. Special tokens may mark calls, so generate with ``skip_special_tokens=False``.

        Raises:
            UnsupportedFeature: the backend does not claim ``tool_calls``.
        """
        ...


@runtime_checkable
class HybridToolCalling(Protocol):
    """The same method for an instance with several models.

    Raises:
        ModelNotFound: no model has this name.
        UnsupportedFeature: the model's backend does not claim ``tool_calls``.
    """

    async def parse_tool_calls(
        self, text: str, *, model: str | None = None, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> ChatAnswer: ...

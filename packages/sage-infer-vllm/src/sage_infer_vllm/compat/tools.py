"""vLLM's parsers of tool calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sage_infer.contracts import ChatAnswer, ToolCall
from sage_infer.errors import UnsupportedFeature

__all__ = ["tool_parser"]


def tool_parser(name: str, tokenizer: Any) -> Callable[[str, Sequence[Mapping[str, Any]] | None], ChatAnswer]:
    """vLLM's parser with this name, as a function of an answer's text and the tools.

    Raises:
        UnsupportedFeature: this vLLM has no such parser, or the model's tokenizer lacks its tokens.
    """
    from vllm.tool_parsers import ToolParserManager  # imports the modules of vLLM's server

    request_class = _chat_request()
    try:
        parser = ToolParserManager.get_tool_parser(name)
        parser(tokenizer)
    except KeyError:
        known = ", ".join(sorted(ToolParserManager.list_registered()))
        raise UnsupportedFeature(f"vLLM has no tool parser {name!r}; available: {known}") from None
    except (RuntimeError, ValueError) as error:
        raise UnsupportedFeature(f"tool parser {name!r} does not support the model: {error}") from error
    takes_tools = _takes_tools(parser)

    def parse(text: str, tools: Sequence[Mapping[str, Any]] | None) -> ChatAnswer:
        # Parsers keep state between calls, so each answer needs its own.
        request = request_class(messages=[], model="", tools=[dict(tool) for tool in tools or ()] or None)
        own = parser(tokenizer, request.tools) if takes_tools else parser(tokenizer)
        found = own.extract_tool_calls(text, request)
        calls = tuple(
            ToolCall(name=c.function.name, arguments=c.function.arguments) for c in found.tool_calls
        )
        return ChatAnswer(content=(found.content or "") if calls else text, tool_calls=calls)

    return parse


def _takes_tools(parser: Any) -> bool:
    """Whether a parser's constructor takes the request's tools; up to 0.18, it takes the tokenizer only."""
    parameters = inspect.signature(parser).parameters.values()
    return any(p.name == "tools" or p.kind is p.VAR_POSITIONAL for p in parameters)


def _chat_request() -> Any:
    try:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    except ImportError:  # up to 0.13
        from vllm.entrypoints.openai.protocol import ChatCompletionRequest
    return ChatCompletionRequest

"""A request's messages and tools in the format of chat templates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from sage_infer_serve.http.errors import wrong_request
from sage_infer_serve.openai.schema import ContentPart, Message, Tool

__all__ = ["as_chat", "function_names", "tools_as_dicts"]

_MOST_VALUES = 2**18  # of arguments; an object counts as four, according to its cost. About 25 ms


def as_chat(messages: Sequence[Message], *, text_only: bool) -> list[dict[str, Any]]:
    """Messages for a backend: text parts joined, ``developer`` mapped to ``system``, as templates expect.

    Raises:
        HTTPError: a message lacks a field required by its role, or has media that the model does not support; or the
            arguments of calls have too many values.
    """
    _check_arguments(messages)
    return [_as_chat(message, f"messages[{index}]", text_only) for index, message in enumerate(messages)]


def _check_arguments(messages: Sequence[Message]) -> None:
    """Arguments are JSON inside of a string, so the check of the body has not counted their values."""
    values = 0
    for message in messages:
        for call in message.tool_calls or ():
            text = call.function.arguments
            values += text.count(",") + 4 * text.count("{") + 2 * text.count("[")
    if values > _MOST_VALUES:
        raise wrong_request(
            f"the arguments of tool calls have more than {_MOST_VALUES} values; shorten them", "messages"
        )


def _as_chat(message: Message, where: str, text_only: bool) -> dict[str, Any]:
    content: Any = message.content
    if content == [] and message.role != "tool":
        content = None
    if isinstance(content, list):
        content = _content(content, where, text_only)
    elif content is None and not message.tool_calls:
        # An answer that was cut within its thoughts has nothing else.
        if message.refusal is None and not (message.reasoning_content or message.reasoning):
            raise wrong_request(f"{where}.content is missing", f"{where}.content")
        content = message.refusal or ""
    role = "system" if message.role == "developer" else message.role
    chat: dict[str, Any] = {"role": role, "content": content}
    if message.name is not None:
        chat["name"] = message.name
    if thoughts := message.reasoning_content or message.reasoning:
        chat["reasoning_content"] = thoughts
    if message.tool_calls:
        chat["content"] = content or ""
        chat["tool_calls"] = [_called(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        chat["tool_call_id"] = message.tool_call_id
    elif role == "tool":
        raise wrong_request(f"{where}.tool_call_id is missing", f"{where}.tool_call_id")
    return chat


def _content(parts: list[ContentPart], where: str, text_only: bool) -> str | list[dict[str, Any]]:
    for index, part in enumerate(parts):
        field = part.type
        if getattr(part, field) is None:
            raise wrong_request(
                f"{where}.content[{index}].{field} is missing", f"{where}.content[{index}].{field}"
            )
        if field not in ("text", "refusal") and text_only:
            raise wrong_request(
                f"{where}.content[{index}]: this model supports text only, not {field}; remove it",
                f"{where}.content[{index}]",
                code="unsupported_feature",
            )
    if all(part.type in ("text", "refusal") for part in parts):
        return "\n".join(part.text or part.refusal or "" for part in parts)
    return [{"type": part.type, part.type: getattr(part, part.type)} for part in parts]


def _called(call: Any) -> dict[str, Any]:
    """An earlier call. Arguments are parsed to an object, because templates serialize them; invalid JSON stays text."""
    text = call.function.arguments
    try:
        arguments = msgspec.json.decode(text.encode() or b"{}")
    except (msgspec.DecodeError, RecursionError):
        arguments = text
    return {
        "id": call.id,
        "type": "function",
        "function": {
            "name": call.function.name,
            "arguments": arguments if isinstance(arguments, dict) else text,
        },
    }


def function_names(tools: Sequence[Tool]) -> list[str]:
    """Names of the functions.

    Raises:
        HTTPError: a name is repeated.
    """
    names = [tool.function.name for tool in tools]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise wrong_request(
                f"tools[{index}].function.name: {name!r} is repeated", f"tools[{index}].function.name"
            )
    return names


def tools_as_dicts(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Tools as sent by the client, without null values."""
    return [
        {
            "type": "function",
            "function": {k: v for k, v in msgspec.structs.asdict(tool.function).items() if v is not None},
        }
        for tool in tools
    ]

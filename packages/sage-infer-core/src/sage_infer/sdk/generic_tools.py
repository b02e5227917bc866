"""Tools for chat templates without support for them: described in a system message, in Hermes' format.

Calls and results in the conversation become text in the same format, which the gateway parses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["tools_as_text", "with_call_text", "with_tool_text"]


def tools_as_text(tools: Sequence[Mapping[str, Any]]) -> str:
    """Instructions for calling ``tools``."""
    described = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return (
        "You can call functions. These are available, one JSON object per line:\n"
        f"<tools>\n{described}\n</tools>\n"
        "To call a function, write a JSON object with its name and arguments between these tags:\n"
        '<tool_call>\n{"name": "FUNCTION", "arguments": {}}\n</tool_call>'
    )


def with_tool_text(messages: Sequence[Mapping[str, Any]], text: str, role: str) -> list[dict[str, Any]]:
    """Add ``text`` to the messages.

    With the role ``system``, it is appended to a leading system message; with another role, it is prepended to the
    first message of that role. Without such a message, a new first message contains it.
    """
    found = [dict(message) for message in messages]
    first = found[0]
    if first["role"] == role == "system":
        first["content"] = f"{first.get('content') or ''}\n\n{text}".lstrip()
        return found
    for message in found if role != "system" else ():
        if message["role"] == role:
            message["content"] = f"{text}\n\n{message.get('content') or ''}".rstrip()
            return found
    return [{"role": role, "content": text}, *found]


def with_call_text(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Convert calls to text of the assistant, and consecutive results to one user message."""
    found: list[dict[str, Any]] = []
    after_result = False
    for message in messages:
        is_result = message["role"] == "tool"
        if is_result:
            text = f"<tool_response>\n{message.get('content') or ''}\n</tool_response>"
            if after_result:
                found[-1]["content"] += "\n" + text
            else:
                found.append({"role": "user", "content": text})
        elif calls := message.get("tool_calls"):
            rest = {key: value for key, value in message.items() if key != "tool_calls"}
            said = [message["content"]] if message.get("content") else []
            found.append({**rest, "content": "\n".join([*said, *map(_call_text, calls)])})
        else:
            found.append(dict(message))
        after_result = is_result
    return found


def _call_text(call: Mapping[str, Any]) -> str:
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    name = json.dumps(function.get("name"), ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {written}}}\n</tool_call>'

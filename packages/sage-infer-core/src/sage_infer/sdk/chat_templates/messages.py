"""Tool calls in chat messages, as templates read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["with_argument_objects"]


def with_argument_objects(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """The messages with string arguments of calls wrapped in an object; None if there are no string arguments.

    Arguments are strings if a model wrote invalid JSON, but some templates iterate over them.
    """
    changed = False
    found = []
    for message in messages:
        calls = message.get("tool_calls")
        if isinstance(calls, list | tuple):
            objects = [_with_object(call) for call in calls]
            changed = changed or objects != list(calls)
            message = {**message, "tool_calls": objects}
        found.append(dict(message))
    return found if changed else None


def _with_object(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    return {**call, "function": {**function, "arguments": {"text": function["arguments"]}}}

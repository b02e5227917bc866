"""Validation and conversion of chat messages for templates of text models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sage_infer.errors import InvalidRequest, UnsupportedFeature

__all__ = ["plain_messages"]


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages with text as content; text parts are joined by line ends.

    Raises:
        InvalidRequest: there are no messages, a message has no role, or a user message has no content.
        UnsupportedFeature: a content part is not text.
    """
    if not messages:
        raise InvalidRequest("messages is empty, expected at least one message")
    return [_plain(index, message) for index, message in enumerate(messages)]


def _plain(index: int, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InvalidRequest(f"message {index} must be a mapping with a role, such as user, got {message!r}")
    content = message.get("content")
    if content is None and message["role"] == "user":
        raise InvalidRequest(f"message {index} of the user has no content; expected text")
    if not isinstance(content, list | tuple):
        return dict(message)
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text":
            raise UnsupportedFeature(
                f"message {index} has a content part of type {kind!r}, but this model supports text only "
                "(feature multimodal)"
            )
        if not isinstance(part.get("text"), str):
            raise InvalidRequest(f"message {index} has a content part without text; expected a string in it")
        texts.append(part["text"])
    return {**message, "content": "\n".join(texts)}

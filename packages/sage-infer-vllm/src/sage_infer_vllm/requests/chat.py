"""Chats as prompts, by the template that came with the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sage_infer.contracts import ChatMessage
from sage_infer.errors import InvalidRequest, UnsupportedFeature
from sage_infer.schemas import Prompt

__all__ = ["render_chat"]


def render_chat(
    tokenizer: Any,
    messages: Sequence[ChatMessage],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
) -> Prompt:
    """The chat as text that needs no further special tokens.

    Raises:
        UnsupportedFeature: the model has no chat template.
        InvalidRequest: no messages, one without a role, a user's without content, or the template refuses them.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UnsupportedFeature("the model has no chat template; give the prompt as text")
    if not messages:
        raise InvalidRequest("no messages; expected at least one")
    for index, message in enumerate(messages):
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise InvalidRequest(f"message {index} has no role; expected system, user, assistant or tool")
        if role == "user" and message.get("content") is None:
            raise InvalidRequest(f"message {index} of the user has no content")
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tools=[dict(tool) for tool in tools] if tools else None,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )
    except Exception as error:  # a template is a program over the caller's data, and can fail in any way
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InvalidRequest(
            f"the model's chat template fails on these messages ({what}); check each message's role and content"
        ) from error
    return Prompt(text=str(text), add_special_tokens=False)

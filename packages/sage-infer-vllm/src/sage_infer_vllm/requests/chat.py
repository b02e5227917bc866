"""Chats as prompts, rendered by the model's template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sage_infer.contracts import ChatMessage
from sage_infer.errors import InvalidRequest, UnsupportedFeature
from sage_infer.schemas import Prompt
from sage_infer.sdk import plain_messages
from sage_infer.sdk.generic_tools import tools_as_text, with_call_text, with_tool_text

__all__ = ["render_chat"]

_NO_VARIABLES = {
    "conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize",
    "padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
    "tokenizer_kwargs", "processor_kwargs",
}  # fmt: skip
"""Arguments of transformers' ``apply_chat_template`` that are not template variables."""

Render = Callable[[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]] | None], str]


def render_chat(
    tokenizer: Any,
    messages: Sequence[ChatMessage],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    template_variables: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = True,
) -> Prompt:
    """Render the chat as text that already contains special tokens.

    If the template does not render tools or calls of earlier messages, they become text.

    Raises:
        UnsupportedFeature: the model has no chat template, or a message has media.
        InvalidRequest: there are no messages, one has no role, a user message has no content, a template variable has a
            reserved name, or the template rejects the messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UnsupportedFeature("the model has no chat template; pass the prompt as text")
    variables = dict(template_variables or {})
    taken = sorted(_NO_VARIABLES & set(variables))
    if taken:
        raise InvalidRequest(f"template_variables cannot set {', '.join(taken)}; these names are reserved")

    def render(chat: Sequence[Mapping[str, Any]], given: Sequence[Mapping[str, Any]] | None = None) -> str:
        try:
            return str(
                tokenizer.apply_chat_template(
                    [dict(message) for message in chat],
                    tools=[dict(tool) for tool in given] if given else None,
                    add_generation_prompt=add_generation_prompt,
                    tokenize=False,
                    **variables,
                )
            )
        except Exception as error:  # a template is a program over the caller's data and can raise any error
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            raise InvalidRequest(
                f"the model's chat template fails on these messages ({what}); check each message's role and content"
            ) from error

    conversation = plain_messages(messages)
    if "tool_calls" not in str(tokenizer.chat_template):
        conversation = with_call_text(conversation)
    text = _with_tools(render, conversation, tools) if tools else render(conversation, None)
    return Prompt(text=text, add_special_tokens=False)


def _with_tools(render: Render, chat: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> str:
    """Render the chat with ``tools``, described in a message if the template ignores them."""
    text = render(chat, tools)
    if text != render(chat, None):
        return text
    described = tools_as_text(tools)
    try:
        return render(with_tool_text(chat, described, "system"), None)
    except InvalidRequest:  # some templates reject system messages
        return render(with_tool_text(chat, described, "user"), None)

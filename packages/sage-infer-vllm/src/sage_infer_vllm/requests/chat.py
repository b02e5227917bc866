"""Chats as prompts, rendered by the model's template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from attrs import frozen
from sage_infer.contracts import ChatMessage
from sage_infer.errors import InvalidRequest, UnsupportedFeature
from sage_infer.schemas import Prompt
from sage_infer.sdk import plain_messages
from sage_infer.sdk.chat_templates import TOOL_USE, ChatTemplates
from sage_infer.sdk.generic_tools import tools_as_text, with_call_text, with_tool_text

__all__ = ["ChatRenderer", "chat_renderer", "render_chat"]

_NO_VARIABLES = {
    "conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize",
    "padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
    "tokenizer_kwargs", "processor_kwargs",
}  # fmt: skip
"""Arguments of transformers' ``apply_chat_template`` that are not template variables."""

_RENDERS_TEMPLATES = "transformers.tokenization_utils_base"  # whose method renders the template as it is
_PASSES_ON = "vllm.tokenizers.hf"  # its subclasses call the method of the class that they extend

Render = Callable[[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]] | None], str]


class ChatRenderer(Protocol):
    """Renders the chats of one model."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str: ...


def chat_renderer(tokenizer: Any) -> ChatRenderer | None:
    """The renderer of a tokenizer's chats; None without a chat template.

    A template is a program of the model's files, so it is rendered within a budget, not by transformers. Code that
    vLLM has in place of a template (for DeepSeek V3.2) is called.

    Raises:
        ModelFileError: the template is not valid Jinja.
    """
    source = getattr(tokenizer, "chat_template", None)
    if not source:
        return None
    if not _is_plain(tokenizer):
        return _OwnCode(tokenizer)
    named = source if isinstance(source, Mapping) else {"default": source}
    calling = named.get(TOOL_USE)
    default = named.get("default", calling)
    if default is None:
        return None
    return ChatTemplates(default, calling, special_tokens=tokenizer.special_tokens_map)


def _is_plain(tokenizer: Any) -> bool:
    """Whether ``apply_chat_template`` is transformers' own, which only renders the template."""
    owners = (kind.__module__ for kind in type(tokenizer).__mro__ if "apply_chat_template" in vars(kind))
    return next((owner for owner in owners if owner != _PASSES_ON), "") == _RENDERS_TEMPLATES


def render_chat(
    chats: ChatRenderer | None,
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
            reserved name, or the template rejects the messages or computes too much.
    """
    if chats is None:
        raise UnsupportedFeature("the model has no chat template; pass the prompt as text")
    text = chats.render(
        messages, tools=tools, add_generation_prompt=add_generation_prompt, variables=template_variables
    )
    return Prompt(text=text, add_special_tokens=False)


@frozen
class _OwnCode:
    """A tokenizer whose class renders chats itself."""

    tokenizer: Any

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        taken = sorted(_NO_VARIABLES & set(variables or ()))
        if taken:
            raise InvalidRequest(
                f"template_variables cannot set {', '.join(taken)}; these names are reserved"
            )

        def render(
            chat: Sequence[Mapping[str, Any]], given: Sequence[Mapping[str, Any]] | None = None
        ) -> str:
            try:
                return str(
                    self.tokenizer.apply_chat_template(
                        [dict(message) for message in chat],
                        tools=[dict(tool) for tool in given] if given else None,
                        add_generation_prompt=add_generation_prompt,
                        tokenize=False,
                        **(variables or {}),
                    )
                )
            except Exception as error:  # code of a library over the caller's data can raise any error
                what = f"{type(error).__name__}: {error}".splitlines()[0]
                raise InvalidRequest(
                    f"the model's chat template fails on these messages ({what}); check each message's role and "
                    "content"
                ) from error

        conversation = plain_messages(messages)
        if "tool_calls" not in str(self.tokenizer.chat_template):
            conversation = with_call_text(conversation)
        return _with_tools(render, conversation, tools) if tools else render(conversation, None)


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

"""A chat as text by a model's templates, whatever they have a place for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sage_infer.errors import InvalidRequest
from sage_infer.sdk.chat import plain_messages
from sage_infer.sdk.chat_templates.messages import with_argument_objects
from sage_infer.sdk.chat_templates.template import RESERVED_VARIABLES, ChatTemplate, TemplateTooCostly
from sage_infer.sdk.generic_tools import tools_as_text, with_call_text, with_tool_text

__all__ = ["TOOL_USE", "ChatTemplates"]

TOOL_USE = "tool_use"
"""Usual name of a model's template for chats with tools."""


class ChatTemplates:
    """A model's chat template, and its template for chats with tools if it has one.

    Args:
        source: the template.
        tool_source: the template ``tool_use``.
        special_tokens: texts of ``bos_token``, ``eos_token``, …, which are variables of the templates.

    Attributes:
        default: the compiled template.
        calling: the one for chats with tools.

    Raises:
        ModelFileError: a template is not valid Jinja.
    """

    def __init__(
        self, source: str, tool_source: str | None = None, *, special_tokens: Mapping[str, Any] | None = None
    ) -> None:
        self.default = ChatTemplate(source)
        self.calling = ChatTemplate(tool_source, f"chat template {TOOL_USE}") if tool_source else self.default
        self._special_tokens = dict(special_tokens or {})

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Render a chat as text that already contains special tokens.

        ``variables`` are passed to the template unchanged (``enable_thinking`` is a common one). Tools that the
        template does not render are described in the system message, and calls of earlier messages become text.

        Raises:
            UnsupportedFeature: a message has media.
            InvalidRequest: messages are invalid, the template rejects them or computes too much, or a variable has a
                reserved name.
        """
        reserved = sorted(set(variables or ()) & set(RESERVED_VARIABLES))
        if reserved:
            raise InvalidRequest(
                f"template_variables must not contain {', '.join(reserved)}; pass messages, tools and "
                "add_generation_prompt as arguments"
            )
        template = self.calling if tools else self.default
        plain = plain_messages(messages)
        if not template.reads_calls:
            plain = with_call_text(plain)

        def render(chat: Sequence[Mapping[str, Any]]) -> str:
            return template.render(
                chat,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                variables={**self._special_tokens, **(variables or {})},
            )

        if not tools or template.reads_tools:
            return _first_accepted(render, plain)
        text = tools_as_text(tools)
        # Some templates reject system messages.
        return _first_accepted(
            render, with_tool_text(plain, text, "system"), with_tool_text(plain, text, "user")
        )


def _first_accepted(
    render: Callable[[Sequence[Mapping[str, Any]]], str], *chats: Sequence[Mapping[str, Any]]
) -> str:
    """Render the first of ``chats`` that the template accepts; each is also tried with objects as call arguments.

    Raises:
        InvalidRequest: the template rejects all of them; the error is that of the first.
    """
    refusal: InvalidRequest | None = None
    for chat in chats:
        for messages in (chat, with_argument_objects(chat)):
            if messages is None:
                continue
            try:
                return render(messages)
            except TemplateTooCostly:
                raise
            except InvalidRequest as error:
                refusal = refusal or error
    assert refusal is not None
    raise refusal

"""Chat templates: their variables, and prompts that continue the last message."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from sage_infer.contracts import HybridTokenizing
from sage_infer.errors import UnsupportedFeature
from sage_infer.schemas import Prompt

from sage_infer_serve.http.errors import wrong_request
from sage_infer_serve.openai.schema import ChatRequest, TokenizeRequest

__all__ = ["has_usual_ending", "render", "template_variables"]


def template_variables(request: ChatRequest | TokenizeRequest) -> dict[str, Any] | None:
    """Variables of the chat template: ``chat_template_kwargs`` and the fields for reasoning; None without any."""
    variables = dict(request.chat_template_kwargs or {})
    if request.enable_thinking is not None:
        variables.setdefault("enable_thinking", request.enable_thinking)
    if request.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", request.reasoning_effort)
        if request.reasoning_effort == "none":
            variables.setdefault("enable_thinking", False)
    return variables or None


def has_usual_ending(request: ChatRequest | TokenizeRequest) -> bool:
    """Whether the prompt ends with the start of an assistant message."""
    return not request.continue_final_message and request.add_generation_prompt is not False


async def render(
    backend: Any,
    request: ChatRequest | TokenizeRequest,
    messages: Sequence[Mapping[str, Any]],
    *,
    model: str,
    tools: Sequence[Mapping[str, Any]] | None,
) -> Prompt:
    """The chat as a prompt. With ``continue_final_message`` it ends with the last message's content.

    Raises:
        HTTPError: the last message cannot be continued.
        UnsupportedFeature: the backend cannot render chats.
    """
    if not isinstance(backend, HybridTokenizing):
        raise UnsupportedFeature(
            "continue_final_message and add_generation_prompt: false are not supported, because the server's backend "
            "cannot render chats; remove them"
        )
    continues = bool(request.continue_final_message)
    mark = uuid.uuid4().hex
    if continues:
        if request.add_generation_prompt:
            raise wrong_request(
                "continue_final_message and add_generation_prompt are mutually exclusive",
                "continue_final_message",
            )
        last = messages[-1]
        if last["role"] != "assistant" or not isinstance(last["content"], str) or "tool_calls" in last:
            raise wrong_request(
                "continue_final_message requires an assistant message with text and without tool calls at the end",
                "continue_final_message",
            )
        messages = [*messages[:-1], {**last, "content": last["content"] + mark}]
    prompt = await backend.render_chat(
        messages,
        model=model,
        tools=tools,
        template_variables=template_variables(request),
        add_generation_prompt=not continues and request.add_generation_prompt is not False,
    )
    if not continues:
        return prompt
    text, found, _ = (prompt.text or "").rpartition(mark)
    if not found:
        raise wrong_request(
            "continue_final_message: the model's chat template omits the end of the last message",
            "continue_final_message",
        )
    return attrs.evolve(prompt, text=text)

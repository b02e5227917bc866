"""Chats, tokens and tool calls of the reference engine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sage_infer.contracts import ChatAnswer, ToolCall, as_prompts
from sage_infer.errors import InvalidRequest, UnsupportedFeature
from sage_infer.schemas import Prompt

from kit_reference.sampling import VOCABULARY, detokenize, tokenize

__all__ = ["Chats"]


class Chats:
    """What a backend with a tokenizer has; the engine mixes it in."""

    features: Sequence[str] = ()

    def needs(self, feature: str, asked: bool) -> None:
        if asked and feature not in self.features:
            raise UnsupportedFeature(f"this instance does not do {feature}; ask one that claims it")

    async def render_chat(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Any = None, template_variables: Any = None,
        add_generation_prompt: bool = True,
    ) -> Prompt:  # fmt: skip
        self.needs("chat", True)
        self.needs("template_variables", bool(template_variables))
        if not messages or any("role" not in m or "content" not in m for m in messages):
            raise InvalidRequest("messages must not be empty, and each needs role and content")
        self.needs("multimodal", any(not isinstance(m["content"], str) for m in messages))
        text = "".join(f"{name}={value}\n" for name, value in (template_variables or {}).items())
        text += "".join(f"{m['role']}: {m['content']}\n" for m in messages)
        return Prompt(text=text + "assistant: " * add_generation_prompt, add_special_tokens=False)

    async def tokenize(self, prompt: Any) -> list[int]:
        return list(tokenize(as_prompts(prompt)[0]))

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        if any(not 0 <= token < VOCABULARY for token in token_ids):
            raise InvalidRequest(f"a token id is outside 0 to {VOCABULARY - 1}")
        return "".join(map(detokenize, token_ids))

    async def parse_tool_calls(self, text: str, *, tools: Any = None) -> ChatAnswer:
        """Calls look like ``<call>{"name": …, "arguments": …}</call>``."""
        self.needs("tool_calls", True)
        content, mark, rest = text.partition("<call>")
        if not mark:
            return ChatAnswer(content=text)
        call = json.loads(rest.removesuffix("</call>"))
        found = ToolCall(name=call["name"], arguments=json.dumps(call["arguments"]))
        return ChatAnswer(content=content, tool_calls=(found,))

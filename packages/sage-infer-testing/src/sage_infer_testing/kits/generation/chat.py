"""Chats become prompts by the model's own template."""

from __future__ import annotations

from typing import Any

import pytest
from sage_infer.errors import InvalidRequest

from sage_infer_testing.features import when_claimed
from sage_infer_testing.kits.generation.base import GenerationSuite
from sage_infer_testing.reading import generate_one, greedy

__all__ = ["ChatTests"]


class ChatTests(GenerationSuite, kit=True):
    """``render_chat``, where it is claimed."""

    @when_claimed("chat")
    async def test_chat_becomes_a_prompt(self, backend: Any) -> None:
        """``render_chat`` gives a prompt that contains the messages and that the backend generates from.

        How to fix: return the template's text with ``add_special_tokens=False``, or its token ids.
        """
        messages = [
            {"role": "system", "content": "Answer in one word."},
            {"role": "user", "content": "Which colour has the sky?"},
        ]
        prompt = backend.render_chat(messages)
        assert prompt.text is None or messages[1]["content"] in prompt.text, (
            f"the message is not in {prompt.text!r}"
        )
        output = await generate_one(backend, prompt, greedy(4))
        assert output.finish_reason == "length"

    @when_claimed("chat")
    def test_generation_prompt_can_be_left_out(self, backend: Any) -> None:
        """``add_generation_prompt`` decides whether the prompt ends with the opening of the assistant's turn.

        How to fix: pass the argument on to the template.
        """
        messages = [{"role": "user", "content": "Hello"}]
        with_turn = backend.render_chat(messages)
        without = backend.render_chat(messages, add_generation_prompt=False)
        assert with_turn != without, "add_generation_prompt=False changes nothing"

    @when_claimed("chat")
    def test_malformed_chat_is_refused(self, backend: Any) -> None:
        """No messages, or a message without a role, is an ``InvalidRequest``.

        How to fix: check the messages before the template, and turn the template's own errors into ``InvalidRequest``.
        """
        for wrong in ([], [{"content": "Hello"}], [{"role": "user"}]):
            with pytest.raises(InvalidRequest):
                backend.render_chat(wrong)

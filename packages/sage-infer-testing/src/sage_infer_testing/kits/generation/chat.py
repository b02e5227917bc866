"""Rendering of chats with the model's template."""

from __future__ import annotations

import json
from itertools import takewhile
from typing import Any

import pytest
from sage_infer.contracts import ChatAnswer, ToolCalling
from sage_infer.errors import InvalidRequest, UnsupportedFeature

from sage_infer_testing.features import unless_claimed, when_claimed
from sage_infer_testing.kits.generation.base import GenerationSuite
from sage_infer_testing.reading import generate_one, greedy
from sage_infer_testing.shape import shape_problems

__all__ = ["ChatTests"]


class ChatTests(GenerationSuite, kit=True):
    """Tests of ``render_chat``, if it is claimed."""

    @when_claimed("chat")
    async def test_chat_becomes_a_prompt(self, backend: Any) -> None:
        """``render_chat`` returns a prompt that contains the messages and that the backend generates from.

        How to fix: return the template's text with ``add_special_tokens=False``, or its token ids.
        """
        messages = [
            {"role": "system", "content": "Answer in one word."},
            {"role": "user", "content": "Which colour has the sky?"},
        ]
        prompt = await backend.render_chat(messages)
        text = prompt.text
        if text is None and backend.get_capability().supports("tokenize"):
            text = await backend.detokenize(prompt.token_ids)
        for message in messages if text is not None else ():
            assert message["content"] in text, f"the {message['role']}'s message is not in {text!r}"
        output = await generate_one(backend, prompt, greedy(4))
        assert output.finish_reason == "length"

    @when_claimed("chat")
    async def test_generation_prompt_can_be_left_out(self, backend: Any) -> None:
        """``add_generation_prompt`` determines whether the prompt ends with the start of the assistant's turn.

        How to fix: pass the argument to the template.
        """
        messages = [{"role": "user", "content": "Hello"}]
        with_turn = await backend.render_chat(messages)
        without = await backend.render_chat(messages, add_generation_prompt=False)
        assert with_turn != without, "add_generation_prompt=False changes nothing"

    @when_claimed("chat")
    async def test_malformed_chat_is_refused(self, backend: Any) -> None:
        """No messages, or a message without a role, is an ``InvalidRequest``.

        How to fix: check the messages before rendering, and convert errors of the template to ``InvalidRequest``.
        """
        for wrong in ([], [{"content": "Hello"}], [{"role": "user"}]):
            with pytest.raises(InvalidRequest):
                await backend.render_chat(wrong)

    @when_claimed("chat", "template_variables")
    async def test_template_variables_are_taken(self, backend: Any) -> None:
        """The prompt is rendered with ``template_variables``.

        How to fix: pass the mapping to the template as variables; set the kit's ``template_variables`` to variables
        that the model's template uses: the test then checks that they change the prompt.
        """
        messages = [{"role": "user", "content": "Hello"}]
        prompt = await backend.render_chat(messages, template_variables=dict(self.template_variables))
        assert prompt.text or prompt.token_ids, f"rendered {prompt}"
        if self.template_variables is not GenerationSuite.template_variables:
            plain = await backend.render_chat(messages)
            assert prompt != plain, f"{dict(self.template_variables)} changes nothing in {plain}"

    @when_claimed("chat")
    @unless_claimed("template_variables")
    async def test_template_variables_are_refused(self, backend: Any) -> None:
        """Unclaimed ``template_variables`` are refused by name; None and an empty mapping are accepted.

        How to fix: raise ``UnsupportedFeature`` in ``render_chat`` if the mapping is not empty.
        """
        messages = [{"role": "user", "content": "Hello"}]
        with pytest.raises(UnsupportedFeature, match="template_variables"):
            await backend.render_chat(messages, template_variables={"enable_thinking": False})
        await backend.render_chat(messages, template_variables={})

    @when_claimed("chat")
    @unless_claimed("multimodal")
    async def test_media_in_a_message_are_refused(self, backend: Any) -> None:
        """A message with an image part raises ``UnsupportedFeature`` in a text-only backend.

        How to fix: check the parts of each message's content before rendering, since the template may ignore them.
        """
        image = {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lGODlhAQABAAAAACw="}}
        parts = [{"type": "text", "text": "What is this?"}, image]
        with pytest.raises(UnsupportedFeature):
            await backend.render_chat([{"role": "user", "content": parts}])

    @when_claimed("tool_calls")
    async def test_tool_calls_are_read_out_of_an_answer(self, backend: Any) -> None:
        """``parse_tool_calls`` finds the call in ``tool_answer``, and returns plain text as content.

        Without a ``tool_answer`` it finds the call that the model's own template renders.

        How to fix: set ``tool_answer`` to an answer in the model's own format. Return arguments as JSON text, and text
        outside the calls as ``content``.
        """
        problems = shape_problems(backend, ToolCalling)
        assert not problems, f"not a ToolCalling: {'; '.join(problems)}"
        plain = await backend.parse_tool_calls("It is four o'clock.")
        assert plain == ChatAnswer(content="It is four o'clock."), f"plain text became {plain}"
        text, name, arguments = self.tool_answer or await self._rendered_call(backend)
        tools = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}]
        found = await backend.parse_tool_calls(text, tools=tools)
        assert [call.name for call in found.tool_calls] == [name], f"{text!r} became {found}"
        assert json.loads(found.tool_calls[0].arguments) == arguments, f"{text!r} became {found}"

    async def _rendered_call(self, backend: Any) -> tuple[str, str, dict[str, str]]:
        """A call in the form of the model's template: where the prompt begins to differ from one with words instead."""
        if not backend.get_capability().supports("chat"):
            pytest.fail("tool_calls is claimed without chat; set tool_answer to (text, name, arguments)")
        arguments = {"zone": "UTC"}
        function = {"name": "clock", "arguments": arguments}
        ask = {"role": "user", "content": "What time is it?"}
        call = {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "id": "1", "function": function}],
        }
        texts = []
        for answer in ({"role": "assistant", "content": "\N{MIDDLE DOT}"}, call):
            prompt = await backend.render_chat([ask, answer], add_generation_prompt=False)
            texts.append(prompt.text or "")
        words, calling = texts
        if "clock" not in calling:
            pytest.fail("tool_calls is claimed, and the template leaves calls out; set tool_answer")
        common = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(words, calling, strict=False))))
        return calling[common:], "clock", arguments

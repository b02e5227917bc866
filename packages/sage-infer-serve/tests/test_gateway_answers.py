"""Thoughts and calls in answers: read from text by the model's format, or delivered by the backend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from gateway_backend import TokenizingBackend
from gateway_served import Served, events
from openai.lib.streaming.chat import ChatCompletionStreamState
from sage_infer.contracts import AnswerFormat
from sage_infer.schemas import TokenDelta, ToolCallDelta
from sage_infer.sdk.answers import answer_format
from sage_infer_serve import GatewaySettings

WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {}}}},
}
ASK: Any = [{"role": "user", "content": "Hello"}]


class ReadingBackend(TokenizingBackend):
    """Its model ends prompts with ``opens`` and has the format of ``template``."""

    template = "<think> <tool_call>"
    special: tuple[str, ...] = ()
    opens = ""
    deltas: tuple[TokenDelta, ...] = ()

    async def answer_format(self, *, model: str | None = None) -> AnswerFormat | None:
        assert model == "echo"
        return answer_format(self.template, special_tokens=self.special)

    async def render_chat(self, messages: Any, **options: Any) -> Any:
        prompt = await super().render_chat(messages, **options)
        return type(prompt)(text=(prompt.text or "") + self.opens)

    async def _feed(self, stream: Any, words: Any, reason: Any, prompt_tokens: int, params: Any) -> None:
        if not self.deltas:
            return await super()._feed(stream, words, reason, prompt_tokens, params)
        for delta in self.deltas:
            stream.push(delta)
        stream.finish("stop", None, None)  # type: ignore[arg-type]


@pytest.fixture
def backend() -> ReadingBackend:
    return ReadingBackend()


@pytest.fixture
def served(backend: ReadingBackend) -> Iterator[Served]:
    served = Served(backend, GatewaySettings(port=0))
    yield served
    served.close()


def ask(served: Served, **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The answer's choice and usage, which are the same as of a stream."""
    answer = served.chat("Hello", **fields).data
    (choice,) = answer["choices"]
    state = ChatCompletionStreamState()
    chunks = served.client().chat.completions.create(
        model="echo", messages=ASK, stream=True, stream_options={"include_usage": True}, extra_body=fields
    )
    for chunk in chunks:
        state.handle_chunk(chunk)
    streamed = state.current_completion_snapshot
    message = streamed.choices[0].message
    assert (message.content or None) == (choice["message"]["content"] or None)
    assert message.to_dict().get("reasoning_content") == choice["message"].get("reasoning_content")
    calls = [(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ()]
    whole = [
        (call["function"]["name"], call["function"]["arguments"])
        for call in choice["message"].get("tool_calls", ())
    ]
    assert [call[1:] for call in calls] == whole
    assert len({call[0] for call in calls}) == len(calls)
    assert streamed.choices[0].finish_reason == choice["finish_reason"]
    assert streamed.usage is not None
    assert streamed.usage.to_dict() == answer["usage"]
    assert streamed.system_fingerprint == answer["system_fingerprint"]
    return choice, answer["usage"]


def test_thoughts_come_apart_from_the_answer(backend: ReadingBackend, served: Served) -> None:
    backend.script = ["<thi", "nk>", "\nA ", "sum.", "\n</think>", "\n\n", "Four."]
    choice, usage = ask(served)
    message = choice["message"]
    assert message["content"] == "Four."
    assert message["reasoning_content"] == message["reasoning"] == "A sum."
    assert choice["finish_reason"] == "stop"
    assert usage["completion_tokens_details"] == {
        "reasoning_tokens": 4
    }  # from the opening mark to the last thought
    without, same = ask(served, include_reasoning=False)
    assert (without["message"]["content"], same) == ("Four.", usage)
    assert "reasoning_content" not in without["message"]
    cut, _ = ask(served, max_tokens=4)
    assert cut["finish_reason"] == "length"
    assert (cut["message"]["content"], cut["message"]["reasoning_content"]) == (None, "A sum.")


def test_the_prompt_may_open_the_thoughts(backend: ReadingBackend, served: Served) -> None:
    backend.script = ["A sum.", "</think>", "Four."]
    backend.opens = "<think>\n"
    choice, usage = ask(served, tools=[WEATHER], reasoning_effort="low")
    assert (choice["message"]["content"], choice["message"]["reasoning"]) == ("Four.", "A sum.")
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 2}
    prompt = backend.calls[-1][1]["prompts"][0].text
    assert prompt == "reasoning_effort=low,user:Hello;assistant:<think>\n"
    backend.opens = ""
    choice, _ = ask(served)
    assert choice["message"]["content"] == "A sum.</think>Four."


def test_a_message_that_is_continued_may_have_opened_them(backend: ReadingBackend, served: Served) -> None:
    backend.script = ["m.", "</think>", "Four."]
    messages = [*ASK, {"role": "assistant", "content": "<think>A su"}]
    (choice,) = served.post(
        "/v1/chat/completions", {"model": "echo", "messages": messages, "continue_final_message": True}
    ).data["choices"]
    assert (choice["message"]["content"], choice["message"]["reasoning"]) == ("Four.", "m.")


@pytest.mark.parametrize(
    ("constraint", "thinks"),
    [
        ({"response_format": {"type": "json_object"}}, False),
        ({"structured_outputs": {"regex": "[a-z]+"}}, False),
        ({"structured_outputs": {"regex": r"[A-Z a-z.]+<\/think>Four\."}}, True),
        ({"structured_outputs": {"choice": ["A</think>B", "C</think>D"]}}, True),
    ],
)
def test_a_constraint_without_thoughts_is_content(
    backend: ReadingBackend, served: Served, constraint: dict[str, Any], thinks: bool
) -> None:
    backend.script = ["A sum.", "</think>", "Four."] if thinks else ["{}"]
    backend.opens = "<think>"
    choice, _ = ask(served, **constraint)
    assert choice["message"]["content"] == ("Four." if thinks else "{}")


@pytest.mark.parametrize(("special", "skipped"), [((), True), (("<think>", "</think>"), False)])
def test_special_tokens_are_kept_where_they_mark_thoughts(
    backend: ReadingBackend, served: Served, special: tuple[str, ...], skipped: bool
) -> None:
    backend.special = special
    served.chat()
    assert backend.calls[-1][1]["params"].skip_special_tokens is skipped
    served.chat(skip_special_tokens=True)
    assert backend.calls[-1][1]["params"].skip_special_tokens is True


def test_calls_in_the_models_own_form(backend: ReadingBackend, served: Served) -> None:
    backend.template = "<|python_start|>"
    backend.script = ["[weather(ci", "ty='Pa", "ris'), weather(", "city='Ro"]
    choice, _ = ask(served, tools=[WEATHER])
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    calls = [call["function"]["arguments"] for call in choice["message"]["tool_calls"]]
    assert calls == ['{"city": "Paris"}', '{"city": "Ro']
    single, _ = ask(served, tools=[WEATHER], parallel_tool_calls=False)
    assert [call["function"]["arguments"] for call in single["message"]["tool_calls"]] == calls[:1]
    plain, _ = ask(served)
    assert plain["message"]["content"] == "".join(backend.script)


def test_arguments_are_streamed_as_they_arrive(backend: ReadingBackend, served: Served) -> None:
    backend.script = [
        '<tool_call>{"name": "weather", "arguments": ',
        '{"city": ',
        '"Paris"}',
        "}</tool_call>",
    ]
    deltas = [
        chunk["choices"][0]["delta"]
        for chunk in events(served.chat(tools=[WEATHER], stream=True).body)
        if chunk != "[DONE]"
    ]
    fragments = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert fragments[0]["function"] == {"name": "weather", "arguments": '{"city": '}
    assert fragments[0]["type"] == "function"
    assert fragments[1:] == [{"index": 0, "function": {"arguments": '"Paris"}'}}]
    backend.script = ['{"city": ', '"Paris"}']
    forced = {"type": "function", "function": {"name": "weather"}}
    body = served.chat(tools=[WEATHER], tool_choice=forced, stream=True).body
    deltas = [chunk["choices"][0]["delta"] for chunk in events(body) if chunk != "[DONE]"]
    assert [c["function"]["arguments"] for d in deltas for c in d.get("tool_calls", ())] == backend.script


def test_a_backend_that_takes_answers_apart(backend: ReadingBackend, served: Served) -> None:
    """Its deltas have thoughts and calls of their own, which the gateway delivers."""
    backend.template = ""
    backend.deltas = (
        TokenDelta(text="", token_ids=(1, 2), reasoning="A sum."),
        TokenDelta(text="I look.", token_ids=(3,)),
        TokenDelta(text="", token_ids=(4,), tool_calls=(ToolCallDelta(0, "weather", '{"city'),)),
        TokenDelta(text="", token_ids=(5,), tool_calls=(ToolCallDelta(0, "", '": 1}'),)),
        TokenDelta(
            text="", token_ids=(6,), tool_calls=(ToolCallDelta(1, "weather", "{}"),), finish_reason="stop"
        ),
    )
    for fields in ({"tools": [WEATHER]}, {}):
        choice, usage = ask(served, **fields)
        message = choice["message"]
        assert (message["content"], message["reasoning_content"]) == ("I look.", "A sum.")
        assert [call["function"]["arguments"] for call in message["tool_calls"]] == ['{"city": 1}', "{}"]
        assert len({call["id"] for call in message["tool_calls"]}) == 2
        assert usage["completion_tokens_details"] == {"reasoning_tokens": 2}


def test_thoughts_of_earlier_answers_reach_the_template(backend: ReadingBackend, served: Served) -> None:
    for name in ("reasoning_content", "reasoning"):
        messages = [*ASK, {"role": "assistant", "content": "Four.", name: "A sum."}, *ASK]
        backend.template = "none"  # a model without thoughts: the backend renders
        served.post("/v1/chat/completions", {"model": "echo", "messages": messages})
        assert backend.calls[-1][1]["messages"][1]["reasoning_content"] == "A sum."
        messages[1] = {"role": "assistant", "content": None, name: "A sum."}  # as an answer that was cut
        assert served.post("/v1/chat/completions", {"model": "echo", "messages": messages}).status == 200
        sent = backend.calls[-1][1]["messages"][1]
        assert (sent["content"], sent["reasoning_content"]) == ("", "A sum.")


def test_the_fingerprint_is_that_of_the_system(backend: ReadingBackend, served: Served) -> None:
    found = {served.chat().data["system_fingerprint"] for _ in range(2)}
    found.add(served.post("/v1/completions", {"model": "echo", "prompt": "Hello"}).data["system_fingerprint"])
    assert len(found) == 1
    other = ReadingBackend()
    other.get_model_settings = lambda model_id: {"options": {"precision": "bf16"}}  # type: ignore[attr-defined]
    changed = Served(other, GatewaySettings(port=0))
    try:
        assert changed.chat().data["system_fingerprint"] not in found
    finally:
        changed.close()

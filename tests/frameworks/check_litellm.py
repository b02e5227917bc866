"""litellm: chats, completions, tools, typed answers and embeddings, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import litellm
import pytest
from common import EMBEDDING, LLM, MAX_TOKENS, URL, model_size

litellm.telemetry = False
ASK = [{"role": "user", "content": "What is the weather in Paris?"}]
OPTIONS: dict[str, Any] = {
    "model": f"openai/{LLM}", "api_base": URL, "api_key": "none", "messages": ASK, "temperature": 0,
    "max_tokens": MAX_TOKENS,
}  # fmt: skip
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "city", "schema": TOOL["function"]["parameters"], "strict": True},
}


def test_chat() -> None:
    answer = litellm.completion(**OPTIONS)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens > 0


async def test_chat_async() -> None:
    assert (await litellm.acompletion(**OPTIONS)).choices[0].message.content


def test_stream() -> None:
    chunks = list(litellm.completion(**OPTIONS, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    whole = litellm.stream_chunk_builder(chunks)
    assert whole.usage.completion_tokens > 0


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_that_must_be_called(choice: Any, stream: bool) -> None:
    answer = litellm.completion(**OPTIONS, tools=[TOOL], tool_choice=choice, stream=stream)
    if stream:
        answer = litellm.stream_chunk_builder(list(answer))
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "weather"
    assert set(json.loads(call.function.arguments)) == {"city"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "It rains."}
    messages = [*ASK, answer.choices[0].message.model_dump(), result]
    assert litellm.completion(**{**OPTIONS, "messages": messages}, tools=[TOOL]).choices[0].message.content


@model_size
def test_a_tool_that_may_be_called() -> None:
    assert litellm.completion(**OPTIONS, tools=[TOOL]).choices[0].message.tool_calls


def test_typed_answer() -> None:
    answer = litellm.completion(**OPTIONS, response_format=SCHEMA)
    assert set(json.loads(answer.choices[0].message.content)) == {"city"}


def test_text_completion() -> None:
    options = {key: value for key, value in OPTIONS.items() if key != "messages"}
    answer = litellm.text_completion(
        **{**options, "model": f"text-completion-openai/{LLM}"}, prompt="The sky is"
    )
    assert answer.choices[0].text


def test_embedding() -> None:
    found = litellm.embedding(
        model=f"openai/{EMBEDDING}", api_base=URL, api_key="none", input=["a cat", "a dog"]
    )
    assert [len(item["embedding"]) for item in found.data] == [384, 384]


def test_an_error_has_its_class() -> None:
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**{**OPTIONS, "model": "openai/nothing"})
    long = [{"role": "user", "content": "word " * 20000}]
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**{**OPTIONS, "messages": long})

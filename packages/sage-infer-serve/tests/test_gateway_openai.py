"""Every endpoint by OpenAI's own client."""

from __future__ import annotations

import json

import openai
import pytest
from gateway_backend import EchoBackend
from gateway_served import Served

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather at a place.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ASK = [{"role": "user", "content": "hello big world"}]


def test_chat(served: Served) -> None:
    answer = served.client().chat.completions.create(model="echo", messages=ASK)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "hello big world ")
    assert choice.finish_reason == "stop"
    assert (answer.object, answer.model) == ("chat.completion", "echo")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        3,
        3,
        6,
    )
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 1
    assert answer.id.startswith("chatcmpl-")
    assert answer.id.endswith(answer._request_id or "?")


def test_chat_stream(served: Served) -> None:
    stream = served.client().chat.completions.create(model="echo", messages=ASK, stream=True, max_tokens=2)
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].delta.content for c in chunks] == ["", "hello ", "big ", None]
    assert [c.choices[0].finish_reason for c in chunks] == [None, None, None, "length"]
    assert len({c.id for c in chunks}) == 1
    assert all(c.usage is None for c in chunks)


def test_chat_stream_with_usage(served: Served) -> None:
    stream = served.client().chat.completions.create(
        model="echo", messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert all(c.usage is None and c.choices for c in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == 6


def test_several_completions(served: Served) -> None:
    answer = served.client().chat.completions.create(model="echo", messages=ASK, n=3)
    assert [(c.index, c.message.content) for c in answer.choices] == [
        (i, "hello big world ") for i in range(3)
    ]
    texts = ["", "", ""]
    reasons = {}
    for chunk in served.client().chat.completions.create(model="echo", messages=ASK, n=3, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    assert texts == ["hello big world "] * 3
    assert reasons == {0: "stop", 1: "stop", 2: "stop"}


def test_log_probabilities(served: Served) -> None:
    create = served.client().chat.completions.create
    answer = create(model="echo", messages=ASK, logprobs=True, top_logprobs=2)
    logs = answer.choices[0].logprobs
    assert logs is not None
    assert logs.content is not None
    assert [one.token for one in logs.content] == ["hello ", "big ", "world "]
    assert [len(one.top_logprobs) for one in logs.content] == [2, 2, 2]
    assert logs.content[0].bytes == list(b"hello ")
    streamed = [
        one.token
        for chunk in create(model="echo", messages=ASK, logprobs=True, stream=True)
        if chunk.choices[0].logprobs is not None
        for one in chunk.choices[0].logprobs.content or []
    ]
    assert streamed == ["hello ", "big ", "world "]


def test_tool_calls(backend: EchoBackend, served: Served) -> None:
    backend.script = [
        "Let me look. ",
        "<tool",
        '_call>{"name": "weather", "argum',
        'ents": {"city": "Paris"}}</tool_call>',
    ]
    create = served.client().chat.completions.create
    answer = create(model="echo", messages=ASK, tools=[WEATHER])  # type: ignore[list-item]
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me look."
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Paris"})
    assert backend.calls[-1][1]["tools"] == [WEATHER]

    chunks = list(create(model="echo", messages=ASK, tools=[WEATHER], stream=True))  # type: ignore[list-item]
    said = "".join(c.choices[0].delta.content or "" for c in chunks)
    calls = [call for c in chunks for call in c.choices[0].delta.tool_calls or []]
    assert said == "Let me look."
    assert [c.function.name for c in calls if c.function] == ["weather"]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"

    history = [
        *ASK,
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "rain"},
    ]
    backend.script = None
    create(model="echo", messages=history, tools=[WEATHER])  # type: ignore[arg-type, list-item]
    sent = backend.calls[-1][1]["messages"]
    assert sent[1]["tool_calls"][0]["function"]["arguments"] == {
        "city": "Paris"
    }  # templates write it out themselves


def test_a_tool_that_must_be_called(backend: EchoBackend, served: Served) -> None:
    """A named tool, or any tool, is forced by guided decoding; its answer is the call."""
    create = served.client().chat.completions.create
    backend.script = ['{"city": ', '"Rome"}']
    choice = {"type": "function", "function": {"name": "weather"}}
    answer = create(model="echo", messages=ASK, tools=[WEATHER], tool_choice=choice)  # type: ignore[arg-type, list-item]
    message = answer.choices[0].message
    assert message.content is None
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.arguments == '{"city": "Rome"}'  # type: ignore[union-attr]
    assert backend.calls[-1][1]["params"].guided.json_schema == WEATHER["function"]["parameters"]  # type: ignore[index]

    backend.script = ['{"name": "weather", "arguments": {"city": "Rome"}}']
    for stream in (False, True):
        result = create(model="echo", messages=ASK, tools=[WEATHER], tool_choice="required", stream=stream)  # type: ignore[call-overload]
        found = (
            [c for chunk in result for c in chunk.choices[0].delta.tool_calls or []]
            if stream
            else result.choices[0].message.tool_calls
        )
        assert [(c.function.name, c.function.arguments) for c in found] == [("weather", '{"city": "Rome"}')]
    answer = create(model="echo", messages=ASK, tools=[WEATHER], tool_choice="none")  # type: ignore[list-item]
    assert backend.calls[-1][1]["tools"] is None
    assert answer.choices[0].finish_reason == "stop"


def test_a_truncated_call_is_returned(backend: EchoBackend, served: Served) -> None:
    create = served.client().chat.completions.create
    backend.script = ['{"name": "weather", "arguments": {"city": ', '"Rome"', "}}"]
    answer = create(model="echo", messages=ASK, tools=[WEATHER], tool_choice="required", max_tokens=2)  # type: ignore[list-item]
    assert answer.choices[0].finish_reason == "length"
    (call,) = answer.choices[0].message.tool_calls or ()
    assert call.function.arguments == '{"city": "Rome"'  # type: ignore[union-attr]


@pytest.mark.parametrize("stream", [False, True])
def test_one_call_where_calls_may_not_be_parallel(backend: EchoBackend, served: Served, stream: bool) -> None:
    create = served.client().chat.completions.create
    call = '<tool_call>{"name": "weather", "arguments": {"day": %d}}</tool_call>'
    backend.script = ["Wait. ", call % 1, "\n", call % 2, " Done."]
    for parallel, count, content in ((False, 1, "Wait."), (True, 2, "Wait. Done.")):
        result = create(  # type: ignore[call-overload]
            model="echo", messages=ASK, tools=[WEATHER], parallel_tool_calls=parallel, stream=stream
        )
        said = [c.choices[0].delta for c in result] if stream else [result.choices[0].message]
        calls = [call.function.arguments for one in said for call in one.tool_calls or []]
        assert calls == ['{"day": 1}', '{"day": 2}'][:count]
        assert "".join(one.content or "" for one in said) == content


def test_formats_of_the_answer(backend: EchoBackend, served: Served) -> None:
    create = served.client().chat.completions.create
    create(model="echo", messages=ASK, response_format={"type": "json_object"})
    assert backend.calls[-1][1]["params"].guided.json_schema == {"type": "object"}
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    create(
        model="echo",
        messages=ASK,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": schema, "strict": True},
        },
    )
    assert backend.calls[-1][1]["params"].guided.json_schema == schema
    create(model="echo", messages=ASK, response_format={"type": "text"})
    assert backend.calls[-1][1]["params"].guided is None
    assert served.chat(guided_json=json.dumps(schema)).status == 200
    assert backend.calls[-1][1]["params"].guided.json_schema == schema
    for kind in ("json_object", "json_schema"):  # as in llama.cpp
        form = {"type": kind, "schema": schema}
        assert served.chat(response_format=form).status == 200
        assert backend.calls[-1][1]["params"].guided.json_schema == schema


def test_completions(served: Served) -> None:
    create = served.client().completions.create
    answer = create(model="echo", prompt=["a b", "c d e"], echo=True, n=2)
    assert [(c.index, c.text) for c in answer.choices] == [
        (0, "a ba b "),
        (1, "a ba b "),
        (2, "c d ec d e "),
        (3, "c d ec d e "),
    ]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 10
    texts = ["", ""]
    for chunk in create(
        model="echo", prompt=["a b", "c d e"], stream=True, stream_options={"include_usage": True}
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == ["a b ", "c d e "]
    assert chunk.usage is not None
    assert chunk.usage.completion_tokens == 5
    logs = create(model="echo", prompt="a b", logprobs=1).choices[0].logprobs
    assert logs is not None
    assert (logs.tokens, logs.text_offset) == (["a ", "b "], [0, 2])
    assert create(model="echo", prompt=[5, 6]).choices[0].text == "5 6 "


def test_embeddings(served: Served) -> None:
    create = served.client().embeddings.create
    for encoding in ("base64", "float"):
        answer = create(model="vectors", input=["ae", "iii"], encoding_format=encoding)  # type: ignore[arg-type]
        assert answer.usage.prompt_tokens == 5
        assert answer.model == "vectors"
    assert [d.embedding for d in create(model="vectors", input=["ae", "iii"]).data] == [
        [1, 1, 0, 0],
        [0, 0, 3, 0],
    ]
    assert create(model="vectors", input="ae", dimensions=1).data[0].embedding == [1.0]
    assert create(model="vectors", input=[[7, 8], [9]]).data[0].embedding == [2, 7, 0, 1]
    many = create(model="vectors", input=["a" * (i + 1) for i in range(100)])  # written in parts
    assert [d.embedding[0] for d in many.data] == [i + 1 for i in range(100)]
    with pytest.raises(openai.BadRequestError, match="has 4 dimensions"):
        create(model="vectors", input="a", dimensions=9)


def test_models(served: Served) -> None:
    client = served.client()
    assert [m.id for m in client.models.list()] == ["echo", "vectors", "scores"]
    assert client.models.retrieve("vectors").owned_by == "sage-infer"
    with pytest.raises(openai.NotFoundError, match="no model 'owner/name'"):
        client.models.retrieve("owner/name")


def test_errors_are_those_that_the_client_knows(backend: EchoBackend, served: Served) -> None:
    client = served.client()
    with pytest.raises(openai.NotFoundError, match="no model 'nope'") as unknown:
        client.chat.completions.create(model="nope", messages=ASK)  # type: ignore[arg-type]
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError, match="has the type embedding and cannot chat; use echo"):
        client.chat.completions.create(model="vectors", messages=ASK)  # type: ignore[arg-type]
    with pytest.raises(openai.NotFoundError, match="has the type llm and cannot embed; use vectors"):
        client.embeddings.create(model="echo", input="x")
    with pytest.raises(openai.BadRequestError, match="temperature: expected `float` <= 2") as wrong:
        client.chat.completions.create(model="echo", messages=ASK, temperature=3)  # type: ignore[arg-type]
    assert wrong.value.param == "temperature"


def test_rerank_and_tokens(served: Served) -> None:
    """What OpenAI's client has no method for, by its way to send anything."""
    client = served.client()
    body = {
        "model": "scores",
        "query": "big world",
        "documents": ["none", "big big world", {"text": "a world"}],
        "top_n": 2,
    }
    answer = client.post("/rerank", body=body, cast_to=object)
    assert answer["results"] == [  # type: ignore[index]
        {"index": 1, "relevance_score": 2.0, "document": {"text": "big big world"}},
        {"index": 2, "relevance_score": 1.0, "document": {"text": "a world"}},
    ]
    cohere = served.post("/v2/rerank", body).data
    assert cohere["results"][0] == {"index": 1, "relevance_score": 2.0}
    assert cohere["meta"]["tokens"] == {"input_tokens": 6}

"""Request validation: errors name the location, and parameters reach the backend."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from gateway_backend import EchoBackend, TokenizingBackend
from gateway_served import Served, chat_body
from hypothesis import given
from hypothesis import strategies as st
from sage_infer.schemas import RequestOptions
from sage_infer_serve.http.errors import HTTPError
from sage_infer_serve.openai.schema import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    RerankRequest,
    decode,
)

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "x"}
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        (CHAT, {"model": "echo"}, "messages", "messages is missing"),
        (CHAT, {"model": "echo", "messages": []}, "messages", "expected `array` of length >= 1"),
        (CHAT, {"model": "echo", "messages": [{"content": "x"}]}, "messages[0].role", "messages[0].role is missing"),
        (CHAT, {"model": "echo", "messages": [{"role": "robot"}]}, "messages[0].role", "invalid enum value 'robot'"),
        (CHAT, {"model": "echo", "messages": [{"role": "user"}]}, "messages[0].content", "content is missing"),
        (CHAT, {"model": "echo", "messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "is missing"),  # noqa: E501
        (
            CHAT, {"model": "echo", "messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text", "is missing",
        ),
        (
            CHAT,
            {"model": "echo", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},  # noqa: E501
            "messages[0].content[0]", "this model supports text only",
        ),
        (CHAT, chat_body(top_logprobs=2), "top_logprobs", "requires logprobs"),
        (CHAT, chat_body(stream_options={}), "stream_options", "requires"),
        (CHAT, chat_body(tool_choice="auto"), "tool_choice", "requires tools"),
        (CHAT, chat_body(tools=[TOOL, TOOL]), "tools[1].function.name", "'f' is repeated"),
        (
            CHAT, chat_body(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "g"}}),
            "tool_choice.function.name", "unknown tool 'g'; available: f",
        ),
        (CHAT, chat_body(logit_bias={"5": 1}), "logit_bias", "not supported"),
        (CHAT, chat_body(bad_words=["a"]), "bad_words", "not supported"),
        (CHAT, chat_body(allowed_token_ids=[1]), "allowed_token_ids", "not supported"),
        (CHAT, chat_body(structured_outputs={"regex": "a", "choice": ["a"]}), "structured_outputs", "exactly one of"),
        (CHAT, chat_body(structured_outputs={}), "structured_outputs", "one of json, regex, grammar and choice"),
        (CHAT, chat_body(structured_outputs={"structural_tag": "{}"}), "structured_outputs", "structural_tag"),
        (CHAT, chat_body(structured_outputs={"json": "{"}), "structured_outputs.json", "must be a JSON Schema"),
        (CHAT, chat_body(structured_outputs={"regex": "a"}, guided_regex="a"), "structured_outputs", "exclusive"),
        (
            CHAT, chat_body(structured_outputs={"regex": "a"}, response_format={"type": "json_object"}),
            "response_format", "exclusive",
        ),
        (CHAT, chat_body(functions=[{}]), "functions", "use tools and tool_choice"),
        (CHAT, chat_body(modalities=["audio"]), "modalities", "not supported"),
        (CHAT, chat_body(response_format={"type": "json_schema"}), "response_format.json_schema", "is missing"),
        (
            CHAT, chat_body(response_format={"type": "json_schema", "json_schema": {"name": "a"}}),
            "response_format.json_schema.schema", "is missing",
        ),
        (
            CHAT, chat_body(response_format={"type": "json_schema", "schema": {}, "json_schema": {"name": "a"}}),
            "response_format.json_schema", "response_format.schema are mutually exclusive",
        ),
        (
            CHAT, chat_body(response_format={"type": "json_object", "json_schema": {"name": "a", "schema": {}}}),
            "response_format.json_schema", "type json_object are mutually exclusive",
        ),
        (CHAT, chat_body(response_format={"type": "json_object"}, guided_regex="a"), "response_format", "exclusive"),
        (CHAT, chat_body(guided_choice=["a"], guided_regex="a"), None, "exactly one of"),
        (CHAT, chat_body(min_tokens=5, max_tokens=2), None, "min_tokens: must be ≤ max_tokens"),
        (
            CHAT, chat_body(tools=[TOOL], tool_choice="required", response_format={"type": "json_object"}),
            "tool_choice", "mutually exclusive",
        ),
        ("/v1/completions", {"model": "echo", "prompt": ""}, "prompt", "is empty"),
        ("/v1/completions", {"model": "echo", "prompt": ["a", ""]}, "prompt[1]", "is empty"),
        ("/v1/completions", {"model": "echo", "prompt": ["a", 5]}, "prompt[1]", "cannot be mixed"),
        ("/v1/completions", {"model": "echo", "prompt": "a", "suffix": "b"}, "suffix", "not supported"),
        ("/v1/completions", {"model": "echo", "prompt": "a", "best_of": 2}, "best_of", "not supported"),
        ("/v1/completions", {"model": "echo", "prompt": "a", "echo": True, "logprobs": 1}, "echo", "not supported"),
        ("/v1/completions", {"model": "echo", "prompt": [1], "echo": True}, "echo", "not supported"),
        ("/v1/completions", {"model": "echo", "prompt": "a", "stream_options": {}}, "stream_options", "requires"),
        ("/v1/embeddings", {"model": "vectors", "input": []}, "input", "length >= 1"),
        ("/v1/embeddings", {"model": "vectors", "input": ["a", ""]}, "input[1]", "is empty"),
        ("/v1/rerank", {"model": "scores", "query": "a", "documents": []}, "documents", "length >= 1"),
        ("/v1/rerank", {"model": "scores", "query": "a", "documents": ["b"], "top_n": 0}, "top_n", ">= 1"),
        ("/tokenize", {"model": "echo"}, "prompt", "exactly one of prompt and messages"),
    ],
)  # fmt: skip
def test_mistakes_are_named(
    backend: EchoBackend, served: Served, path: str, body: dict[str, Any], param: str | None, message: str
) -> None:
    answer = served.post(path, body)
    assert answer.status == 400, answer.body
    assert message in answer.error["message"]
    assert answer.error["param"] == param
    assert not backend.open


def test_parameters_reach_the_backend(backend: EchoBackend, served: Served) -> None:
    served.chat(
        temperature=0.5, top_p=0, top_k=-1, min_p=0.1, seed=-1, stop="end", presence_penalty=1, frequency_penalty=-1,
        repetition_penalty=1.5, max_tokens=7, max_completion_tokens=5, min_tokens=2, stop_token_ids=[3], ignore_eos=True,  # noqa: E501
        skip_special_tokens=False, priority=3, logprobs=True,
    )  # fmt: skip
    name, asked = backend.calls[-1]
    params = asked["params"]
    assert (name, asked["options"], asked["model"]) == (
        "chat", RequestOptions(tenant="127.0.0.1", priority=3), "echo",
    )  # fmt: skip
    assert 0 < params.top_p < 1e-6
    assert (params.temperature, params.top_k, params.min_p, params.seed) == (0.5, 0, 0.1, 2**63 - 1)
    assert (params.stop, params.stop_token_ids, params.ignore_eos) == (("end",), (3,), True)
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (1, -1, 1.5)
    assert (params.max_tokens, params.min_tokens, params.logprobs, params.skip_special_tokens) == (
        5,
        2,
        0,
        False,
    )


@pytest.mark.parametrize(
    ("asked", "field", "value"),
    [
        ({"json": {"type": "integer"}}, "json_schema", {"type": "integer"}),
        ({"json": '{"type": "integer"}'}, "json_schema", {"type": "integer"}),
        ({"json_object": True}, "json_schema", {"type": "object"}),
        ({"regex": "[ab]+"}, "regex", "[ab]+"),
        ({"grammar": "start: A"}, "grammar", "start: A"),
        ({"choice": ["a", "b"]}, "choice", ("a", "b")),
    ],
)
def test_structured_outputs_are_constraints(
    backend: EchoBackend, served: Served, asked: dict[str, Any], field: str, value: Any
) -> None:
    for path, body in ((CHAT, chat_body()), ("/v1/completions", {"model": "echo", "prompt": "x"})):
        assert served.post(path, {**body, "structured_outputs": asked}).status == 200
        assert getattr(backend.calls[-1][1]["params"].guided, field) == value


def test_calls_and_results_may_have_empty_lists_of_parts(backend: EchoBackend, served: Served) -> None:
    """Frameworks send them for calls without a text, and for results of MCP tools without content."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [], "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": []},
    ]
    assert served.post(CHAT, {"model": "echo", "messages": messages}).status == 200
    assert [message["content"] for message in backend.calls[-1][1]["messages"]] == ["a", "", ""]
    messages[0]["content"] = []
    assert served.post(CHAT, {"model": "echo", "messages": messages}).error["param"] == "messages[0].content"


def test_a_byte_order_mark_is_no_part_of_the_body(served: Served) -> None:
    body = b"\xef\xbb\xbf" + json.dumps(chat_body()).encode()
    assert served.ask("POST", CHAT, body, content_type="application/json").status == 200


def test_messages_have_the_format_of_templates(backend: EchoBackend, served: Served) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": "be short"},
        {"role": "user", "content": parts, "name": "Ann"},
    ]
    served.post(CHAT, {"model": "echo", "messages": messages})
    assert backend.calls[-1][1]["messages"] == [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "a\nb", "name": "Ann"},
    ]


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ('{"city": "Rome"}', {"city": "Rome"}),
        ("", {}),
        ('{"city":', '{"city":'),
        ('{"a": NaN}', '{"a": NaN}'),
        ('{"city": "\\ud83d"}', '{"city": "\\ud83d"}'),
        ("{'city': 'Rome'}", "{'city': 'Rome'}"),
        ('"Rome"', '"Rome"'),
        ("[" * 5000, "[" * 5000),
    ],
)
def test_calls_that_came_before_may_have_any_arguments(
    backend: EchoBackend, served: Served, written: str, sent: object
) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": written}}
    messages = [USER, {"role": "assistant", "tool_calls": [call]}, {**USER, "content": "go on"}]
    assert served.post(CHAT, {"model": "echo", "messages": messages}).status == 200
    assert backend.calls[-1][1]["messages"][1]["tool_calls"][0]["function"]["arguments"] == sent


def test_special_tokens_are_kept_where_calls_are_read(backend: EchoBackend, served: Served) -> None:
    served.chat(tools=[TOOL])
    assert backend.calls[-1][1]["params"].skip_special_tokens is False
    served.chat(tools=[TOOL], tool_choice="none")
    assert backend.calls[-1][1]["params"].skip_special_tokens is True


@pytest.mark.parametrize(
    ("headers", "code", "says"),
    [
        ({"content_encoding": "gzip"}, "unsupported_content_encoding", "content-encoding 'gzip'"),
        ({"content_encoding": "ZSTD, br"}, "unsupported_content_encoding", "content-encoding 'zstd, br'"),
        ({"content_type": "application/x-www-form-urlencoded"}, "unsupported_media_type", "application/json"),
        ({"content_type": "Multipart/Form-Data; boundary=x"}, "unsupported_media_type", "application/json"),
    ],
)
def test_bodies_that_are_no_plain_json_are_refused(
    served: Served, headers: dict[str, str], code: str, says: str
) -> None:
    for path in (CHAT, "/v1/embeddings", "/tokenize"):
        answer = served.post(path, chat_body(), **headers)
        assert (answer.status, answer.error["code"]) == (415, code)
        assert says in answer.error["message"]
        assert "accept" in answer.headers or answer.headers["accept-encoding"] == "identity"


def test_other_types_of_content_are_read_as_json(served: Served) -> None:
    for headers in ({"content_type": "text/plain"}, {"content_encoding": "identity"}, {"content_type": ""}):
        assert served.post(CHAT, chat_body(), **headers).status == 200


def test_fields_without_effect_are_named(
    backend: EchoBackend, serve: Callable[..., Served], caplog: pytest.LogCaptureFixture
) -> None:
    served = serve(backend)
    strange = {
        "unknown": 1,
        "metadata": {},
        "stream_options": None,
        "store": None,
        "a\r\nb": 1,
        "temperature": 1,
    }
    for stream in (False, True):
        answer = served.chat(stream=stream, **strange)
        assert answer.status == 200
        assert answer.headers["x-sage-ignored-fields"] == "unknown, metadata, ..."
    assert "x-sage-ignored-fields" not in served.chat().headers
    wrong = served.post("/v1/embeddings", {"model": "nope", "input": "a", "user_id": 1})
    assert (wrong.status, wrong.headers["x-sage-ignored-fields"]) == (404, "user_id")
    many = served.chat(**{f"field_{i}": i for i in range(100)}).headers["x-sage-ignored-fields"]
    assert many.split(", ") == [*(f"field_{i}" for i in range(16)), "..."]
    logged = [record.getMessage() for record in caplog.records if "has no effect" in record.getMessage()]
    assert sum("field unknown " in line for line in logged) == 1
    strict = serve(backend, strict=True)
    assert strict.chat(metadata={}, user="me").headers["x-sage-ignored-fields"] == "metadata, user"


def test_unknown_fields_are_refused_in_strict_mode(
    backend: EchoBackend, serve: Callable[..., Served]
) -> None:
    served = serve(backend, strict=True)
    for body, place in (
        (chat_body(unknown=1), "unknown"),
        ({"model": "echo", "messages": [{**USER, "mood": "good"}]}, "messages[0].mood"),
        (chat_body(tools=[{**TOOL, "function": {"name": "f", "x": 1}}]), "tools[0].function.x"),
        (chat_body(stream=True, stream_options={"x": 1}), "stream_options.x"),
    ):
        answer = served.post(CHAT, body)
        assert (answer.status, answer.error["param"], answer.error["code"]) == (400, place, "unknown_field")
    parameters = {"type": "object", "properties": {"anything": {}}}  # a schema is the caller's own
    known = chat_body(
        store=True,
        metadata={},
        user="me",
        tools=[{**TOOL, "function": {"name": "f", "parameters": parameters}}],
    )
    assert served.post(CHAT, known).status == 200


def test_tokens_where_the_backend_shows_them(serve: Callable[..., Served]) -> None:
    served = serve(TokenizingBackend())
    assert served.post("/tokenize", {"model": "echo", "prompt": "ab"}).data == {
        "count": 2, "max_model_len": None, "tokens": [97, 98],
    }  # fmt: skip
    chat = served.post(
        "/tokenize", {"model": "echo", "messages": [USER], "add_generation_prompt": False}
    ).data
    assert "".join(map(chr, chat["tokens"])) == "user:x;"
    assert served.post("/detokenize", {"model": "echo", "tokens": [97, 98]}).data == {"prompt": "ab"}
    assert served.post("/tokenize", {"model": "nope", "prompt": "ab"}).status == 404


@pytest.mark.parametrize(
    ("fields", "variables"),
    [
        ({}, None),
        (
            {"chat_template_kwargs": {"enable_thinking": False, "x": [1]}},
            {"enable_thinking": False, "x": [1]},
        ),
        ({"enable_thinking": True}, {"enable_thinking": True}),
        ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "none", "enable_thinking": False}),
        (
            {"enable_thinking": False, "chat_template_kwargs": {"enable_thinking": True}},
            {"enable_thinking": True},
        ),
    ],
)
def test_variables_of_the_template(
    backend: EchoBackend, served: Served, fields: dict[str, Any], variables: dict[str, Any] | None
) -> None:
    assert served.chat(**fields).status == 200
    assert backend.calls[-1][1]["template_variables"] == variables


def test_the_last_message_is_continued(serve: Callable[..., Served]) -> None:
    backend = TokenizingBackend()
    served = serve(backend)
    last = {"role": "assistant", "content": "The ans "}
    for fields, prompt in (
        ({"continue_final_message": True}, "user:x;assistant:The ans "),
        ({"continue_final_message": True, "enable_thinking": False},
         "enable_thinking=False,user:x;assistant:The ans "),
        ({"add_generation_prompt": False}, "user:x;assistant:The ans ;"),
    ):  # fmt: skip
        body = chat_body(messages=[USER, last], **fields)
        assert served.post(CHAT, body).status == 200
        name, asked = backend.calls[-1]
        assert (name, [p.text for p in asked["prompts"]]) == ("generate", [prompt])
        tokens = served.post("/tokenize", body).data["tokens"]
        assert "".join(map(chr, tokens)) == prompt
    for messages, fields in (
        ([USER], {}),
        ([USER, last], {"add_generation_prompt": True}),
        ([USER, {"role": "assistant", "content": "", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}]}], {}),
    ):  # fmt: skip
        answer = served.post(CHAT, chat_body(messages=messages, continue_final_message=True, **fields))
        assert (answer.status, answer.error["param"]) == (400, "continue_final_message")


def test_no_message_is_continued_where_the_backend_renders_none(served: Served) -> None:
    answer = served.chat(add_generation_prompt=False)
    assert (answer.status, answer.error["code"]) == (400, "unsupported_feature")


def test_tokens_where_it_does_not(served: Served) -> None:
    answer = served.post("/tokenize", {"model": "echo", "prompt": "ab"})
    assert (answer.status, answer.error["code"]) == (400, "unsupported_feature")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.sampled_from([ChatRequest, CompletionRequest, EmbeddingRequest, RerankRequest]),
    st.dictionaries(
        st.sampled_from(
            ["model", "messages", "prompt", "input", "query", "documents", "n", "stop", "tools", "stream"]
        ),
        json_values,
    )
    | json_values,
    st.booleans(),
)
def test_any_json_is_read_or_refused(kind: Any, data: Any, strict: bool) -> None:
    """No input reaches further than the reader, whatever it is."""
    import json

    refused: HTTPError | None = None
    try:
        decode(kind, json.dumps(data).encode("utf-8", "surrogatepass"), strict=strict)
    except HTTPError as error:
        refused = error
    if refused is not None:
        assert refused.status == 400
        assert refused.message

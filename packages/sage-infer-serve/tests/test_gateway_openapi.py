"""Fuzzed by schemathesis, from the gateway's own description and from what OpenAI publishes of its endpoints.

Every answer must be one that the description has, with the form that it has there, and none a server's error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import schemathesis
from gateway_backend import TokenizingBackend
from gateway_served import Served
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sage_infer_serve import GatewaySettings
from sage_infer_serve.http.headers import DEADLINE, IGNORED_FIELDS, OPTION_HEADERS
from sage_infer_serve.openapi import document
from sage_infer_serve.routes import ROUTES
from schemathesis.core import NOT_SET

OPENAI = json.loads((Path(__file__).parent / "data" / "openai_description.json").read_text("utf-8"))
OWN = document(ROUTES, "0")
MODELS = {"/v1/embeddings": "vectors", "/v1/rerank": "scores", "/v2/rerank": "scores", "/rerank": "scores"}
EXAMPLES = 60

fuzzing = settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Served]:
    served = Served(TokenizingBackend(), GatewaySettings(port=0))
    yield served
    served.close()


def operations(description: dict[str, Any]) -> list[Any]:
    loaded = schemathesis.openapi.from_dict(description)
    return [operation.ok() for operation in loaded.get_all_operations()]


def answer(served: Served, prefix: str, case: Any, model: bool) -> Any:
    """Send a case; where ``model`` is set, for a model that is there, so that it gets further than its name."""
    body = case.body
    path = prefix + case.formatted_path
    if isinstance(body, dict) and model and isinstance(body.get("model"), str):
        body = {**body, "model": MODELS.get(path, "echo")}
    if body is NOT_SET:
        return served.ask(case.method, path)
    data = body if isinstance(body, bytes) else json.dumps(body).encode("utf-8", "replace")
    return served.ask(case.method, path, data)


def check(found: Any, operation: Any, description: dict[str, Any]) -> None:
    """The answer is one that the description has."""
    assert found.status < 500, found.body
    if found.status >= 400:
        assert set(found.error) == {"message", "type", "param", "code"}
        return
    if found.headers["content-type"].startswith("text/event-stream"):
        assert found.body.endswith((b"data: [DONE]\n\n", b"}\n\n"))
        return
    content = operation.definition.raw["responses"]["200"]["content"]
    if "application/json" in content:
        validate(found.data, content["application/json"]["schema"], description)


def validate(data: Any, schema: dict[str, Any], description: dict[str, Any]) -> None:
    whole = {**nullable(schema), "components": nullable(description["components"])}
    jsonschema.Draft202012Validator(whole).validate(data)


def nullable(node: Any) -> Any:
    """OpenAPI 3.0's ``nullable``, which OpenAI's description still has in places, in the words of JSON Schema."""
    if isinstance(node, list):
        return [nullable(item) for item in node]
    if not isinstance(node, dict):
        return node
    found = {key: nullable(value) for key, value in node.items()}
    if found.pop("nullable", False) is True:
        return {"anyOf": [{"type": "null"}, found]}
    return found


CASES = [
    pytest.param(operation, valid, id=f"{operation.label}-{'valid' if valid else 'invalid'}")
    for operation in operations(OWN)
    for valid in (True, False)
    if valid or operation.body  # without a body there is nothing to get wrong
]


@pytest.mark.parametrize(("operation", "valid"), CASES)
def test_own_description(fuzzed: Served, operation: Any, valid: bool) -> None:
    mode = schemathesis.GenerationMode.POSITIVE if valid else schemathesis.GenerationMode.NEGATIVE

    @fuzzing
    @given(operation.as_strategy(generation_mode=mode), st.booleans())
    def run(case: Any, model: bool) -> None:
        found = answer(fuzzed, "", case, model)
        check(found, operation, OWN)

    run()


@pytest.mark.parametrize("operation", operations(OPENAI), ids=lambda o: o.label)
def test_openais_description(fuzzed: Served, operation: Any) -> None:
    """What OpenAI takes is answered in OpenAI's form, or refused because no engine here does it."""

    @fuzzing
    @given(operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE))
    def run(case: Any) -> None:
        found = answer(fuzzed, "/v1", case, True)
        if (
            isinstance(case.body, dict)
            and case.body.get("encoding_format") == "base64"
            and found.status == 200
        ):
            return  # the description has no form for these answers; OpenAI's client reads them (test_gateway_openai)
        check(found, operation, OPENAI)

    run()


@pytest.mark.parametrize("stream", [False, True])
def test_chunks_and_answers_have_openais_form(fuzzed: Served, stream: bool) -> None:
    """Plain requests, so that it is answers that are checked and not refusals."""
    from gateway_served import chat_body, events

    name = "CreateChatCompletionStreamResponse" if stream else "CreateChatCompletionResponse"
    for fields in ({}, {"n": 2}, {"logprobs": True, "top_logprobs": 2}, {"max_tokens": 1}):
        found = fuzzed.post("/v1/chat/completions", chat_body(stream=stream, **fields))
        data = [d for d in events(found.body) if d != "[DONE]"] if stream else [found.data]
        for one in data:
            validate(one, {"$ref": f"#/components/schemas/{name}"}, OPENAI)


def test_every_route_is_described() -> None:
    described = {(method.upper(), path) for path, item in OWN["paths"].items() for method in item}
    assert described == {(route.method, route.path) for route in ROUTES if route.summary}
    assert ("GET", "/v1/models/{model}") in described
    jsonschema.Draft202012Validator.check_schema(OWN["components"]["schemas"]["ChatRequest"])


def test_the_readme_lists_every_endpoint() -> None:
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| `(GET|POST) (.+?) \|", readme, re.MULTILINE)
    listed = {(method, path) for method, paths in rows for path in re.findall(r"/[^`, ]*", paths)}
    assert listed == {(route.method, route.path) for route in ROUTES if route.summary} | {("GET", "/")}


def test_the_description_is_served(fuzzed: Served) -> None:
    assert fuzzed.get("/openapi.json").data["paths"].keys() == OWN["paths"].keys()


def test_headers_of_requests_and_responses_are_described() -> None:
    assert OPTION_HEADERS[-1] == DEADLINE
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank"):
        operation = OWN["paths"][path]["post"]
        headers = {p["name"]: p for p in operation["parameters"] if p["in"] == "header"}
        assert set(headers) == set(OPTION_HEADERS)
        assert headers[DEADLINE]["schema"] == {"type": "integer", "minimum": 1, "maximum": 10**15 - 1}
        assert {"x-request-id", IGNORED_FIELDS} == set(operation["responses"]["200"]["headers"])
        assert "504" in operation["responses"]
    assert "parameters" not in OWN["paths"]["/tokenize"]["post"]
    assert set(OWN["paths"]["/health"]["get"]["responses"]["200"]["headers"]) == {"x-request-id"}


def test_described_headers_are_those_that_the_server_reads_and_sends(fuzzed: Served) -> None:
    body = b'{"model": "echo", "messages": [{"role": "user", "content": "x"}], "store": true}'
    found = fuzzed.ask("POST", "/v1/chat/completions", body, **{DEADLINE: "60000"})
    assert found.status == 200
    assert found.headers[IGNORED_FIELDS] == "store"
    assert found.headers["x-request-id"]
    assert fuzzed.ask("POST", "/v1/chat/completions", body, **{DEADLINE: "0"}).status == 400

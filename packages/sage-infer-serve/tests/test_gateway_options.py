"""Request options from keys, headers and fields to the backend, and the default model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from gateway_backend import EchoBackend
from gateway_served import Served
from sage_infer.contracts import ModelStatus
from sage_infer.errors import UnsupportedFeature
from sage_infer.schemas import ModelDescriptor, RequestOptions
from sage_infer_serve.http.auth import APIKey

USER = {"role": "user", "content": "x"}
CASES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [USER]},
    "/v1/completions": {"prompt": "x"},
    "/v1/embeddings": {"input": "x"},
    "/v1/rerank": {"query": "x", "documents": ["y"]},
}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def key(name: str) -> APIKey:
    return APIKey(name, hashlib.sha256(f"sk-{name}".encode()).digest())


def options_of(backend: EchoBackend) -> RequestOptions:
    found = backend.calls[-1][1]["options"]
    assert isinstance(found, RequestOptions)
    return found


@pytest.mark.parametrize("path", CASES)
def test_headers_and_the_key_become_options(
    backend: EchoBackend, serve: Callable[..., Served], path: str
) -> None:
    served = serve(backend, keys=[key("ann"), key("bob")])
    headers = {
        "x_session_id": "s1", "x_sage_chain": "rag", "x_sage_deadline_ms": "60000", "traceparent": PARENT,
        "tracestate": "a=b",
    }  # fmt: skip
    answer = served.post(path, CASES[path], authorization="Bearer sk-ann", **headers)
    assert answer.status == 200, answer.body
    options = options_of(backend)
    assert (options.tenant, options.session, options.chain) == ("ann", "s1", "rag")
    assert options.deadline is not None
    assert 0 < options.deadline <= 60
    assert options.trace == {"traceparent": PARENT, "tracestate": "a=b"}
    served.post(path, CASES[path], authorization="Bearer sk-bob", x_session_id="s1")
    other = options_of(backend)
    assert other.tenant == "bob"
    assert len({options.cache_salt, other.cache_salt, ""}) == 3, "tenants must not share KV"
    served.post(path, {**CASES[path], "cache_salt": options.cache_salt}, authorization="Bearer sk-bob")
    assert options_of(backend).cache_salt not in ("", options.cache_salt), (
        "a client chose another tenant's salt"
    )


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_salt_of_the_client_divides_its_cache(
    backend: EchoBackend, serve: Callable[..., Served], path: str
) -> None:
    def salts(served: Served, **headers: str) -> list[str]:
        found = []
        for fields in ({}, {"cache_salt": "one"}, {"cache_salt": "two"}, {"cache_salt": "one"}):
            assert served.post(path, {**CASES[path], **fields}, **headers).status == 200
            found.append(options_of(backend).cache_salt)
        return found

    assert salts(serve(backend)) == ["", "one", "two", "one"]
    served = serve(backend, keys=[key("ann"), key("bob")])
    anns, bobs = (salts(served, authorization=f"Bearer sk-{name}") for name in ("ann", "bob"))
    for found in anns, bobs:
        assert found[1] == found[3]
    assert len({*anns, *bobs, "", "one", "two"}) == 9
    for wrong in ("", 1, "x" * 513):
        answer = served.post(path, {**CASES[path], "cache_salt": wrong}, authorization="Bearer sk-ann")
        assert (answer.status, answer.error["param"]) == (400, "cache_salt")


def test_fields_of_generation_become_options(backend: EchoBackend, served: Served) -> None:
    served.chat(prompt_cache_key="turns", service_tier="flex", priority=2)
    assert options_of(backend) == RequestOptions(
        tenant="127.0.0.1", session="turns", service_class="flex", priority=2
    )
    served.chat(service_tier="auto")
    assert options_of(backend) == RequestOptions(tenant="127.0.0.1")


@pytest.mark.parametrize("value", ["0", "-5", "soon", "1.5", "²"])
def test_a_deadline_is_a_number_of_milliseconds(served: Served, value: str) -> None:
    answer = served.post(
        "/v1/embeddings", CASES["/v1/embeddings"], x_sage_deadline_ms=value.encode().decode("latin-1")
    )
    assert (answer.status, answer.error["param"]) == (400, "x-sage-deadline-ms")


def test_an_option_that_nothing_honours_is_refused(backend: EchoBackend, served: Served) -> None:
    backend.refuse = UnsupportedFeature("echo does not support options.deadline (feature deadline)")
    answer = served.post("/v1/completions", CASES["/v1/completions"], x_sage_deadline_ms="100")
    assert (answer.status, answer.error["code"]) == (400, "unsupported_feature")


class TestDefaultModels:
    def test_each_kind_of_work_has_its_own(self, backend: EchoBackend, served: Served) -> None:
        for (path, body), model in zip(CASES.items(), ("echo", "echo", "vectors", "scores"), strict=True):
            answer = served.post(path, body)
            assert answer.status == 200, answer.body
            assert answer.data["model"] == model
            assert backend.calls[-1][1]["model"] == model

    def test_a_ready_model_is_preferred(self, serve: Callable[..., Served]) -> None:
        class Two(EchoBackend):
            def list_models(self) -> list[ModelDescriptor]:
                asleep = ModelDescriptor(model_id="asleep", model_type="llm", model_path="/")
                return [asleep, *super().list_models()]

            def get_model_status(self, model_id: str) -> ModelStatus:
                if model_id == "asleep":
                    return ModelStatus(model_id=model_id, state="sleeping", since=0.0)
                return super().get_model_status(model_id)

        answer = serve(Two()).post("/v1/chat/completions", {"messages": [USER]})
        assert answer.data["model"] == "echo"

    def test_without_a_suitable_model_the_request_fails(self, serve: Callable[..., Served]) -> None:
        class NoReranker(EchoBackend):
            def list_models(self) -> list[ModelDescriptor]:
                return [m for m in super().list_models() if m.model_type != "reranker"]

        answer = serve(NoReranker()).post("/v1/rerank", CASES["/v1/rerank"])
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")

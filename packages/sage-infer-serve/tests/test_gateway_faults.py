"""Disconnecting clients, dying engines, reached limits, and shutdown."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Callable

import pytest
from gateway_backend import EchoBackend
from gateway_served import Served, chat_body, events, read_all, read_head, request_bytes
from sage_infer.contracts import Health
from sage_infer.errors import (
    BackendUnavailable,
    ContextLengthExceeded,
    EngineDead,
    InvalidRequest,
    OutOfMemory,
    Overloaded,
    RequestCancelled,
    UnsupportedFeature,
)

CHAT = "/v1/chat/completions"


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "status", "code"),
        [
            (InvalidRequest("prompt has 900 tokens, the limit is 512"), 400, "invalid_request"),
            (ContextLengthExceeded("900 tokens, and the limit is 512"), 400, "context_length_exceeded"),
            (UnsupportedFeature("no LoRA here"), 400, "unsupported_feature"),
            (EngineDead("the engine stopped"), 503, "engine_dead"),
            (BackendUnavailable("not loaded"), 503, "backend_unavailable"),
            (OutOfMemory("no room"), 503, "out_of_memory"),
            (RequestCancelled("closed", by="close"), 503, "request_cancelled"),
            (RequestCancelled("too late", by="deadline"), 504, "deadline_exceeded"),
        ],
    )
    def test_a_backends_error_is_the_answer(
        self, backend: EchoBackend, served: Served, error: Exception, status: int, code: str
    ) -> None:
        backend.refuse = error
        answer = served.chat()
        assert answer.status == status
        assert answer.error["code"] == code
        assert answer.error["message"] == str(error)

    def test_overload_says_when_to_come_back(self, backend: EchoBackend, served: Served) -> None:
        backend.refuse = Overloaded("the queue is full", retry_after=1.25)
        answer = served.chat(stream=True)
        assert answer.status == 429
        assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("2", "1250")

    def test_a_bug_is_reported_by_request_id_only(
        self, backend: EchoBackend, served: Served, caplog: pytest.LogCaptureFixture
    ) -> None:
        backend.refuse = ZeroDivisionError("secret detail")
        answer = served.chat()
        assert answer.status == 500
        assert "secret" not in answer.body.decode()
        assert answer.headers["x-request-id"] in answer.error["message"]
        assert answer.headers["x-request-id"] in caplog.text

    def test_an_engine_that_dies_before_the_first_token(self, backend: EchoBackend, served: Served) -> None:
        backend.script, backend.fail = [], EngineDead("the engine stopped")
        for stream in (False, True):
            answer = served.chat(stream=stream)
            assert (answer.status, answer.error["code"]) == (503, "engine_dead")

    def test_an_engine_that_dies_inside_a_stream(self, backend: EchoBackend, served: Served) -> None:
        """What came before it is there, then an event with the error, and no [DONE]."""
        backend.fail = EngineDead("the engine stopped")
        answer = served.chat(stream=True)
        assert answer.status == 200
        *chunks, last = events(answer.body)
        assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks) == "hello big world "
        assert last["error"]["code"] == "engine_dead"
        assert served.chat().status == 503  # not streamed, it is a plain error
        backend.fail = None
        assert served.chat().status == 200

    def test_a_prompt_that_fails_beside_others(self, backend: EchoBackend, served: Served) -> None:
        backend.fail = EngineDead("the engine stopped")
        answer = served.post("/v1/completions", {"model": "echo", "prompt": ["a", "b"], "stream": True})
        assert list(events(answer.body))[-1]["error"]["code"] == "engine_dead"
        assert not backend.open


class TestClientsThatLeave:
    @pytest.mark.parametrize("stream", [False, True])
    def test_frees_the_engine(self, backend: EchoBackend, served: Served, stream: bool) -> None:
        backend.gate = served.call(asyncio.Event)
        with served.connect() as connection:
            connection.sendall(request_bytes(CHAT, chat_body(stream=stream)))
            served.until(lambda: backend.open, "the request did not arrive")
        served.until(lambda: backend.cancelled == 1, "the stream was not given up")
        served.until(lambda: not served.gateway.service.open, "the request is still open")
        assert not backend.open
        assert served.gateway.service.recorder.answers[CHAT, "echo", 499] == 1

    def test_in_the_middle_of_a_stream(self, backend: EchoBackend, served: Served) -> None:
        backend.script = ["word "] * 10_000
        backend.gate = served.call(asyncio.Event)
        with served.connect() as connection:
            connection.sendall(request_bytes(CHAT, chat_body(stream=True)))
            served.until(lambda: backend.open, "the request did not arrive")
            served.call(backend.gate.set)
            assert b"200 OK" in read_head(connection)
        served.until(lambda: backend.cancelled == 1, "the stream was not given up")

    def test_while_texts_are_embedded(self, backend: EchoBackend, served: Served) -> None:
        backend.embedding_gate = served.call(asyncio.Event)
        with served.connect() as connection:
            connection.sendall(request_bytes("/v1/embeddings", {"model": "vectors", "input": "x"}))
            served.until(lambda: backend.calls, "the request did not arrive")
        served.until(lambda: backend.embedding_cancelled == 1, "embedding was not given up")
        served.until(lambda: backend.aborted, "the call was not aborted")
        assert backend.aborted == [backend.calls[0][1]["request_id"]]

    def test_before_the_body_is_there(self, served: Served) -> None:
        with served.connect() as connection:
            connection.sendall(request_bytes(CHAT, chat_body())[:-5])
            served.until(lambda: served.gateway.service.receiving, "the request did not arrive")
        served.until(lambda: not served.gateway.service.receiving, "the request is still open")

    def test_a_client_that_does_not_read_holds_its_own_stream_only(
        self, backend: EchoBackend, served: Served
    ) -> None:
        """The stream waits for it instead of piling up in memory."""
        backend.script = ["x" * 60_000] * 400  # 24 MB: more than sockets take
        with served.connect() as connection:
            connection.sendall(request_bytes(CHAT, chat_body(stream=True)))
            served.until(lambda: len(backend.calls) == 1, "the request did not arrive")
            assert served.get("/health").status == 200
            head = read_head(connection)
            assert b"text/event-stream" in head
            total = len(head)
            while not head.endswith(b"0\r\n\r\n"):
                head = connection.recv(1 << 20)
                total += len(head)
        assert total > 24_000_000


class TestLimits:
    def test_open_requests(self, backend: EchoBackend, serve: Callable[..., Served]) -> None:
        served = serve(backend, max_open_requests=1)
        backend.gate = served.call(asyncio.Event)
        with served.connect() as connection:
            connection.sendall(request_bytes(CHAT, chat_body(), "Connection: close"))
            served.until(lambda: backend.open, "the request did not arrive")
            refused = served.chat()
            assert (refused.status, refused.error["code"]) == (429, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1
            assert served.get("/v1/models").status == 200  # what costs no engine time is answered
            served.call(backend.gate.set)
            assert b"200 OK" in read_all(connection)
        assert served.chat().status == 200

    def test_time_of_a_request(self, backend: EchoBackend, serve: Callable[..., Served]) -> None:
        served = serve(backend, request_timeout_s=0.05)
        backend.gate = served.call(asyncio.Event)
        while not backend.calls:  # on a busy machine, the time may be over before the engine is asked
            answer = served.chat()
            assert (answer.status, answer.error["code"]) == (504, "timeout")
        assert backend.cancelled == 1

    def test_time_of_a_stream(self, backend: EchoBackend, serve: Callable[..., Served]) -> None:
        served = serve(backend)
        backend.script = ["word "] * 10_000_000
        with served.connect() as connection:
            connection.sendall(request_bytes(CHAT, chat_body(stream=True), "Connection: close"))
            head = read_head(connection)
            assert b" 200 " in head.split(b"\r\n")[0]
            (exchange,) = served.gateway.service.open
            assert exchange._timer is not None
            served.call(exchange.stop_after, 0.0, "timeout")  # the stream has begun
            body = read_all(connection)
        assert b'"code":"timeout"' in body[-1000:]
        served.until(lambda: not served.gateway.service.open, "it is still open")

    def test_length_of_a_body(self, backend: EchoBackend, serve: Callable[..., Served]) -> None:
        served = serve(backend, max_body_bytes=1024)
        assert served.chat("x" * 900).status == 200
        answer = served.chat("x" * 1100)
        assert (answer.status, answer.error["code"]) == (413, "body_too_large")
        chunked = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        answer_bytes = served.raw(
            chunked + b"400\r\n" + b"x" * 1024 + b"\r\n400\r\n" + b"x" * 1024 + b"\r\n0\r\n\r\n"
        )
        assert b" 413 " in answer_bytes.split(b"\r\n")[0]


class TestTheEnd:
    def test_open_requests_end_and_new_ones_are_rejected(
        self, backend: EchoBackend, serve: Callable[..., Served]
    ) -> None:
        served = serve(backend, drain_timeout_s=300)
        backend.gate = served.call(asyncio.Event)
        kept = http.client.HTTPConnection(*served.address, timeout=300)
        kept.request("GET", "/ready")
        response = kept.getresponse()
        assert (response.status, response.read()) == (200, b'{"status":"ready","reason":""}')
        with served.connect() as connection:
            connection.sendall(request_bytes(CHAT, chat_body(stream=True)))
            served.until(lambda: backend.open, "the request did not arrive")
            served.gateway.service.draining = True  # as at SIGTERM, before uvicorn closes its connections
            kept.request("POST", CHAT, json.dumps(chat_body()), {"Content-Type": "application/json"})
            refused = kept.getresponse()
            assert (refused.status, refused.getheader("retry-after")) == (503, "1")
            refused.read()
            kept.request("GET", "/ready")
            assert kept.getresponse().status == 503
            served.call(served.running.drain)
            served.call(backend.gate.set)
            body = read_all(connection)
        assert b"[DONE]" in body
        kept.close()

    def test_after_the_timeout_open_requests_get_an_error(
        self, backend: EchoBackend, serve: Callable[..., Served]
    ) -> None:
        served = serve(backend, drain_timeout_s=0)
        backend.gate = served.call(asyncio.Event)
        with served.connect() as connection:
            connection.sendall(request_bytes(CHAT, chat_body(stream=True)))
            served.until(lambda: backend.open, "the request did not arrive")
            closing = threading.Thread(target=served.close)
            closing.start()
            body = read_all(connection)
            closing.join()
        assert b" 503 " in body
        assert b"shutting_down" in body
        assert backend.cancelled == 1

    def test_a_second_signal_ends_open_requests_immediately(
        self, backend: EchoBackend, served: Served
    ) -> None:
        backend.gate = served.call(asyncio.Event)
        with served.connect() as connection:
            connection.sendall(request_bytes(CHAT, chat_body()))
            served.until(lambda: backend.open, "the request did not arrive")
            served.call(served.running.drain)
            served.call(served.running.drain)
            assert b"shutting_down" in read_all(connection)

    def test_health_reports_a_dead_backend(self, backend: EchoBackend, served: Served) -> None:
        backend.status = Health(status="dead", reason="the engine stopped")
        answer = served.get("/health")
        assert (answer.status, answer.data) == (503, {"status": "dead", "reason": "the engine stopped"})
        assert served.get("/ready").data["reason"] == "the engine stopped"
        backend.status, backend.state = Health(status="ok"), "loading"
        assert served.get("/ready").data == {"status": "not ready", "reason": "no model is ready"}

"""Clients that close their writing side get the whole response; requests of those that disconnected are cancelled."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable

import pytest
from gateway_backend import EchoBackend
from gateway_served import Served, chat_body, events, read_all, request_bytes

CHAT = "/v1/chat/completions"
Serve = Callable[..., Served]


class OneDelta(asyncio.Event):
    """A gate that lets the first delta pass before it is opened."""

    passed = 0

    async def wait(self) -> bool:
        self.passed += 1
        return self.passed == 1 or await super().wait()


def half_closed(served: Served, data: bytes) -> socket.socket:
    connection = served.connect()
    connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)
    return connection


def old(data: bytes) -> bytes:
    return data.replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1)


def content(answer: bytes) -> str:
    """The text of one plain response, after checks of its head and its length."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"content-length: %d\r\n" % len(body) in head + b"\r\n"
    found: str = json.loads(body)["choices"][0]["message"]["content"]
    return found


def streamed(answer: bytes) -> str:
    """The text of a streamed response, chunked or not."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    if b"transfer-encoding: chunked" in head:
        parts, rest = b"", body
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            parts, rest = parts + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        body = parts
    found = list(events(body.replace(b":\n\n", b"")))
    assert found.pop() == "[DONE]"
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in found)


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_the_whole_response_arrives(backend: EchoBackend, served: Served, version: str, stream: bool) -> None:
    backend.gate = asyncio.Event()
    data = request_bytes(CHAT, chat_body(stream=stream))
    with half_closed(served, old(data) if version == "1.0" else data) as connection:
        first = connection.recv(1)  # sent early, because the server has seen the end of the request's side
        assert first == b"H"
        served.call(backend.gate.set)
        answer = first + read_all(connection)
    assert (streamed if stream else content)(answer) == "hello big world "
    assert not backend.cancelled


def test_an_immediate_response_arrives(served: Served) -> None:
    for _ in range(20):
        with half_closed(served, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n") as connection:
            assert read_all(connection).startswith(b"HTTP/1.1 200 ")
        with half_closed(served, request_bytes(CHAT, chat_body())) as connection:
            assert content(read_all(connection)) == "hello big world "


def test_a_slow_response_arrives_whatever_was_sent_early(
    backend: EchoBackend, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sage_infer_serve.http.protocol._PROBE_DELAYS_S", (0.001,))
    backend.gate = asyncio.Event()
    with half_closed(served, request_bytes(CHAT, chat_body())) as connection:
        early = b""
        while early != b"HTTP/1.1 ":
            early += connection.recv(1)
        served.call(backend.gate.set)
        assert content(early + read_all(connection)) == "hello big world "


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_stream_with_long_pauses_gets_comments(
    backend: EchoBackend, served: Served, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr("sage_infer_serve.http.protocol._PROBE_DELAYS_S", (0.001,))
    backend.gate = OneDelta()
    data = request_bytes(CHAT, chat_body(stream=True))
    with half_closed(served, old(data) if version == "1.0" else data) as connection:
        answer = b""
        while b"\n:\n\n" not in answer:
            answer += connection.recv(4096)
        served.call(backend.gate.set)
        answer += read_all(connection)
    assert streamed(answer) == "hello big world "


def test_pipelined_requests_are_answered_and_an_incomplete_one_is_not(
    backend: EchoBackend, served: Served
) -> None:
    whole = request_bytes(CHAT, chat_body("one")) + request_bytes(CHAT, chat_body("two"))
    for rest in (b"", request_bytes(CHAT, chat_body("three"))[:-1], b"POST /v1/chat/com"):
        backend.calls.clear()
        with half_closed(served, whole + rest) as connection:
            answers = read_all(connection).split(b"HTTP/1.1 200 OK")
        assert [
            json.loads(a.partition(b"\r\n\r\n")[2])["choices"][0]["message"]["content"] for a in answers[1:]
        ] == [
            "one ",
            "two ",
        ]
        assert len(backend.calls) == 2


def test_an_incomplete_request_is_dropped(backend: EchoBackend, served: Served) -> None:
    for data in (request_bytes(CHAT, chat_body())[:-1], b"GET /health HT", b""):
        with half_closed(served, data) as connection:
            assert read_all(connection) == b""
    served.until(lambda: not served.gateway.service.receiving, "its end")
    assert backend.calls == []


@pytest.mark.parametrize("half", [False, True], ids=["disconnected", "half-closed before"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_requests_of_clients_that_disconnected_are_cancelled(
    backend: EchoBackend, served: Served, half: bool, stream: bool
) -> None:
    backend.gate = asyncio.Event()  # nobody opens it
    connection = served.connect()
    connection.sendall(request_bytes(CHAT, chat_body(stream=stream)))
    served.until(lambda: backend.open, "a request")
    if half:
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b"H"
    connection.close()
    served.until(lambda: not backend.open and not served.gateway.service.open, "its end")
    assert backend.cancelled == 1


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_stream_that_has_begun_is_cancelled(backend: EchoBackend, served: Served, version: str) -> None:
    backend.gate = OneDelta()
    data = request_bytes(CHAT, chat_body(stream=True))
    connection = served.connect()
    connection.sendall(old(data) if version == "1.0" else data)
    answer = b""
    while b'"content":"hello ' not in answer:
        answer += connection.recv(4096)
    connection.close()
    served.until(lambda: not backend.open and not served.gateway.service.open, "its end")
    assert backend.cancelled == 1

"""Attacks with raw sockets: each gets a clean response, while other clients are served and memory stays flat."""

from __future__ import annotations

import gc
import json
import resource
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from gateway_backend import EchoBackend
from gateway_served import Served, chat_body, read_all, request_bytes
from sage_infer_serve.http.auth import APIKey, new_key
from sage_infer_serve.http.protocol import MAX_HEADER_BYTES

CHAT = "/v1/chat/completions"
MIB = 2**20


def status(response: bytes) -> int:
    """The status of the first response; every answer to an attack is whole and says that the connection ends."""
    assert response.startswith(b"HTTP/1.1 "), response[:80]
    return int(response.split(b" ", 2)[1])


def is_alive(served: Served) -> bool:
    return served.get("/health").status == 200 and served.chat().status == 200


def resident() -> int:
    """Memory of this process, which the gateway shares with its clients here."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    pytest.skip("no /proc here")


@pytest.mark.parametrize(
    "path",
    [
        "/dashboard/../app.py", "/dashboard/..%2fapp.py", "/dashboard/%2e%2e/%2e%2e/etc/passwd", "/../../../etc/passwd",
        "/dashboard/....//app.py", "/dashboard/%00", "/dashboard/..%c0%afapp.py", "/dashboard//etc/passwd",
        "/dashboard/index.html%00.js", "/dashboard/__init__.py", "/dashboard/..\\app.py", "/v1/models/../../etc/passwd",
    ],
)  # fmt: skip
def test_path_traversal(served: Served, path: str) -> None:
    answer = served.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert status(answer) in (400, 404)
    assert b"root:" not in answer
    assert b"import" not in answer
    assert is_alive(served)


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: 10\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 10",
        "Content-Length: 10\r\nContent-Length: 11",
        "Content-Length: 10, 11",
        "Content-Length: +10",
        "Content-Length: -1",
        "Content-Length: 0x10",
        "Content-Length: 99999999999999999999999",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding: xchunked",
        " Content-Length: 10",
        "X: a\rContent-Length: 10",
        "X: a\nContent-Length: 10\n\nGET /smuggled HTTP/1.1",
        "X\x00: a",
        "X: a\x00b",
        "no colon",
    ],
)
def test_header_smuggling(served: Served, head: str) -> None:
    """Heads that two parsers could read in two ways are refused, and nothing after them is taken for a request."""
    data = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n0\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"  # noqa: E501
    answer = served.raw(data.encode("latin-1"))
    assert 400 <= status(answer) < 500
    assert b'{"status":"ok"' not in answer, "what was hidden in the body was answered"
    assert is_alive(served)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS at a port without it
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x00" * 100,
        b"GET http://[::1 HTTP/1.1\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT evil:443 HTTP/1.1\r\nHost: evil\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_invalid_http(served: Served, data: bytes) -> None:
    assert 400 <= status(served.raw(data)) < 500
    assert is_alive(served)


def test_a_request_to_become_a_websocket_is_an_ordinary_one(served: Served) -> None:
    head = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"  # noqa: E501
    with served.connect() as connection:
        connection.sendall(head)
        assert connection.recv(65536).startswith(b"HTTP/1.1 ")
    assert is_alive(served)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe{}", b'{"model": "\xc3\x28"}', b'{"model": "\\ud800"}', b"[" * 100_000,
        b'{"a":' * 20_000, b'{"model": "echo", "messages": [{"role": "user", "content": NaN}]}', b"\x00", b"{}{}",
        b'{"model": "echo", "messages": [' + b"{}," * 5000 + b"{}]}", b"9" * 100_000,
    ],
)  # fmt: skip
def test_malformed_bodies(served: Served, body: bytes) -> None:
    answer = served.ask("POST", CHAT, body, content_type="application/json")
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    assert is_alive(served)


def test_schemas_that_are_nested_without_end(served: Served) -> None:
    deep = b'{"type":"object","properties":{"a":' * 400 + b"{}" + b"}}" * 400
    body = b'{"model":"echo","messages":[{"role":"user","content":"x"}],"guided_json":%b}' % deep
    assert served.ask("POST", CHAT, body).status in (200, 400)
    assert is_alive(served)


def test_a_body_of_100_mb(served: Served) -> None:
    """Refused by its announced length, before it is read; what is sent all the same is not kept."""
    before = resident()
    for announced in (True, False):
        with served.connect() as connection:
            length = b"Content-Length: %d" % (100 * MIB) if announced else b"Transfer-Encoding: chunked"
            connection.sendall(b"POST %b HTTP/1.1\r\nHost: localhost\r\n%b\r\n\r\n" % (CHAT.encode(), length))
            part = b"x" * MIB if announced else b"100000\r\n" + b"x" * MIB + b"\r\n"
            sent = 0
            try:
                for _ in range(100):
                    connection.sendall(part)
                    sent += 1
                if not announced:
                    connection.sendall(b"0\r\n\r\n")
            except OSError:
                assert sent > 0  # the server closed before all of it was sent, which is as good
            assert status(read_all(connection)) == 413
    gc.collect()
    assert resident() - before < 40 * MIB
    assert is_alive(served)


def test_headers_without_end(served: Served) -> None:
    """A head is limited in size, whether in one header or in many, in one piece or in many."""
    for line in (b"X: " + b"a" * 2000, b"X: a"):
        with served.connect() as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
            try:
                for _ in range(3 * MAX_HEADER_BYTES // len(line)):
                    connection.sendall(line + b"\r\n")
            except OSError:
                pass
            answer = read_all(connection)
        assert (
            answer == b"" or status(answer) == 431
        )  # the answer may be lost where it crosses what still comes
    whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 2 * MAX_HEADER_BYTES
    with served.connect() as connection:
        connection.sendall(whole)
        assert status(read_all(connection)) == 431
    assert is_alive(served)


def test_a_body_that_comes_with_long_headers_is_no_header(served: Served) -> None:
    body = json.dumps(chat_body("x" * (MAX_HEADER_BYTES + 1000))).encode()
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (
        CHAT.encode(),
        len(body),
    )
    assert status(served.raw(head + body)) == 200


def expire(served: Served, count: int) -> None:
    """Let the time for headers be over, on ``count`` connections."""
    protocols = served.running._server.server_state.connections

    def waiting() -> list[Any]:
        return [p for p in list(protocols) if p._header_timer is not None]

    served.until(lambda: len(waiting()) == count, "the connections do not wait for headers")

    def give_up() -> None:
        for protocol in waiting():
            protocol._header_timer.cancel()
            protocol._give_up()

    served.call(give_up)


def test_slow_loris(backend: EchoBackend, serve: Callable[..., Served]) -> None:
    """Connections that bring their headers or bodies byte by byte are ended; others are answered meanwhile."""
    served = serve(backend, header_timeout_s=600, body_timeout_s=600)
    service, protocols = served.gateway.service, served.running._server.server_state.connections
    slow_head, silent, slow_body = served.connect(), served.connect(), served.connect()
    slow_head.sendall(b"GET /health HTTP/1.1\r\nX: ")
    slow_body.sendall(request_bytes(CHAT, chat_body())[:-3])
    assert is_alive(served)
    served.until(lambda: len(service.receiving) == 1, "the body has not begun")
    served.until(
        lambda: any(p._header_bytes and p._header_timer for p in list(protocols)),
        "the headers have not begun",
    )
    expire(served, 2)
    assert status(read_all(slow_head)) == 408
    assert read_all(silent) == b""
    (exchange,) = service.receiving
    assert exchange._timer is not None
    served.call(exchange.stop_after, 0.0, "body")
    assert status(read_all(slow_body)) == 408
    with served.connect() as later:  # the second request of a connection, too
        later.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += later.recv(65536)
        assert status(answer) == 200
        later.sendall(b"GET /hea")
        expire(served, 1)
        assert status(read_all(later)) == 408
    for connection in (slow_head, silent, slow_body):
        connection.close()


def test_the_time_for_headers_and_bodies_ends_by_itself(
    backend: EchoBackend, serve: Callable[..., Served]
) -> None:
    served = serve(backend, header_timeout_s=0.3, body_timeout_s=0.3)
    with served.connect() as silent:
        assert read_all(silent) == b""
    with served.connect() as slow_body:
        with suppress(OSError):  # its connection may end before it is sent
            slow_body.sendall(request_bytes(CHAT, chat_body())[:-3])
        assert read_all(slow_body)[:12] in (b"HTTP/1.1 408", b"")


def test_idle_connections(backend: EchoBackend, serve: Callable[..., Served]) -> None:
    """10,000 of them, or as many as this machine lets a process have: the oldest go, and others are answered."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * 10_000 + 500  # both ends are in this process
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, wanted), hard), hard))
    try:
        count = min(10_000, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 500) // 2)
        served = serve(backend, max_idle_connections=100, header_timeout_s=60)
        idle = [served.connect() for _ in range(200)]
        before = resident()
        for _ in range(count - len(idle)):
            idle.append(served.connect())
        assert is_alive(served)
        assert resident() - before < 64 * MIB
        assert idle[0].recv(1) == b"", "the oldest connection is still there"
        idle[-1].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert status(idle[-1].recv(65536)) == 200
        for connection in idle:
            connection.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_requests_in_a_row_are_answered_in_order(served: Served) -> None:
    """Several requests sent at once on one connection."""
    some = [request_bytes(CHAT, chat_body(f"number {i}")) for i in range(5)]
    last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = served.raw(b"".join(some) + last)
    places = [answer.index(b"number %d" % i) for i in range(5)]
    assert places == sorted(places)
    assert answer.count(b"HTTP/1.1 200 OK") == 6


class TestKeys:
    def test_without_one_nothing_but_health(self, backend: EchoBackend, serve: Callable[..., Served]) -> None:
        served = serve(backend, keys=[key_of("sk-sage-good")])
        for path in ("/v1/models", "/metrics", "/dashboard/state", "/v1/models/echo"):
            assert served.get(path).status == 401
        for path in (CHAT, "/v1/completions", "/v1/embeddings", "/v1/rerank", "/tokenize"):
            assert served.post(path, {}).status == 401, path
        for wrong in (
            "",
            "Bearer",
            "Bearer ",
            "Basic c2s=",
            "sk-sage-good",
            "Bearer sk-sage-goo",
            "Bearer sk-sage-good x",
        ):
            answer = served.get("/v1/models", authorization=wrong)
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert served.get("/v1/models", authorization="bearer sk-sage-good").status == 200
        assert served.get("/health").status == served.get("/ready").status == served.get("/").status == 200
        assert next(iter(served.client(api_key="sk-sage-good").models.list())).id == "echo"

    def test_secrets_are_in_no_log(
        self, backend: EchoBackend, serve: Callable[..., Served], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Neither keys nor texts, whatever goes wrong."""
        caplog.set_level("DEBUG")
        key = new_key()
        served = serve(backend, keys=[key_of(key)], log_requests=True)
        bearer = f"Bearer {key}"
        served.post(CHAT, chat_body("my password"), authorization=bearer)
        served.post(CHAT, chat_body("my password"), authorization=bearer + "x")
        served.get(f"/v1/models?api_key={key}", authorization=bearer)
        backend.refuse = ZeroDivisionError("a bug")
        served.post(CHAT, chat_body("my password"), authorization=bearer)
        served.raw(b"GET / HTTP/1.1\r\nAuthorization: Bearer %b\r\n bad\r\n\r\n" % key.encode())
        served.until(lambda: "POST /v1/chat/completions 500" in caplog.text, "no line")
        assert "POST /v1/chat/completions 200" in caplog.text
        assert "key=tester" in caplog.text
        assert key not in caplog.text
        assert "password" not in caplog.text

    def test_a_log_line_cannot_be_forged(
        self, backend: EchoBackend, serve: Callable[..., Served], caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO")
        served = serve(backend, log_requests=True)
        served.get("/x%0a2026-01-01%20forged")
        served.until(lambda: "/x%0a2026-01-01%20forged 404" in caplog.text, "no line")


def test_sockets_do_not_wait_to_send(served: Served) -> None:
    """Nagle's algorithm is off at the server's end: a token would wait 40 ms for an acknowledgement."""
    with served.connect() as connection:
        served.until(lambda: bool(served.running._server.server_state.connections), "no connection")
        (protocol,) = served.running._server.server_state.connections
        ours = protocol.transport.get_extra_info("socket")
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert connection.getpeername() == served.address


def key_of(secret: str) -> APIKey:
    import hashlib

    return APIKey("tester", hashlib.sha256(secret.encode()).digest())

"""Connections: every byte of a request counts, unread responses end, and their number is limited."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from contextlib import suppress

import pytest
from gateway_backend import EchoBackend
from gateway_served import WAIT_S, Served, chat_body, events, read_all, read_head, request_bytes

CHAT = "/v1/chat/completions"
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
MIB = 2**20

Serve = Callable[..., Served]


def is_alive(served: Served) -> bool:
    return served.get("/health").status == 200 and served.chat().status == 200


@pytest.mark.parametrize("path", ["GET /health", f"POST {CHAT}", "GET /nothing-here"])
@pytest.mark.parametrize(
    ("head", "piece"),
    [
        ("Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: " + b"a" * 1000 + b"\r\n"),
        ("Transfer-Encoding: chunked\r\n\r\n0\r\n", b"a:b\r\n"),
        ("Transfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"a" * 1000),
        ("Transfer-Encoding: chunked\r\n\r\n5;", b"a" * 1000),
        ("Transfer-Encoding: chunked\r\n\r\n", b"000000000000001;x=y\r\nx\r\n"),
    ],
    ids=["trailers", "tiny trailers", "one trailer", "chunk extension", "extensions of tiny chunks"],
)
def test_framing_of_a_body_is_limited(served: Served, path: str, head: str, piece: bytes) -> None:
    pieces = piece * (65536 // len(piece) + 1)
    with served.connect() as connection:
        connection.sendall(f"{path} HTTP/1.1\r\nHost: localhost\r\n{head}".encode())
        sent = 0
        with suppress(OSError):
            while sent < 64 * MIB:
                connection.sendall(pieces)
                sent += len(pieces)
    assert sent < 64 * MIB, "the server took it all"
    assert is_alive(served)


def test_a_body_in_tiny_chunks_with_a_trailer_is_taken(served: Served) -> None:
    body = json.dumps(chat_body("x" * 20_000)).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    answer = served.raw(head.encode() + chunks + b"0\r\nX-Checksum: 1\r\nAuthorization: Bearer x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")


UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")


def test_a_chat_that_asks_for_an_upgrade_keeps_its_body(served: Served) -> None:
    """Java's HTTP client asks for HTTP/2 with the first request of a connection."""
    asked = request_bytes(CHAT, chat_body("hello big world"), *UPGRADE)
    last = request_bytes(CHAT, chat_body("good bye"), "Connection: close")
    answers = served.raw(asked + asked + last)
    assert answers.count(b"HTTP/1.1 200 ") == 3
    assert answers.count(b"hello big world") == 2
    assert b"good bye" in answers


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_an_upgrade_in_pieces_with_a_chunked_body(served: Served, size: int) -> None:
    body = json.dumps(chat_body("hello big world")).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n" + "\r\n".join(UPGRADE)
    data = head.encode() + b"\r\n\r\n%x\r\n%b\r\n0\r\nX: y\r\n\r\n" % (len(body), body)
    data += HEALTH + b"Connection: close\r\n\r\n"
    with served.connect() as connection:
        for start in range(0, len(data), size):
            connection.sendall(data[start : start + size])
        answers = read_all(connection)
    assert answers.count(b"HTTP/1.1 200 ") == 2
    assert b"hello big world" in answers


@pytest.mark.parametrize(
    ("more", "piece"),
    [
        (b"\r\n", b"\r\n"),
        (b"Content-Length: 1000000\r\n\r\n", b"x"),
        (b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n"),
    ],
    ids=["blank lines", "body", "chunks", "trailers"],
)
def test_bytes_that_are_no_request_do_not_keep_a_connection(
    backend: EchoBackend, serve: Serve, more: bytes, piece: bytes
) -> None:
    served = serve(backend, write_timeout_s=0.2)  # connections are looked at four times in it
    limits = served.running.limits
    limits.idle_timeout_s = 0.5
    with served.connect() as connection:
        connection.sendall(HEALTH + more)
        read_head(connection)

        def is_closed() -> bool:
            with suppress(OSError):
                connection.sendall(piece)
            return not limits._all

        served.until(is_closed, "the end of the connection")
    assert is_alive(served)


def test_a_lost_connection_ends_all_of_its_requests(
    backend: EchoBackend, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    backend.gate = asyncio.Event()  # nobody opens it
    with served.connect() as connection:
        connection.sendall(request_bytes(CHAT, chat_body()) * 3)
        served.until(lambda: backend.open, "a stream")
    served.until(lambda: not backend.open and not served.gateway.service.open, "its end")
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]


def test_an_unwanted_body_is_read_up_to_a_limit(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(HEALTH + b"Content-Length: 99999999999\r\n\r\n")
        sent = 0
        with suppress(OSError):
            while sent < 256 * MIB:
                connection.sendall(b"x" * MIB)
                sent += MIB
    assert sent < 256 * MIB
    assert is_alive(served)


def unread(served: Served) -> socket.socket:
    """A client that asks for more than the system's buffers hold (the answer repeats 8 MB) and reads nothing."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect(served.address)
    connection.settimeout(WAIT_S)
    connection.sendall(request_bytes(CHAT, chat_body("x" * 8_000_000)))
    return connection


def connections(served: Served) -> int:
    return len(served.running._server.server_state.connections)


def stalled(served: Served) -> int:
    """Connections whose answers wait for their readers."""
    return sum(p.flow.write_paused for p in list(served.running._server.server_state.connections))


def look(served: Served) -> None:
    """Let the server look for unread responses now, with no time left for reading since the previous look."""
    limits = served.running.limits

    async def main() -> None:
        assert limits._sweeper is not None, "it would never look"
        limits._sweeper.cancel()
        limits.write_timeout_s, seconds = 0.0, limits.write_timeout_s
        limits._sweep(asyncio.get_running_loop())
        limits._sweeper.cancel()
        limits.write_timeout_s = seconds
        limits._sweep_later(asyncio.get_running_loop())

    served.run(main())


def test_unread_responses_end_with_their_connections(backend: EchoBackend, serve: Serve) -> None:
    served = serve(backend, write_timeout_s=600)
    clients = [unread(served) for _ in range(5)]
    served.until(lambda: stalled(served) == 5, "the answers are not waiting for their readers")
    look(served)
    assert connections(served) == 5
    look(served)
    served.until(lambda: not connections(served), "their connections are still open")
    for client in clients:
        client.close()
    assert is_alive(served)


@pytest.mark.skipif(
    not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="this system has no limit of unsent bytes"
)
def test_the_system_holds_little_of_an_unread_response(served: Served) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(served.address)
        connection.sendall(request_bytes(CHAT, chat_body("x" * 600_000)))
        served.until(lambda: stalled(served) == 1, "all of its answer went to the system")


def test_the_server_looks_for_unread_responses_itself(backend: EchoBackend, serve: Serve) -> None:
    served = serve(backend, write_timeout_s=0.4)
    with unread(served):
        limits = served.running.limits
        served.until(lambda: limits.looks > 2 and not connections(served), "its connection is still open")


def test_an_unread_stream_is_freed_in_the_engine(backend: EchoBackend, serve: Serve) -> None:
    served = serve(backend, write_timeout_s=600)
    words = " ".join(["word" * 50] * 50_000)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(served.address)
        connection.sendall(request_bytes(CHAT, chat_body(words, stream=True)))
        served.until(lambda: stalled(served) == 1, "the stream does not wait for its reader")
        assert len(served.gateway.service.open) == 1
        look(served)
        look(served)
        served.until(lambda: not served.gateway.service.open, "the stream is still open")
    assert is_alive(served)


def test_a_slow_reader_keeps_its_connection(backend: EchoBackend, serve: Serve) -> None:
    """It reads a part of the answers between any two looks of the server."""
    served = serve(backend, write_timeout_s=600)
    with unread(served) as connection:
        served.until(lambda: stalled(served) == 1, "its answers are not waiting")
        (protocol,) = served.running._server.server_state.connections
        look(served)
        rounds = 0
        while stalled(served) and rounds < 12:
            left = served.call(protocol.transport.get_write_buffer_size)
            while served.call(protocol.transport.get_write_buffer_size) > left - 20 * 1024 and stalled(
                served
            ):
                assert connection.recv(64 * 1024)
            look(served)
            rounds += 1
            assert connections(served) == 1, "it was disconnected"
        assert rounds


def test_more_requests_in_a_row_than_are_kept(served: Served) -> None:
    with served.connect() as connection:
        with suppress(OSError):
            connection.sendall((HEALTH + b"\r\n") * 20_000)
        answers = read_all(connection)
    assert answers.count(b"HTTP/1.1 200 ") < 1000
    assert is_alive(served)


class TestNumber:
    def test_a_new_connection_takes_the_place_of_an_idle_one(
        self, backend: EchoBackend, serve: Serve
    ) -> None:
        served = serve(backend, max_connections_per_peer=4)
        idle = [served.connect() for _ in range(4)]
        served.until(lambda: connections(served) == 4, "the clients are not there")
        assert served.get("/health").status == 200
        assert idle[0].recv(1) == b"", "the oldest is still there"
        idle[3].sendall(HEALTH + b"\r\n")
        assert read_head(idle[3]).startswith(b"HTTP/1.1 200 ")
        for connection in idle:
            connection.close()

    def test_then_of_one_that_does_not_read(self, backend: EchoBackend, serve: Serve) -> None:
        served = serve(backend, max_connections_per_peer=4)
        clients = [unread(served) for _ in range(4)]
        served.until(lambda: stalled(served) == 4, "their answers are not waiting")
        assert served.get("/health").status == 200
        for client in clients:
            client.close()

    def test_else_it_is_refused(self, backend: EchoBackend, serve: Serve) -> None:
        served = serve(backend, max_connections_per_peer=2)
        backend.gate = asyncio.Event()
        busy = [served.connect() for _ in range(2)]
        for connection in busy:
            connection.sendall(request_bytes(CHAT, chat_body()))
        served.until(lambda: len(served.gateway.service.open) == 2, "the requests are not open")
        assert served.get("/health").status == 503
        with socket.create_connection(
            served.address, timeout=WAIT_S, source_address=("127.0.0.2", 0)
        ) as other:
            other.sendall(HEALTH + b"Connection: close\r\n\r\n")
            assert read_all(other).startswith(b"HTTP/1.1 200 "), "another peer has no room either"
        served.call(backend.gate.set)
        for connection in busy:
            assert read_head(connection).startswith(b"HTTP/1.1 200 ")
            connection.close()


class TestHost:
    @pytest.mark.parametrize("host", ["Localhost:8000", "LOCALHOST", "localhost.", "127.0.0.1.", "[::1]:80"])
    def test_this_machines_names(self, served: Served, host: str) -> None:
        assert served.get("/v1/models", host=host).status == 200

    @pytest.mark.parametrize(
        "host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "localhost.."]
    )
    def test_others(self, served: Served, host: str) -> None:
        assert served.get("/v1/models", host=host).status == 403

    @pytest.mark.parametrize("hosts", ["", "Host: localhost\r\nHost: localhost\r\n"])
    def test_missing_or_doubled(self, served: Served, hosts: str) -> None:
        answer = served.raw(f"GET /health HTTP/1.1\r\n{hosts}\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"expected one Host header" in answer

    def test_wrong_in_a_second_request(self, served: Served) -> None:
        with served.connect() as connection:
            connection.sendall(HEALTH + b"\r\n")
            assert read_head(connection).startswith(b"HTTP/1.1 200 ")
            connection.sendall(b"GET /health HTTP/1.1\r\n\r\n")
            assert b"HTTP/1.1 400 " in read_all(connection)


class TestOldClients:
    """HTTP/1.0 knows no chunks: the body ends with the connection (RFC 9112 6.1)."""

    def ask(self, served: Served, path: str, data: object) -> tuple[bytes, bytes]:
        body = json.dumps(data).encode()
        answer = served.raw(
            b"POST %b HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (path.encode(), len(body), body)
        )
        head, _, rest = answer.partition(b"\r\n\r\n")
        assert b"chunked" not in head.lower()
        return head, rest

    def test_a_stream(self, served: Served) -> None:
        head, body = self.ask(served, CHAT, chat_body("one two three", stream=True))
        assert head.startswith(b"HTTP/1.1 200 ")
        assert list(events(body))[-1] == "[DONE]"

    def test_a_whole_answer(self, served: Served) -> None:
        _, body = self.ask(served, CHAT, chat_body("one two three"))
        assert json.loads(body)["choices"]

    def test_many_vectors(self, served: Served) -> None:
        _, body = self.ask(
            served, "/v1/embeddings", {"model": "vectors", "input": [f"x{i}" for i in range(40)]}
        )
        assert "data" in json.loads(body) or "error" in json.loads(body)

    def test_an_error(self, served: Served) -> None:
        head, body = self.ask(served, CHAT, {})
        assert head.startswith(b"HTTP/1.1 400 ")
        assert json.loads(body)["error"]


def test_the_openai_sdks_headers_pass_a_preflight(backend: EchoBackend, serve: Serve) -> None:
    served = serve(backend, cors_origins=["http://localhost:3000"])
    asked = (
        "authorization, Content-Type, x-stainless-arch, X-Stainless-Retry-Count, openai-organization, x-evil"
    )
    answer = served.ask(
        "OPTIONS", CHAT, origin="http://localhost:3000", access_control_request_method="POST",
        access_control_request_headers=asked,
    )  # fmt: skip
    allowed = {name.strip() for name in answer.headers["access-control-allow-headers"].split(",")}
    assert {"authorization", "content-type", "x-stainless-arch", "x-stainless-retry-count"} < allowed
    assert "openai-organization" in allowed
    assert "x-evil" not in allowed

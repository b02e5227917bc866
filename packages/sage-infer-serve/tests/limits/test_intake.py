"""Bodies on their way take nobody's place, and are bounded in memory and rate."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest
from gateway_backend import EchoBackend
from gateway_served import Served, chat_body, read_head, request_bytes
from sage_infer_serve.http.errors import HTTPError
from sage_infer_serve.http.intake import Intake

CHAT = "/v1/chat/completions"
Serve = Callable[..., Served]


def half_a_request(size: int) -> bytes:
    whole = request_bytes(CHAT, chat_body("x" * size))
    return whole[: -size // 2]


def test_slow_bodies_do_not_count_as_open_requests(backend: EchoBackend, serve: Serve) -> None:
    served = serve(backend, max_open_requests=2)
    slow = [served.connect() for _ in range(20)]
    try:
        for connection in slow:
            connection.sendall(half_a_request(100))
        service = served.gateway.service
        served.until(lambda: len(service.receiving) == 20, "the bodies have not begun")
        assert not service.open
        assert not service._admissions
        assert served.chat().status == 200
        assert served.chat(stream=True).status == 200
    finally:
        for connection in slow:
            connection.close()
    served.until(lambda: not service.receiving, "the requests are still there")


def test_large_bodies_are_bounded_together(backend: EchoBackend, serve: Serve) -> None:
    served = serve(backend)
    service = served.gateway.service
    service.intake.most = 3_000_000
    slow = [served.connect() for _ in range(2)]
    try:
        for connection in slow:
            connection.sendall(half_a_request(2_500_000))
        served.until(lambda: service.intake.held > 2_000_000, "the bodies have not arrived")
        answer = served.chat("x" * 2_500_000)
        assert (answer.status, answer.error["code"]) == (503, "overloaded")
        assert served.chat("x" * 1000).status == 200
    finally:
        for connection in slow:
            connection.close()
    served.until(lambda: service.intake.held == 0, "their memory is still counted")
    assert served.chat("x" * 2_500_000).status == 200
    served.until(lambda: service.intake.held == 0, "memory of an answered request is still counted")


def test_memory_is_counted_back_after_errors(served: Served) -> None:
    for body in (b"{" * 1_000_000, json.dumps({"model": "nobody", "messages": "x" * 1_000_000}).encode()):
        assert served.ask("POST", CHAT, body, content_type="application/json").status == 400
    served.until(lambda: served.gateway.service.intake.held == 0, "memory of errors is still counted")


def test_a_rate_beyond_the_burst_is_slowed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    intake = Intake(most=10**9, rate=100.0, burst=1000.0, clock=lambda: now)

    async def main() -> None:
        nonlocal now
        await intake.take(1000)
        assert slept == []
        await intake.take(200)
        assert slept == [2.0]
        await intake.take(100)
        assert slept == [2.0, 3.0]
        now += 13
        await intake.take(1000)
        assert slept == [2.0, 3.0]

    asyncio.run(main())
    intake.give_back(2300)
    assert intake.held == 0
    with pytest.raises(HTTPError, match="too many large requests"):
        intake.check(10**9 + 1)


def test_many_headers_are_refused(served: Served) -> None:
    lines = b"".join(b"X%d: y\r\n" % i for i in range(5000))
    with served.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + lines[:40_000] + b"\r\n\r\n")
        assert read_head(connection).startswith(b"HTTP/1.1 431 ")
    few = b"".join(b"X%d: y\r\n" % i for i in range(200))
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    assert served.raw(head + few + b"\r\n").startswith(b"HTTP/1.1 200 ")


def test_a_body_of_very_many_tiny_chunks_is_refused(served: Served) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with served.connect() as connection:
        connection.sendall(head)
        sent = 0
        try:
            while sent < 16_000_000:
                connection.sendall(b"8\r\n[[[[[[[[\r\n" * 5000)
                sent += 40_000
        except OSError:
            pass
    assert sent < 10_000_000  # also what the buffers of the system hold
    assert served.chat().status == 200


def test_requests_leave_no_reference_cycles(served: Served) -> None:
    """Objects of ended requests must not wait for a full collection, which comes rarely in a large process."""
    import gc

    from sage_infer_serve.http.wire import Wire

    assert served.get("/health").status == 200
    gc.collect()
    gc.disable()
    try:
        for _ in range(30):
            assert served.get("/health").status == 200
            assert served.chat().status == 200
        alive = sum(isinstance(o, Wire) for o in gc.get_objects())
    finally:
        gc.enable()
    assert alive < 10

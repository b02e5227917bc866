"""TCP transfers that are interrupted, refused or abandoned."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from sage_infer.compat import ExceptionGroup
from sage_infer.errors import ConfigError, InvalidRequest
from sage_infer.schemas import (
    KVCacheSchema,
    KVChunk,
    KVLocation,
    TransportPlan,
    TransportSettings,
    TransportStep,
)
from sage_infer.sdk import checksum
from sage_infer_transport import SharedMemoryEndpoint, TCPEndpoint, TCPTransport
from sage_infer_transport.tcp import client as client_module
from sage_infer_transport.tcp.protocol import ANSWER_BYTES, Answer, Operation, Request, Status

SETTINGS = TransportSettings(chunk_bytes=65536, max_in_flight=2)
DATA = os.urandom(3 << 20)


def chunk_of(data: bytes) -> KVChunk:
    schema = KVCacheSchema(
        dtype="int8", page_size=len(data), num_layers=1, num_heads=1, head_dim=1, scale_dtype="fp32"
    )
    return KVChunk(
        chunk_id="0" * 32, request_id="test", layer_start=0, layer_end=1, token_start=0, token_end=1,
        kv_schema=schema, nbytes=len(data), checksum=checksum(data),
    )  # fmt: skip


def plan(chunk: KVChunk, source: KVLocation, target: KVLocation) -> TransportPlan:
    step = TransportStep(chunk=chunk, source=source, target=target, nbytes=chunk.nbytes)
    return TransportPlan.from_steps("fault", (step,))


class Relay:
    """A relay in front of an endpoint that cuts connections after given numbers of bytes towards ``direction``."""

    def __init__(self, port: int, cuts: list[int], direction: str) -> None:
        self.port, self.cuts, self.direction = port, cuts, direction
        self.passed = 0
        self.hold: threading.Event | None = None
        self.waiting = threading.Event()
        self.server = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._run, daemon=True).start()

    def uri(self, location: KVLocation) -> KVLocation:
        room = location.uri.rpartition("/")[2]
        return KVLocation(tier="remote", uri=f"tcp://127.0.0.1:{self.server.getsockname()[1]}/{room}")

    def _run(self) -> None:
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            upstream = socket.create_connection(("127.0.0.1", self.port))
            budget = self.cuts.pop(0) if self.cuts else None
            for name, a, b in (("up", client, upstream), ("down", upstream, client)):
                limited = budget if name == self.direction else None
                threading.Thread(target=self._pipe, args=(a, b, limited, name), daemon=True).start()

    def _pipe(self, a: socket.socket, b: socket.socket, budget: int | None, name: str) -> None:
        try:
            while data := a.recv(16384):
                if name == self.direction:
                    self.passed += len(data)
                    if self.hold is not None and self.passed > 100_000:
                        self.waiting.set()
                        self.hold.wait()
                if budget is not None:
                    budget -= len(data)
                    if budget < 0:
                        break
                b.sendall(data)
        except OSError:
            pass
        for sock in (a, b):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def far() -> Iterator[TCPEndpoint]:
    endpoint = TCPEndpoint(capacity_bytes=16 << 20)
    yield endpoint
    endpoint.close()


@pytest.fixture
def near() -> Iterator[SharedMemoryEndpoint]:
    endpoint = SharedMemoryEndpoint(capacity_bytes=16 << 20)
    yield endpoint
    endpoint.close()


@contextmanager
def relayed(far: TCPEndpoint, cuts: list[int], direction: str) -> Iterator[Relay]:
    relay = Relay(far._server.getsockname()[1], cuts, direction)
    try:
        yield relay
    finally:
        relay.server.close()


def execute(made: TransportPlan, **options: float):
    async def run():
        transport = TCPTransport(settings=SETTINGS, **options)
        try:
            return await transport.execute(made)
        finally:
            await transport.close()

    return asyncio.run(run())


@pytest.mark.parametrize("direction", ["up", "down"])
def test_an_interrupted_chunk_continues(far: TCPEndpoint, near: SharedMemoryEndpoint, direction: str) -> None:
    """Two cuts in the middle: two retries, and the bytes that had arrived are not sent again."""
    chunk = chunk_of(DATA)
    with relayed(far, [1 << 20, 1 << 20], direction) as relay:
        if direction == "up":
            (source,), (target,) = near.publish([chunk], [memoryview(DATA)]), far.reserve([chunk])
            report = execute(plan(chunk, source, relay.uri(target)))
            arrived = far.open(target)
        else:
            (source,), (target,) = far.publish([chunk], [memoryview(DATA)]), near.reserve([chunk])
            report = execute(plan(chunk, relay.uri(source), target))
            arrived = near.open(target)
    assert report.ok, report.errors
    assert bytes(arrived) == DATA
    assert report.retries == 2
    # Each cut loses at most what was in the buffers of two sockets on the way.
    assert relay.passed < len(DATA) + 2 * (1 << 20)


def test_a_peer_that_has_gone_fails_the_step(near: SharedMemoryEndpoint) -> None:
    gone = TCPEndpoint(capacity_bytes=1 << 20)
    chunk = chunk_of(b"x" * 100)
    (target,) = gone.reserve([chunk])
    gone.close()
    (source,) = near.publish([chunk], [memoryview(b"x" * 100)])
    report = execute(plan(chunk, source, target), retry_s=0.05)
    assert report.statuses == ("failed",)
    assert "no progress for 0.05 s" in report.errors[0]


def test_a_withdrawn_room_is_not_written_any_more(far: TCPEndpoint, near: SharedMemoryEndpoint) -> None:
    """A transfer stops in the middle, its room is withdrawn and allocated again: the new content stays."""
    chunk = chunk_of(DATA)
    (source,), (target,) = near.publish([chunk], [memoryview(DATA)]), far.reserve([chunk])
    other = b"y" * len(DATA)
    with relayed(far, [], "up") as relay:
        relay.hold = threading.Event()

        async def run():
            transport = TCPTransport(settings=SETTINGS, retry_s=60.0)
            moving = asyncio.ensure_future(transport.execute(plan(chunk, source, relay.uri(target))))
            await asyncio.to_thread(relay.waiting.wait)
            far.withdraw([target])
            (again,) = far.publish([chunk_of(other)], [memoryview(other)])
            relay.hold.set()
            report = await moving
            await transport.close()
            return report, again

        report, again = asyncio.run(run())
    assert report.statuses == ("failed",)
    assert "no such room" in report.errors[0]
    assert bytes(far.open(again)) == other


def ask(far: TCPEndpoint, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", far._server.getsockname()[1])) as sock:
        sock.sendall(data)
        with suppress(OSError):  # the endpoint has answered and closed the connection
            sock.shutdown(socket.SHUT_WR)
        answer = b""
        with suppress(ConnectionResetError):  # the endpoint closed without reading all of the junk
            while part := sock.recv(2000):
                answer += part
        return answer


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n" + b" " * 60, b"\0" * 48, b"SKV1\x09" + b"\0" * 43])
def test_other_protocols_are_refused(far: TCPEndpoint, data: bytes) -> None:
    assert ask(far, data)[:4] == b"SKV1"
    chunk = chunk_of(b"still here")
    (location,) = far.publish([chunk], [memoryview(b"still here")])
    assert fetched(far, location) == b"still here"


def fetched(far: TCPEndpoint, location: KVLocation) -> bytes:
    room = bytes.fromhex(location.uri.rpartition("/")[2])
    return ask(far, Request(Operation.GET, room).encode())[ANSWER_BYTES:]


def _offset(room: bytes) -> bytes:
    return Request(Operation.GET, room, offset=11).encode()


def _size(room: bytes) -> bytes:
    return Request(Operation.PUT, room, nbytes=11).encode()


def _unknown(room: bytes) -> bytes:
    return Request(Operation.GET, bytes(16)).encode()


@pytest.mark.parametrize("request_of", [_offset, _size, _unknown])
def test_requests_outside_of_a_room_are_refused(
    far: TCPEndpoint, request_of: Callable[[bytes], bytes]
) -> None:
    (location,) = far.publish([chunk_of(b"ten bytes.")], [memoryview(b"ten bytes.")])
    answer = ask(far, request_of(bytes.fromhex(location.uri.rpartition("/")[2])))
    assert answer[4] == Status.REFUSED
    assert fetched(far, location) == b"ten bytes."


def test_a_room_without_its_bytes_is_not_read(far: TCPEndpoint) -> None:
    (location,) = far.reserve([chunk_of(b"ten bytes.")])
    with pytest.raises(InvalidRequest, match="have not arrived"):
        far.open(location)
    answer = ask(far, Request(Operation.GET, bytes.fromhex(location.uri.rpartition("/")[2])).encode())
    assert answer[4] == Status.REFUSED


def test_connections_are_bounded(far: TCPEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection too many is closed; once one ends, the next one is served."""
    monkeypatch.setattr(TCPEndpoint, "max_connections", 2)
    (location,) = far.publish([chunk_of(b"ten bytes.")], [memoryview(b"ten bytes.")])
    request = Request(Operation.GET, bytes.fromhex(location.uri.rpartition("/")[2])).encode()
    address = ("127.0.0.1", far._server.getsockname()[1])
    held = [socket.create_connection(address) for _ in range(2)]
    for sock in held:
        sock.sendall(request)
        assert sock.recv(2000)
    with socket.create_connection(address) as extra:
        assert extra.recv(1) == b""
    held.pop().close()
    answered = b""
    while not answered:  # until the endpoint has noticed that the connection ended
        with suppress(ConnectionError):
            answered = ask(far, request)
    assert answered[4] == Status.OK
    held.pop().close()


def test_an_answer_of_another_protocol_fails_the_step(near: SharedMemoryEndpoint) -> None:
    server = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        sock, _ = server.accept()
        sock.recv(1000)
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        sock.close()

    threading.Thread(target=answer, daemon=True).start()
    chunk = chunk_of(b"x" * 100)
    (source,) = near.publish([chunk], [memoryview(b"x" * 100)])
    target = KVLocation(tier="remote", uri=f"tcp://127.0.0.1:{server.getsockname()[1]}/{'0' * 32}")
    report = execute(plan(chunk, source, target))
    server.close()
    assert report.statuses == ("failed",)
    assert "not an answer of this protocol" in report.errors[0]


def test_a_silent_peer_fails_the_step(near: SharedMemoryEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts connections and answers nothing."""
    monkeypatch.setattr(client_module, "_SILENCE_S", 0.05)
    server = socket.create_server(("127.0.0.1", 0))
    chunk = chunk_of(b"x" * 100)
    (source,) = near.publish([chunk], [memoryview(b"x" * 100)])
    target = KVLocation(tier="remote", uri=f"tcp://127.0.0.1:{server.getsockname()[1]}/{'0' * 32}")
    report = execute(plan(chunk, source, target), retry_s=0.01)
    server.close()
    assert report.statuses == ("failed",)
    assert "the peer sent nothing in time" in report.errors[0]


def test_an_exception_of_on_step_ends_the_plan(far: TCPEndpoint, near: SharedMemoryEndpoint) -> None:
    """It reaches the caller, and the transport stays usable."""
    chunks = [chunk_of(DATA)] * 4
    sources, targets = near.publish(chunks, [memoryview(DATA)] * 4), far.reserve(chunks)
    steps = tuple(
        TransportStep(chunk=c, source=s, target=t, nbytes=c.nbytes)
        for c, s, t in zip(chunks, sources, targets, strict=True)
    )

    def on_step(index: int, status: str) -> None:
        raise KeyError("no more")

    async def run():
        transport = TCPTransport(settings=SETTINGS)
        try:
            with pytest.raises(ExceptionGroup) as raised:
                await transport.execute(TransportPlan.from_steps("told", steps), on_step=on_step)
            assert raised.group_contains(KeyError, match="no more")
            return await transport.execute(TransportPlan.from_steps("again", steps))
        finally:
            await transport.close()

    report = asyncio.run(run())
    assert report.ok, report.errors
    assert all(bytes(far.open(target)) == DATA for target in targets)


def test_a_step_past_its_deadline_is_skipped(far: TCPEndpoint, near: SharedMemoryEndpoint) -> None:
    chunk = chunk_of(DATA)
    (source,), (target,) = near.publish([chunk], [memoryview(DATA)]), far.reserve([chunk])
    step = TransportStep(chunk=chunk, source=source, target=target, nbytes=chunk.nbytes, deadline_s=1e-9)
    report = execute(TransportPlan.from_steps("late", (step,)))
    assert report.statuses == ("skipped",)
    assert report.moved_bytes == 0


def test_compressed_steps_are_refused(far: TCPEndpoint, near: SharedMemoryEndpoint) -> None:
    chunk = chunk_of(DATA)
    (source,), (target,) = near.publish([chunk], [memoryview(DATA)]), far.reserve([chunk])
    step = TransportStep(chunk=chunk, source=source, target=target, nbytes=chunk.nbytes - 1)
    with pytest.raises(InvalidRequest, match="compressed transfers are not supported"):
        execute(TransportPlan.from_steps("small", (step,)))


@pytest.mark.parametrize("retry_s", [0, -1, "5", True, 1e9])
def test_retry_s_is_checked(retry_s: object) -> None:
    with pytest.raises(ConfigError, match="retry_s must be a number of seconds"):
        TCPTransport(settings=SETTINGS, retry_s=retry_s)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": "0.0.0.0"}, "advertise is required"),
        ({"host": "203.0.113.1"}, "cannot listen"),
    ],
)
def test_addresses_to_listen_on_are_checked(options: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        TCPEndpoint(**options)


def test_answers_are_bounded() -> None:
    assert len(Answer(Status.REFUSED, text="x" * 5000).encode()) == ANSWER_BYTES + 1000

"""Connections to endpoints, memory that stays registered, and copies within a host, without NIXL."""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nixl_other import chunk_of
from sage_infer.schemas import KVLocation, TransportPlan, TransportSettings, TransportStep
from sage_infer_nixl import NIXLTransport, transport
from sage_infer_nixl.agent import memory as agent_memory
from sage_infer_nixl.agent.memory import Memory
from sage_infer_nixl.agent.moves import Order
from sage_infer_nixl.control import Client, Connection, Place
from sage_infer_nixl.process import _how
from sage_infer_transport.execution import Failed

PLACE = Place("agent", b"\0metadata", 4096, 8)


class Registered:
    """What of NIXL's agent the memory needs; it lists the addresses that are registered now."""

    def __init__(self) -> None:
        self.addresses: list[int] = []
        self.calls = 0

    def register(self, memory: mmap.mmap) -> int:
        self.calls += 1
        self.addresses.append(self.calls)
        return self.calls

    def forget(self, address: int) -> None:
        self.addresses.remove(address)


@pytest.fixture
def agent() -> Registered:
    return Registered()


@pytest.fixture
def kept(agent: Any) -> Memory:
    return Memory(agent)


def segment(folder: Path, name: str, size: int = 4096) -> Path:
    path = folder / name
    path.unlink(missing_ok=True)
    path.write_bytes(bytes(size))
    return path


def test_segments_are_registered_once(agent: Registered, kept: Memory, tmp_path: Path) -> None:
    path = segment(tmp_path, "a")
    for _ in range(2):
        with kept.segment(path) as mapped:
            mapped.view(8, 4)[:] = b"here"
    assert path.read_bytes()[8:12] == b"here"
    assert agent.addresses == [1]
    replaced = segment(tmp_path, "a", 8192)  # another file of this name
    with kept.segment(replaced) as mapped:
        assert len(mapped.memory) == 8192
    assert agent.addresses == [2]
    with pytest.raises(Failed, match="cannot open shared memory gone"), kept.segment(tmp_path / "gone"):
        pass


def test_a_replaced_segment_in_use_stays_mapped(agent: Registered, kept: Memory, tmp_path: Path) -> None:
    with kept.segment(segment(tmp_path, "a")) as before:
        with kept.segment(segment(tmp_path, "a", 8192)):
            before.view(0, 1)[:] = b"x"
        assert agent.addresses == [1, 2]


def test_the_least_recently_used_segments_are_unmapped(
    agent: Registered, kept: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_memory, "_MAX_SEGMENTS", 3)
    paths = [segment(tmp_path, str(number)) for number in range(5)]
    with kept.segment(paths[0]):  # in use: it stays
        for path in [*paths[1:3], paths[1], *paths[3:]]:
            with kept.segment(path):
                pass
        assert agent.addresses == [1, 4, 5]
    with kept.segment(paths[1]):  # registered again
        pass
    assert agent.calls == 6


def test_buffers_are_used_again(agent: Registered, kept: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_memory, "_MAX_IDLE_BYTES", 2 << 20)
    with kept.buffer(5) as first, kept.buffer(1 << 20) as second:
        assert len(first.memory) == len(second.memory) == 1 << 20
        assert first is not second
    with kept.buffer(0) as again:
        assert again in (first, second)
    with kept.buffer((1 << 20) + 1) as large:
        assert len(large.memory) == 2 << 20
    assert agent.addresses == [3], "the idle ones are unmapped above the limit, the oldest first"


@pytest.fixture
def connected() -> Iterator[tuple[Connection, socket.socket]]:
    ours, theirs = socket.socketpair()
    connection = Connection(ours)
    yield connection, theirs
    connection.close()
    theirs.close()


def test_places_are_read_as_they_were_written() -> None:
    assert Place.of(PLACE.as_json()) == PLACE
    for wrong in ({}, {**PLACE.as_json(), "metadata": "abc"}, {**PLACE.as_json(), "nbytes": None}):
        with pytest.raises(Failed, match="speaks another protocol"):
            Place.of(wrong)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b'{"error": "no such room"}\n', "no such room"),
        (b"", "closed the connection"),
        (b'{"agent": ', "closed the connection"),
        (b"[1]\n", "closed the connection"),
        (b"no json\n", "closed the connection"),
        (b"[" * 100_000 + b"\n", "closed the connection"),
    ],
)
def test_what_is_no_answer_fails_the_step(
    connected: tuple[Connection, socket.socket], answer: bytes, message: str
) -> None:
    connection, theirs = connected
    theirs.sendall(answer)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(Failed, match=message):
        connection.ask(do="read", room="a")


def test_a_lost_endpoint_fails_the_step(connected: tuple[Connection, socket.socket]) -> None:
    connection, theirs = connected
    assert not connection.has_ended()
    theirs.close()
    assert connection.has_ended()
    with pytest.raises(Failed, match=r"did not answer|closed the connection"):
        connection.ask(do="read", room="a")
    connection.close()
    assert connection.has_ended()


def test_connections_are_kept_until_the_endpoint_closes_them() -> None:
    client = Client()
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        with client.connection(host, port) as first:
            far, _ = server.accept()
        with client.connection(host, port) as again:
            assert again is first
        far.close()
        while not first.has_ended():
            time.sleep(0.001)
        with client.connection(host, port) as other:
            assert other is not first
            far, _ = server.accept()
        with pytest.raises(KeyError), client.connection(host, port):
            raise KeyError("the exchange failed")
        assert far.recv(1) == b"", "its connection is closed"
        far.close()
    with pytest.raises(Failed, match=r"nixl://127.0.0.1:1: "), client.connection("127.0.0.1", 1):
        pass


def test_an_order_ends_in_time_or_when_it_is_stopped() -> None:
    message = {"number": 1, "source": "a", "target": "b", "nbytes": 1, "digest": 0, "timeout_s": 1000}
    order = Order.of(message)
    order.check()
    with pytest.raises(Failed, match=r"a holds other bytes: checksum .*, expected 0000000000000000"):
        order.verify(memoryview(b"x"))
    order.stop.set()
    with pytest.raises(Failed, match="stopped"):
        order.check()
    with pytest.raises(Failed, match="a to b: the transfer did not end in time"):
        Order.of({**message, "timeout_s": -1}).check()


def test_ends_of_processes_in_words() -> None:
    assert _how(3) == "ended with code 3"
    assert _how(-9) == "was ended by SIGKILL"
    assert _how(-63) == "was ended by signal 63"


def test_a_cancelled_copy_has_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a host, the thread that copies stops before the plan's task ends."""
    began, ended = threading.Event(), threading.Event()

    def copy(source: Any, target: Any, move: Any, segments: Any) -> None:
        began.set()
        move.stop.wait()
        ended.set()

    monkeypatch.setattr(transport, "copy", copy)
    ends = [KVLocation(tier="ssd", uri=(tmp_path / name).as_uri()) for name in ("a", "b")]
    step = TransportStep(chunk=chunk_of(b"1"), source=ends[0], target=ends[1], nbytes=1)

    async def main() -> None:
        moving = NIXLTransport(settings=TransportSettings())
        plan = asyncio.ensure_future(moving.execute(TransportPlan.from_steps("copies", (step,))))
        await asyncio.to_thread(began.wait)
        plan.cancel()
        with pytest.raises(asyncio.CancelledError):
            await plan
        assert ended.is_set()
        await moving.close()
        await moving.close()

    asyncio.run(main())
    assert os.listdir(tmp_path) == []

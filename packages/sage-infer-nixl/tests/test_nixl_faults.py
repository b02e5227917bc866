"""Processes that die or hang while NIXL moves KV; files; and what the transport refuses."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from nixl_other import HAS_NIXL, NO_NIXL, OtherProcess, chunk_of
from sage_infer.errors import InvalidRequest, Overloaded
from sage_infer.schemas import KVLocation, TransportPlan, TransportReport, TransportSettings, TransportStep
from sage_infer_nixl import NIXLEndpoint, NIXLTransport
from sage_infer_nixl.addresses import NIXLAddress, parse
from sage_infer_nixl.control import Client
from sage_infer_testing.waiting import eventually
from sage_infer_transport import SharedMemoryEndpoint
from sage_infer_transport.execution import Failed

if not HAS_NIXL:
    pytest.skip(NO_NIXL, allow_module_level=True)

DATA = bytes(range(256)) * 4096


@pytest.fixture
def other() -> Iterator[OtherProcess]:
    made = OtherProcess()
    yield made
    if made.process.poll() is None:
        made.close()


@pytest.fixture
def here() -> Iterator[SharedMemoryEndpoint]:
    made = SharedMemoryEndpoint()
    yield made
    made.close()


def step(source: KVLocation, target: KVLocation, data: bytes = DATA) -> TransportStep:
    return TransportStep(chunk=chunk_of(data), source=source, target=target, nbytes=len(data))


def room(endpoint: SharedMemoryEndpoint, data: bytes = DATA) -> KVLocation:
    return endpoint.reserve([chunk_of(data)])[0]


async def moved(transport: NIXLTransport, *steps: TransportStep) -> TransportReport:
    return await transport.execute(TransportPlan.from_steps("test", steps))


def opened(timeout_s: float = 60.0) -> NIXLTransport:
    return NIXLTransport(settings=TransportSettings(), timeout_s=timeout_s)


async def agent_pid(transport: NIXLTransport) -> int:
    return (await transport._process()).pid


def test_files_are_read_and_replaced(other: OtherProcess, tmp_path: Path) -> None:
    async def main() -> None:
        transport = opened()
        (tmp_path / "source").write_bytes(b"before" + DATA)
        source = KVLocation(tier="ssd", uri=f"{(tmp_path / 'source').as_uri()}#6")
        place = other.reserve(len(DATA))
        assert (await moved(transport, step(source, place))).ok
        assert other.contents(place) == DATA
        target = KVLocation(tier="ssd", uri=(tmp_path / "folder" / "target").as_uri())
        assert (await moved(transport, step(place, target))).ok
        assert (tmp_path / "folder" / "target").read_bytes() == DATA
        short = KVLocation(tier="ssd", uri=f"{(tmp_path / 'source').as_uri()}#7")
        report = await moved(transport, step(short, other.reserve(len(DATA))))
        assert "1 bytes too short" in report.errors[0]
        gone = KVLocation(tier="ssd", uri=(tmp_path / "gone").as_uri())
        assert "gone" in (await moved(transport, step(gone, other.reserve(len(DATA))))).errors[0]
        await transport.close()

    asyncio.run(main())


def test_chunks_are_relayed_between_endpoints(other: OtherProcess) -> None:
    async def main() -> None:
        transport, endpoint = opened(), NIXLEndpoint()
        try:
            steps = [step(other.publish(DATA), endpoint.reserve([chunk_of(DATA)])[0]) for _ in range(3)]
            assert (await moved(transport, *steps)).ok
            assert all(bytes(endpoint.open(s.target)) == DATA for s in steps)
            wrong = step(steps[0].source, other.reserve(8), DATA)
            assert "has 8 bytes" in (await moved(transport, wrong)).errors[0]
        finally:
            await transport.close()
            endpoint.close()

    asyncio.run(main())


def test_a_killed_agent_is_replaced(other: OtherProcess, here: SharedMemoryEndpoint) -> None:
    """The process of the transport is killed while it moves chunks: each is tried once more in a new one."""

    async def main() -> None:
        transport = opened()
        steps = [step(other.publish(DATA), room(here)) for _ in range(4)]
        assert (await moved(transport, *steps)).ok
        pid = await agent_pid(transport)
        os.kill(pid, signal.SIGSTOP)
        plan = asyncio.ensure_future(moved(transport, *steps))
        await asyncio.sleep(
            0.2
        )  # the orders are in its pipe; whether they are does not matter for the result
        os.kill(pid, signal.SIGKILL)
        report = await plan
        assert report.ok, report.errors
        assert report.retries >= 1
        assert all(bytes(here.open(s.target)) == DATA for s in steps)
        assert await agent_pid(transport) != pid
        await transport.close()

    asyncio.run(main())


def test_a_hanging_agent_is_ended(other: OtherProcess, here: SharedMemoryEndpoint) -> None:
    """A stopped process stands for native code that does not return."""

    async def main() -> None:
        transport = opened(timeout_s=1.0)
        one = step(other.publish(DATA), room(here))
        assert (await moved(transport, one)).ok
        os.kill(await agent_pid(transport), signal.SIGSTOP)
        report = await moved(transport, one)
        assert report.retries == 1
        await transport.close()

    asyncio.run(main())


def test_a_cancelled_plan_ends_a_hanging_agent(other: OtherProcess, here: SharedMemoryEndpoint) -> None:
    async def main() -> None:
        transport = opened()
        one = step(other.publish(DATA), room(here))
        assert (await moved(transport, one)).ok
        pid = await agent_pid(transport)
        os.kill(pid, signal.SIGSTOP)
        process = await transport._process()
        plan = asyncio.ensure_future(moved(transport, one))
        await eventually(lambda: bool(process._answers), "the order was not given", within_s=300.0)
        plan.cancel()
        with pytest.raises(asyncio.CancelledError):
            await plan
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert (await moved(transport, one)).ok
        await transport.close()

    asyncio.run(main())


def test_the_other_host_dies(other: OtherProcess, here: SharedMemoryEndpoint) -> None:
    """Its chunks fail, those of others arrive, and the transport serves on."""

    async def main() -> None:
        transport, third = opened(), OtherProcess()
        lost, kept = step(other.publish(DATA), room(here)), step(third.publish(DATA), room(here))
        assert (await moved(transport, lost, kept)).ok
        other.kill()
        report = await moved(transport, lost, kept)
        assert report.statuses == ("failed", "done"), report.errors
        with pytest.raises(InvalidRequest):
            here.open(lost.target)
        third.close()
        await transport.close()

    asyncio.run(main())


def test_a_killed_agent_of_an_endpoint_is_replaced(other: OtherProcess, here: SharedMemoryEndpoint) -> None:
    """Its rooms keep their bytes: they are the endpoint's memory."""

    async def main() -> None:
        transport = opened()
        one = step(other.publish(DATA), room(here))
        assert (await moved(transport, one)).ok
        os.kill(other.agent_pid, signal.SIGKILL)
        while not (await moved(transport, one)).ok:  # until the endpoint has seen the end of its process
            pass
        assert bytes(here.open(one.target)) == DATA
        await transport.close()

    asyncio.run(main())


def test_a_room_in_use_is_not_given_away() -> None:
    """A room that is withdrawn while another process writes to it is free again when the writer has gone."""
    endpoint, client = NIXLEndpoint(capacity_bytes=len(DATA)), Client()
    try:
        place = endpoint.reserve([chunk_of(DATA)])[0]
        address = parse(place.uri)
        assert isinstance(address, NIXLAddress)
        left = threading.Event()
        with suppress(Failed), client.connection(address.host, address.port) as writer:
            writer.ask(do="write", room=address.room, nbytes=len(DATA))
            with (
                pytest.raises(Failed, match="another transfer writes"),
                client.connection(address.host, address.port) as second,
            ):
                second.ask(do="write", room=address.room, nbytes=len(DATA))
            endpoint.withdraw([place])
            with pytest.raises(Overloaded):
                endpoint.reserve([chunk_of(DATA)])
            raise Failed("the writer stops, which closes its connection")
        while True:  # until the endpoint has seen the end of the connection
            try:
                endpoint.reserve([chunk_of(DATA)])
                break
            except Overloaded:
                left.wait(0.01)
    finally:
        endpoint.close()


def test_wrong_questions_are_refused() -> None:
    endpoint, client = NIXLEndpoint(capacity_bytes=1024), Client()
    try:
        address = parse(endpoint.reserve([chunk_of(b"12345678")])[0].uri)
        assert isinstance(address, NIXLAddress)
        with client.connection(address.host, address.port) as peer:
            for question, message in [
                ({"do": "read", "room": "0" * 32}, "no such room"),
                ({"do": "read", "room": address.room}, "have not arrived"),
                ({"do": "write", "room": address.room, "nbytes": 9}, "has 8 bytes, not 9"),
                ({"do": "written", "room": address.room, "digest": 0}, "not opened for writing"),
                ({"do": "sing", "room": address.room}, "expected read, write or written"),
            ]:
                with pytest.raises(Failed, match=message):
                    peer.ask(**question)
    finally:
        endpoint.close()


def test_an_idle_agent_waits() -> None:
    """NIXL's thread does not look at the network all the time."""

    def cpu_s(pid: int) -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    endpoint = NIXLEndpoint(capacity_bytes=1024)
    try:
        before = cpu_s(endpoint.agent_pid)
        threading.Event().wait(1.0)
        assert cpu_s(endpoint.agent_pid) - before < 0.3
    finally:
        endpoint.close()


def test_a_closed_transport_says_so(other: OtherProcess, here: SharedMemoryEndpoint) -> None:
    async def main() -> None:
        transport = opened()
        await transport.close()
        report = await moved(transport, step(other.publish(DATA), room(here)))
        assert "the transport is closed" in report.errors[0]

    asyncio.run(main())


def test_targets_must_be_reserved(other: OtherProcess, here: SharedMemoryEndpoint) -> None:
    async def main() -> None:
        transport = opened()
        target = room(here, b"short")
        report = await moved(transport, step(other.publish(DATA), target))
        assert "reserve room at an endpoint" in report.errors[0]
        nowhere = KVLocation(tier="dram", uri="shm://sage-test-nowhere#64")
        assert (
            "cannot open shared memory" in (await moved(transport, step(nowhere, other.reserve(8)))).errors[0]
        )
        unknown = KVLocation(tier="remote", uri="nixl://127.0.0.1:1/" + "0" * 32)
        assert "127.0.0.1:1" in (await moved(transport, step(unknown, room(here)))).errors[0]
        await transport.close()

    asyncio.run(main())

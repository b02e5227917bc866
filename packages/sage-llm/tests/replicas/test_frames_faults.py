"""Frames when something is wrong: the socket, the peer, or its speed."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import tempfile
import time
from typing import Any

import msgspec
import pytest
from sage_infer.compat import timeout
from sage_infer.errors import (
    EngineDead,
    InvalidRequest,
    Overloaded,
    Problem,
    RequestCancelled,
    SageInferError,
    SchemaError,
    UnsupportedFeature,
)
from sage_infer.schemas import SamplingParams
from sage_infer_testing.waiting import eventually
from sage_llm.replicas.backends import EmbeddingReplica, InferenceReplica
from sage_llm.replicas.connect import connect
from sage_llm.replicas.local import SERVER, LocalExecutor
from sage_llm.replicas.protocol import MAX_FRAME_BYTES, Call, CallCancel, Ping, StreamCancel, WireError
from sage_llm.replicas.wire_errors import from_wire, to_wire
from served_toys import connected, freeze, llm_spec, serving

WAIT_S = 120.0
ENDLESS = SamplingParams(temperature=0.0, ignore_eos=True)


async def raw(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection whose first frame has been read."""
    reader, writer = await asyncio.open_unix_connection(address.removeprefix("unix:"))
    await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
    return reader, writer


async def read_all(stream: Any) -> list[int]:
    return [token async for delta in stream for token in delta.token_ids]


async def works(client: InferenceReplica) -> None:
    (stream,) = await client.generate("Once", SamplingParams(max_tokens=3, ignore_eos=True))
    assert len(await read_all(stream)) == 3


async def reaches(client: InferenceReplica, status: str) -> None:
    """Wait until the health has this status."""
    async with timeout(WAIT_S):
        while (await client.health()).status != status:  # noqa: ASYNC110 - health has no event
            await asyncio.sleep(0.01)


def framed(frame: Any) -> bytes:
    data = msgspec.msgpack.encode(frame)
    return len(data).to_bytes(4, "big") + data


def test_the_socket_is_private() -> None:
    async def main() -> None:
        async with serving() as (_, address):
            mode = os.stat(address.removeprefix("unix:")).st_mode
            assert stat.S_IMODE(mode) == 0o600

    asyncio.run(main())


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\x00\x00\x02\xff\xff",
        (MAX_FRAME_BYTES + 1).to_bytes(4, "big"),
        framed([99, "a frame of an unknown kind"]),
        framed([19, "no number", 1]),
    ],
)
def test_who_sends_garbage_is_disconnected_alone(garbage: bytes) -> None:
    async def main() -> None:
        async with serving() as (_, address), connected(address) as client:
            reader, writer = await raw(address)
            writer.write(garbage)
            await reader.read()  # to the end of the connection
            writer.close()
            await works(client)

    asyncio.run(main())


def test_half_a_frame_ends_with_its_connection() -> None:
    async def main() -> None:
        async with serving() as (_, address), connected(address) as client:
            _, writer = await raw(address)
            writer.write(framed(Ping())[:-1])
            writer.close()
            await writer.wait_closed()
            await works(client)

    asyncio.run(main())


def test_frames_may_arrive_byte_by_byte() -> None:
    async def main() -> None:
        async with serving() as (_, address):
            reader, writer = await raw(address)
            for byte in framed(Ping()) + framed(Call(7, "health", msgspec.msgpack.encode([]))):
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0)
            while True:
                frame = msgspec.msgpack.decode(
                    await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
                )
                if frame[0] == 2:
                    break
            assert frame[1] == 7
            assert msgspec.msgpack.decode(frame[2])["status"] == "ok"
            writer.close()

    asyncio.run(main())


def test_frames_without_a_receiver_are_ignored() -> None:
    async def main() -> None:
        async with serving() as (_, address), connected(address) as client:
            client.link.send(StreamCancel(12345))
            client.link.send(CallCancel(12345))
            await works(client)

    asyncio.run(main())


def test_a_method_of_another_version_is_refused_by_name() -> None:
    async def main() -> None:
        async with serving() as (_, address), connected(address) as client:
            with pytest.raises(UnsupportedFeature, match="levitate"):
                await client.call("levitate", Ping(), None)
            with pytest.raises(InvalidRequest, match="arguments of abort"):
                await client.call("abort", Ping(), None)
            await works(client)

    asyncio.run(main())


def test_nobody_listens() -> None:
    async def main() -> None:
        client = InferenceReplica("unix:/no/such/socket")
        with pytest.raises(EngineDead, match="/no/such/socket"):
            await client.start()
        await client.close()

    asyncio.run(main())


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 200 OK\r\n\r\n", b""])
def test_a_server_of_another_protocol(greeting: bytes) -> None:
    async def other(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        writer.close()

    async def main() -> None:
        with tempfile.TemporaryDirectory(prefix="sage-") as folder:
            path = f"{folder}/other.sock"
            async with await asyncio.start_unix_server(other, path):
                with pytest.raises(EngineDead, match="cannot connect"):
                    await InferenceReplica(f"unix:{path}").start()

    asyncio.run(main())


def test_a_replica_of_another_kind() -> None:
    async def main() -> None:
        async with serving() as (_, address):
            with pytest.raises(EngineDead, match=r"expected .* of kind embedding"):
                await EmbeddingReplica(address).start()

    asyncio.run(main())


def test_a_lost_connection_aborts_its_requests_and_no_others() -> None:
    async def main() -> None:
        async with serving(pause_s=0.01) as (engine, address), connected(address) as client:
            other = InferenceReplica(address)
            await other.start()
            (mine,) = await client.generate("Once", SamplingParams(max_tokens=20, ignore_eos=True))
            (theirs,) = await other.generate("Twice", ENDLESS, request_id="theirs")
            held = await other.prefill("Held", request_id="held", params=ENDLESS)
            assert held.states[0].request_id in engine.held
            other.link.abort("as if the process had died")
            with pytest.raises(EngineDead):
                await read_all(theirs)
            assert len(await read_all(mine)) == 20
            await eventually(
                lambda: not engine.running and not engine.held,
                "requests of a dead client run",
                within_s=WAIT_S,
            )

    asyncio.run(main())


def test_a_silent_client_loses_its_lease() -> None:
    async def main() -> None:
        async with serving(pause_s=0.01, lease_s=0.2) as (engine, address), connected(address) as client:
            (stream,) = await client.generate("Once", ENDLESS)
            assert client._pinging is not None
            client._pinging.cancel()
            with pytest.raises(EngineDead):
                await read_all(stream)
            await eventually(lambda: not engine.running, "its request runs", within_s=WAIT_S)

    asyncio.run(main())


def test_a_pause_of_this_process_loses_nothing() -> None:
    """Neither end counts time in which it did not run."""

    async def main() -> None:
        async with serving(pause_s=0.001, lease_s=2.0) as (_, address):
            client = InferenceReplica(address, silence_s=2.0)
            await client.start()
            (stream,) = await client.generate("Once", SamplingParams(max_tokens=60, ignore_eos=True))
            tokens = 0
            async for delta in stream:
                tokens += len(delta.token_ids)
                if tokens == 10:
                    time.sleep(3.0)  # noqa: ASYNC251 - blocks both ends
            assert tokens == 60
            await client.close()

    asyncio.run(main())


def test_a_slow_consumer_delays_only_its_own_stream() -> None:
    async def main() -> None:
        params = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
        async with serving(window=4) as (engine, address), connected(address) as client:
            (slow,) = await client.generate("Once", params)
            (fast,) = await client.generate("Once", params)
            tokens = await read_all(fast)
            assert len(tokens) == 60
            await eventually(lambda: not engine.running, "the engine waits for a consumer", within_s=WAIT_S)
            assert slow.finish_reason is None, "more than a window was sent"
            assert len(slow._ready) == 4  # type: ignore[attr-defined]
            assert await read_all(slow) == tokens
            assert slow.finish_reason == "length"
            assert slow.usage is not None
            assert slow.usage.completion_tokens == 60

    asyncio.run(main())


def test_a_slow_consumer_of_several_completions() -> None:
    async def main() -> None:
        params = SamplingParams(max_tokens=20, ignore_eos=True, n=2, seed=1)
        async with serving(window=3) as (_, address), connected(address) as client:
            (stream,) = await client.generate("Once", params)
            counts = {0: 0, 1: 0}
            async for delta in stream:
                counts[delta.index] += len(delta.token_ids)
                await asyncio.sleep(0.001)
            assert counts == {0: 20, 1: 20}

    asyncio.run(main())


def test_a_client_that_does_not_read_delays_nobody() -> None:
    async def main() -> None:
        async with serving() as (_, address), connected(address) as client:
            _, writer = await raw(address)
            for number in range(2000):  # answers that nobody reads
                writer.write(framed(Call(number, "health", msgspec.msgpack.encode([]))))
            await works(client)
            writer.close()

    asyncio.run(main())


def test_long_arguments_and_results_travel_in_parts() -> None:
    async def main() -> None:
        async with serving() as (_, address), connected(address) as client:
            text = "word " * 300_000  # 1.5 MB
            assert await client.detokenize(await client.tokenize(text)) == text

    asyncio.run(main())


def test_what_cannot_be_sent_is_refused() -> None:
    async def main() -> None:
        async with serving() as (_, address), connected(address) as client:
            with pytest.raises(InvalidRequest, match="cannot be sent"):
                await client.generate([1 << 70], SamplingParams(max_tokens=1))
            await works(client)

    asyncio.run(main())


def test_a_cancelled_call_leaves_nothing() -> None:
    async def main() -> None:
        async with serving(pause_s=0.01) as (engine, address), connected(address) as client:
            for _ in range(5):
                task = asyncio.ensure_future(client.generate("Once", ENDLESS))
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await works(client)
            await eventually(lambda: not engine.running, "a cancelled call runs", within_s=WAIT_S)

    asyncio.run(main())


def test_the_end_of_the_server_is_told() -> None:
    async def main() -> None:
        async with serving(pause_s=0.01) as (engine, address):
            client = InferenceReplica(address)
            await client.start()
            (stream,) = await client.generate("Once", ENDLESS)
            await engine.close()
            with pytest.raises(RequestCancelled) as raised:
                await read_all(stream)
            assert raised.value.by == "close"
            with pytest.raises(EngineDead):
                await client.generate("Once", ENDLESS)
        await reaches(client, "dead")
        with pytest.raises(EngineDead):
            await client.generate("Once", ENDLESS)
        with pytest.raises(EngineDead):
            await client.start()
        await client.close()

    asyncio.run(main())


def test_a_stopped_replica_is_silent_and_its_old_frames_reach_nobody(toys: None) -> None:
    """SIGSTOP under a stream that is given up, then SIGCONT."""

    async def main() -> None:
        executor = LocalExecutor(server=SERVER)
        handle: Any = await executor.start(llm_spec(options={"pause_s": 0.02}))
        replica = await connect(handle)
        reports: list[Any] = []
        replica.on_report(reports.append)
        (stream,) = await replica.backend.generate("Once", ENDLESS)
        await anext(aiter(stream))
        await freeze(handle.pid)
        await reaches(replica.backend, "degraded")
        silent = len(reports)
        await asyncio.sleep(0.5)  # the test cannot fail by being slow here
        assert len(reports) == silent, "a stopped process has reports"
        stream.cancel()  # the control plane has moved the request
        os.kill(handle.pid, signal.SIGCONT)
        await eventually(lambda: len(reports) > silent, "no report after SIGCONT", within_s=WAIT_S)
        await eventually(
            lambda: replica.backend.stats().running == 0, "the cancelled request runs", within_s=WAIT_S
        )
        with pytest.raises(RequestCancelled):
            await read_all(stream)
        await works(replica.backend)
        await replica.close()
        await executor.close()

    asyncio.run(main())


def test_a_silent_replica_is_lost(toys: None) -> None:
    async def main() -> None:
        executor = LocalExecutor(server=SERVER)
        handle: Any = await executor.start(llm_spec())
        client = InferenceReplica(handle.descriptor.addresses[0], silence_s=0.5)
        await client.start()
        await freeze(handle.pid)
        with pytest.raises(EngineDead, match=r"sent nothing for 0\.5 s"):
            await client.tokenize("Once")
        await client.close()
        await handle.kill()
        await executor.close()

    asyncio.run(main())


class Busy(Overloaded):
    """A vendor's error."""


@pytest.mark.parametrize(
    "error",
    [
        Overloaded("full", retry_after=1.5),
        RequestCancelled("late", by="deadline"),
        SchemaError("Prompt", [Problem("$.text", "is missing")]),
        EngineDead("gone"),
        SageInferError("other"),
    ],
)
def test_errors_keep_type_and_fields(error: SageInferError) -> None:
    back = from_wire(msgspec.msgpack.decode(msgspec.msgpack.encode(to_wire(error)), type=WireError))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_other_errors_become_the_nearest_one() -> None:
    assert type(from_wire(to_wire(Busy("full", retry_after=2.0)))) is Overloaded
    assert from_wire(to_wire(ValueError("odd"))).code == "plugin_failed"
    assert type(from_wire(WireError("overloaded", "no fields"))) is SageInferError
    assert type(from_wire(WireError("of a later version", "x"))) is SageInferError

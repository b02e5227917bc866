"""Replicas at a port: only clients that know the token get in, and they learn whether the replica knows it, too."""

from __future__ import annotations

import asyncio
import hmac
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sage_infer.contracts import HOST_VARIABLE
from sage_infer.errors import ConfigError, EngineDead
from sage_infer.schemas import ReplicaSpec, SamplingParams
from sage_infer.sdk import BaseReplica
from sage_infer_testing.waiting import eventually
from sage_llm.replicas.backends import InferenceReplica
from sage_llm.replicas.connect import connect
from sage_llm.replicas.net.gate import TOKEN_VARIABLE, Gate, Knock
from sage_llm.replicas.net.server import serve
from sage_llm.replicas.protocol import FromServer
from sage_llm.replicas.server import served, stop_serving
from toy_engine import MODEL, ToyEngine

TOKEN = "a long secret"
PARAMS = SamplingParams(max_tokens=4, ignore_eos=True)


def spec(token: str = TOKEN) -> ReplicaSpec:
    return ReplicaSpec(
        replica_id="toy/0", backend="toy", model=MODEL, environment={TOKEN_VARIABLE: token} if token else {}
    )


@asynccontextmanager
async def at_port() -> AsyncIterator[tuple[ToyEngine, str]]:
    """A toy engine at a port of this machine, and its address."""
    engine = ToyEngine()
    await engine.start()
    address = await serve(engine, spec())
    try:
        yield engine, address
    finally:
        await stop_serving(address)
        await engine.close()


async def tokens_of(backend: Any) -> list[int]:
    (stream,) = await backend.generate("Once", PARAMS)
    return [token async for delta in stream for token in delta.token_ids]


def test_a_client_with_the_token_is_connected() -> None:
    async def main() -> None:
        async with at_port() as (engine, address):
            descriptor = served(address)
            assert descriptor is not None
            handle = BaseReplica(spec())
            handle.descriptor = type(descriptor)(
                instance_id="toy/0",
                generation=1,
                model_ids=("toy",),
                capability=engine.get_capability(),
                addresses=(address,),
            )
            replica = await connect(handle)
            assert replica.descriptor.capability.supports("resume")
            assert await tokens_of(replica.backend) == await tokens_of(engine)
            await replica.close()

    asyncio.run(main())


@pytest.mark.parametrize("token", ["another secret", ""])
def test_a_client_without_the_token_gets_nothing(token: str) -> None:
    async def main() -> None:
        async with at_port() as (engine, address):
            client = InferenceReplica(address, token=token)
            with pytest.raises(EngineDead, match=r"tcp://127\.0\.0\.1:\d+: .*refused the token"):
                await client.start()
            assert engine.seen == []

    asyncio.run(main())


def test_frames_before_the_proof_are_not_read() -> None:
    async def main() -> None:
        async with at_port() as (_, address):
            host, _, port = address.removeprefix("tcp://").rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            challenge = await reader.readexactly(32)
            own = bytes(32)
            writer.write(own + hmac.digest(b"wrong", b"client" + challenge + own, "sha256"))
            assert await _rest(reader) == b""
            writer.close()
            other, writer = await asyncio.open_connection(host, int(port))
            assert await other.readexactly(32) != challenge
            writer.close()

    asyncio.run(main())


async def _rest(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


def test_a_peer_that_says_nothing_is_disconnected() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        opened: list[asyncio.Protocol] = []

        def open_it() -> asyncio.Protocol:
            opened.append(asyncio.Protocol())
            return opened[0]

        server = await loop.create_server(lambda: Gate(TOKEN, open_it, proof_s=0.05), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        await reader.readexactly(32)
        assert await _rest(reader) == b""
        writer.close()
        server.close()
        assert not opened

    asyncio.run(main())


def test_a_program_that_does_not_know_the_token_gets_no_request() -> None:
    """Another program has taken the port of a replica that ended."""

    async def main() -> None:
        received = bytearray()

        async def foreign(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(bytes(32))
            received.extend(await reader.readexactly(64))
            writer.write(bytes(32))
            received.extend(await _rest(reader))
            writer.close()

        server = await asyncio.start_server(foreign, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = InferenceReplica(f"tcp://127.0.0.1:{port}", token=TOKEN)
        with pytest.raises(EngineDead, match="does not know the replica's token"):
            await client.start()
        await eventually(lambda: len(received) >= 64, "nothing was received", within_s=300.0)
        assert TOKEN.encode() not in received
        assert len(received) == 64
        server.close()

    asyncio.run(main())


def test_a_silent_program_is_left() -> None:
    async def main() -> None:
        from sage_llm.replicas.link import Link

        lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        link = Link(FromServer, lambda frame: None, lost.set_result)
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        where = server.sockets[0].getsockname()
        await asyncio.get_running_loop().create_connection(lambda: Knock(TOKEN, link, proof_s=0.05), *where)
        assert "refused the token" in await lost
        server.close()

    asyncio.run(main())


def test_a_replica_without_a_token_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match=TOKEN_VARIABLE):
            await serve(ToyEngine(), spec(""))
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            return  # this machine has no IPv6
        monkeypatch.setenv(HOST_VARIABLE, "::1")
        engine = ToyEngine()
        await engine.start()
        address = await serve(engine, spec())
        assert address.startswith("tcp://[::1]:")
        client = InferenceReplica(address, token=TOKEN)
        await client.start()
        assert await tokens_of(client) == await tokens_of(engine)
        await client.close()
        await stop_serving(address)
        await engine.close()

    asyncio.run(main())

"""Misuse of connections: slow, endless, malformed or unread, mostly without any valid request."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

from hostile.bodies import CHAT, LLM, MB, SAY
from hostile.peer import CLOSED, Connection, Peer, request

__all__ = ["WIRE"]

Attack = Callable[[Peer, float], Awaitable[None]]
"""Attacks for so many seconds; returns when the server has ended the attack's connections, at the latest."""
WIRE: dict[str, Attack] = {}

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
_BLOCK = 1 << 18
_ESTABLISHED = 1  # TCP state, in Linux's numbers


def wire(name: str) -> Callable[[Attack], Attack]:
    def register(attack: Attack) -> Attack:
        WIRE[name] = attack
        return attack

    return register


def endless(name: str, head: bytes, piece: bytes, most: int = 150 * MB) -> None:
    """An attack that sends a head and then one piece over and over."""

    async def attack(peer: Peer, seconds: float) -> None:
        block = piece * (_BLOCK // len(piece) + 1)

        async def act() -> None:
            connection = await peer.connect()
            if connection is None:
                return
            sent = len(block) if await connection.send(head) else most
            while sent < most and await connection.send(block):
                sent += len(block)
            answer = await connection.until_closed()
            peer.outcomes[answer] += 1
            connection.close()

        await peer.together(2, act, seconds)

    WIRE[name] = attack


endless("150 MB of tiny trailers", HEALTH + CHUNKED + b"0\r\n", b"a:b\r\n")
endless("a trailer of 150 MB", HEALTH + CHUNKED + b"0\r\nX: ", b"a" * 1000)
endless("a chunk extension of 150 MB", HEALTH + CHUNKED + b"5;", b"a" * 1000)
endless("chunks of one byte with extensions", HEALTH + CHUNKED, b"00000000001;x=yyyyyyyyyy\r\nx\r\n")
endless("a body of a GB for /health", HEALTH + b"Content-Length: 1000000000\r\n\r\n", b"x" * 1000, 1000 * MB)
endless("headers without end", HEALTH, b"X-Header: x\r\n")
endless("a header of 150 MB", HEALTH + b"X: ", b"a" * 1000)
endless("a target of 150 MB", b"GET /", b"a" * 1000)
endless("150 MB of blank lines", b"", b"\r\n")
endless("150 MB that are no HTTP", b"", b"\x16\x03\x01\x02\x00\x01\xfc\x03\x03")
TINY = request(CHAT, b"").replace(b"Content-Length: 0\r\n\r\n", CHUNKED)
endless("a chunked body of 100 MB", TINY, b"8\r\n[[[[[[[[\r\n")


@wire("a chat in chunks of one byte")
async def _(peer: Peer, seconds: float) -> None:
    data = request(CHAT, {"model": LLM, "messages": SAY, "max_tokens": 1, "user": "x" * 100_000})
    head, _, body = data.partition(b"\r\n\r\n")
    lines = b"\r\n".join(line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length"))
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    await peer.together(2, lambda: peer.ask(lines + b"\r\n" + CHUNKED + chunks + b"0\r\n\r\n"), seconds)


async def drip(peer: Peer, seconds: float, count: int, head: bytes, piece: bytes) -> None:
    """Many connections that each send a few bytes per second."""
    connections = [await peer.connect() for _ in range(count)]
    alive = [c for c in connections if c is not None]

    async def one(connection: Connection) -> None:
        until = asyncio.get_running_loop().time() + seconds
        going = await connection.send(head)
        while going and asyncio.get_running_loop().time() < until:
            going = await connection.send(piece)
            await asyncio.sleep(0.5)

    await asyncio.gather(*map(one, alive))
    await peer.all_closed(alive)
    for connection in alive:
        connection.close()


@wire("500 slow headers")
async def _(peer: Peer, seconds: float) -> None:
    await drip(peer, seconds, 500, b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX", b"x")


@wire("300 slow bodies")
async def _(peer: Peer, seconds: float) -> None:
    await drip(peer, seconds, 300, request(CHAT, b"").replace(b"Length: 0", b"Length: 1000000"), b"x")


@wire("1,500 idle connections")
async def _(peer: Peer, seconds: float) -> None:
    await drip(peer, 0, 1500, b"", b"")


@wire("connections opened and closed")
async def _(peer: Peer, seconds: float) -> None:
    async def act() -> None:
        connection = await peer.connect()
        if connection is not None:
            connection.close()
            peer.outcomes["closed by the client"] += 1

    await peer.together(16, act, seconds)


async def unread(peer: Peer, count: int, data: bytes, until_s: float = 90.0) -> None:
    """Connections that ask for much and read nothing until the server closes them."""
    connections = [await peer.connect(receive_buffer=2048) for _ in range(count)]
    waiting = [c for c in connections if c is not None]
    for connection in waiting:
        connection._writer.write(data)
        connection._reader._transport.pause_reading()  # type: ignore[attr-defined]
    until = asyncio.get_running_loop().time() + until_s
    while waiting and asyncio.get_running_loop().time() < until:
        served = _served_ports(peer.port)
        still = [c for c in waiting if _is_open(c, served)]
        peer.outcomes[CLOSED] += len(waiting) - len(still)
        waiting = still
        await asyncio.sleep(1)
    if waiting:
        peer.outcomes["not closed"] += len(waiting)
    for opened in connections:
        if opened is not None:
            opened.close()


def _is_open(connection: Connection, served: set[int]) -> bool:
    """Whether the client's side of a connection is open, of which nothing is read, and its port is among ``served``."""
    raw: socket.socket = connection._writer.get_extra_info("socket")
    if raw.fileno() < 0:
        return False
    (state,) = struct.unpack_from("B", raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1))
    return state == _ESTABLISHED and raw.getsockname()[1] in served


def _served_ports(port: int) -> set[int]:
    """Ports of the clients with whom the server at ``port`` has a connection.

    Linux sends nothing to a client when the server drops a connection whose data the client does not take.
    """
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = [
        (row[1].partition(":")[2], row[2].partition(":")[2])
        for row in rows
        if int(row[3], 16) == _ESTABLISHED
    ]
    return {int(remote, 16) for local, remote in ends if int(local, 16) == port}


@wire("1,000 connections whose answers nobody reads")
async def _(peer: Peer, seconds: float) -> None:
    await unread(peer, 1000, b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 31)


@wire("60 streams that nobody reads")
async def _(peer: Peer, seconds: float) -> None:
    fields = {"model": LLM, "messages": SAY, "max_tokens": 400, "stream": True, "ignore_eos": True, "n": 4}
    # Until the last one has had its turn in the engine, and the time of writing.
    await unread(peer, 60, request(CHAT, {**fields, "logprobs": True, "top_logprobs": 20}), until_s=600)


@wire("streams abandoned after their first bytes")
async def _(peer: Peer, seconds: float) -> None:
    data = request(CHAT, {"model": LLM, "messages": SAY, "max_tokens": 500, "stream": True, "n": 8})

    async def act() -> None:
        connection = await peer.connect()
        if connection is None:
            return
        await connection.send(data)
        status = await connection.answer()
        connection.close()
        peer.outcomes["closed by the client" if status == "200" else status] += 1

    await peer.together(8, act, seconds)


@wire("requests abandoned before their answers")
async def _(peer: Peer, seconds: float) -> None:
    data = request(CHAT, {"model": LLM, "messages": SAY, "max_tokens": 500, "n": 128})

    async def act() -> None:
        connection = await peer.connect()
        if connection is None:
            return
        await connection.send(data)
        await asyncio.sleep(0.01)
        connection.close()
        peer.outcomes["closed by the client"] += 1

    await peer.together(8, act, seconds)


@wire("100,000 pipelined requests")
async def _(peer: Peer, seconds: float) -> None:
    async def act() -> None:
        connection = await peer.connect()
        if connection is None:
            return
        sending = asyncio.ensure_future(connection.send((HEALTH + b"\r\n") * 100_000))
        peer.outcomes[await connection.until_closed()] += 1
        sending.cancel()
        connection.close()

    await peer.together(4, act, seconds)


@wire("5,000 headers")
async def _(peer: Peer, seconds: float) -> None:
    lines = b"".join(b"X%d: x\r\n" % i for i in range(5000))
    await peer.together(8, lambda: peer.ask(HEALTH + lines + b"\r\n"), seconds)


@wire("upgrades to websockets and to HTTP/2")
async def _(peer: Peer, seconds: float) -> None:
    asks = [
        HEALTH.replace(b"/health", b"/v1/realtime")
        + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" + b"\x81\xfe\xff\xff" * 1000,
        HEALTH.replace(b"/health", b"/v1/nothing")
        + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    ]
    await _in_turn(peer, seconds, asks)


@wire("requests that could be smuggled")
async def _(peer: Peer, seconds: float) -> None:
    post = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    asks = [
        post + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        post + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}    ",
        post + b"Content-Length: -1\r\n\r\n",
        post + b"Content-Length: 99999999999999999999999999\r\n\r\n",
        post + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n",
        post + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: 0\r\n\r\n",
    ]
    await _in_turn(peer, seconds, asks)


@wire("noise")
async def _(peer: Peer, seconds: float) -> None:
    await peer.together(8, lambda: peer.ask(os.urandom(4096) + b"\r\n\r\n"), seconds)


@wire("chats with 128 completions of 500 tokens")
async def _(peer: Peer, seconds: float) -> None:
    data = request(CHAT, {"model": LLM, "messages": SAY, "max_tokens": 500, "n": 128, "stream": True})

    async def act() -> None:
        connection = await peer.connect()
        if connection is None:
            return
        await connection.send(data)
        status = await connection.answer()
        if status == "200":
            await asyncio.sleep(5)
        connection.close()
        peer.outcomes[status] += 1

    await peer.together(2, act, seconds)


async def _in_turn(peer: Peer, seconds: float, asks: list[bytes]) -> None:
    turns = 0

    async def act() -> None:
        nonlocal turns
        turns += 1
        await peer.ask(asks[turns % len(asks)])

    await peer.together(8, act, seconds)

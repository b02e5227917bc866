"""A client that keeps to no rules: raw bytes over a socket, from an address of its own."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any

from attrs import define, field
from sage_infer.compat import timeout

__all__ = ["CLOSED", "Connection", "Peer", "request"]

CLOSED = "closed"
"""Outcome of a connection that the server closed without an answer, or before it had all that was sent."""

_PIECE = 1 << 18


def request(path: str, body: Any, *, head: str = "") -> bytes:
    """A POST with this body, as JSON unless it is bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
    lines = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{head}"
    return f"{lines}Content-Length: {len(data)}\r\n\r\n".encode() + data


class Connection:
    """One connection. Every method returns, whatever the server does, within the peer's patience."""

    def __init__(self, peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._peer, self._reader, self._writer = peer, reader, writer

    async def send(self, data: bytes) -> bool:
        """Send all of it; False if the server closed the connection, or does not read it in time."""
        try:
            async with timeout(self._peer.patience_s):
                for start in range(0, len(data), _PIECE):
                    self._writer.write(data[start : start + _PIECE])
                    await self._writer.drain()
        except (OSError, TimeoutError):
            return False
        return not self._writer.is_closing()

    async def answer(self) -> str:
        """Status of the next answer, whose body is read to its end or not at all; ``CLOSED``, or what is wrong."""
        try:
            async with timeout(self._peer.patience_s):
                line = await self._reader.readline()
                if not line:
                    return CLOSED
                status = line.split(b" ", 2)[1].decode() if line.startswith(b"HTTP/1.") else "no HTTP"
                length = 0
                while (head := await self._reader.readline()).strip():
                    name, _, value = head.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                await self._reader.readexactly(length)
                return status
        except TimeoutError:
            return "no answer"
        except (OSError, asyncio.IncompleteReadError, ValueError):
            return CLOSED

    async def until_closed(self) -> str:
        """The first answer's status if there is one, once the server has closed the connection."""
        first = await self.answer()
        if first == CLOSED:
            return first
        try:
            async with timeout(self._peer.patience_s):
                while await self._reader.read(_PIECE):
                    pass
        except TimeoutError:
            return "not closed"
        except OSError:
            pass
        return first

    def close(self) -> None:
        self._writer.transport.abort()


@define
class Peer:
    """Where attacks come from and go to.

    Attributes:
        port: of the server, on this machine.
        address: of this client: not that of others, as servers count connections per address.
        patience_s: how long it waits for one answer, or for a connection to be closed.
        outcomes: how often the server did what.
    """

    port: int
    address: str = "127.0.0.9"
    patience_s: float = 60.0
    outcomes: Counter[str] = field(factory=Counter)

    async def connect(self, *, receive_buffer: int | None = None) -> Connection | None:
        """A connection; None if the server refuses it, which is counted."""
        raw = socket.socket()
        raw.setblocking(False)
        if receive_buffer is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            raw.bind((self.address, 0))
            async with timeout(self.patience_s):
                await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", self.port))
                reader, writer = await asyncio.open_connection(sock=raw, limit=2**22)
        except (OSError, TimeoutError):
            raw.close()
            self.outcomes["not connected"] += 1
            return None
        return Connection(self, reader, writer)

    async def ask(self, data: bytes) -> str:
        """Send one request on a connection of its own; count and return what came back."""
        connection = await self.connect()
        if connection is None:
            return "not connected"
        sending = asyncio.ensure_future(connection.send(data))  # an answer may come before all is sent
        try:
            outcome = await connection.answer()
            if outcome == CLOSED and sending.done() and await connection.send(b""):
                outcome = CLOSED
        finally:
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending
            connection.close()
        self.outcomes[outcome] += 1
        return outcome

    async def together(self, count: int, act: Callable[[], Awaitable[object]], seconds: float) -> None:
        """Run ``act`` again and again from so many tasks, until the time is over."""
        until = asyncio.get_running_loop().time() + seconds

        async def one() -> None:
            while asyncio.get_running_loop().time() < until:
                await act()

        await asyncio.gather(*(one() for _ in range(count)))

    async def all_closed(self, connections: Iterable[Connection | None]) -> None:
        """Wait until the server has closed them, and count how."""
        ends = await asyncio.gather(*(c.until_closed() for c in connections if c is not None))
        self.outcomes.update(ends)

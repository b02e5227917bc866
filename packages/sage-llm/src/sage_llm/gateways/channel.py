"""Pickled messages between two processes of one machine, without ever blocking the event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any, cast

__all__ = ["Channel", "open_channel"]

_HEAD = 4


class Channel(asyncio.Protocol):
    """One end of a pair of sockets.

    Args:
        on_message: called with each message.
        on_end: called when the other end is closed.
    """

    def __init__(self, on_message: Callable[[Any], object], on_end: Callable[[], object]) -> None:
        self._on_message, self._on_end = on_message, on_end
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._newest: Any = None
        self.is_congested = False

    def send(self, message: Any) -> None:
        """Send a message; does nothing after the end."""
        if self._transport is not None and not self._transport.is_closing():
            data = bytes(ForkingPickler.dumps(message))
            self._transport.write(len(data).to_bytes(_HEAD, "big") + data)

    def send_newest(self, message: Any) -> None:
        """Send a message that replaces earlier ones; while the other end does not read, only the newest is kept."""
        if self.is_congested:
            self._newest = message
        else:
            self.send(message)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= _HEAD:
            end = _HEAD + int.from_bytes(self._received[:_HEAD], "big")
            if len(self._received) < end:
                break
            message = ForkingPickler.loads(bytes(self._received[_HEAD:end]))
            del self._received[:end]
            self._on_message(message)

    def pause_writing(self) -> None:
        self.is_congested = True

    def resume_writing(self) -> None:
        self.is_congested = False
        newest, self._newest = self._newest, None
        if newest is not None:
            self.send(newest)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._on_end()


async def open_channel(
    end: socket.socket, on_message: Callable[[Any], object], on_end: Callable[[], object]
) -> Channel:
    """A channel over one end of a ``socket.socketpair``."""
    loop = asyncio.get_running_loop()
    _, channel = await loop.create_unix_connection(lambda: Channel(on_message, on_end), sock=end)
    return channel

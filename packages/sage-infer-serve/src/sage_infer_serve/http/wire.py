"""Fast paths of our server that bypass ASGI, to save a coroutine, a task or a system call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uvicorn.protocols.http.flow_control import FlowControl
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

__all__ = ["WIRE", "HeadHolder", "Wire"]

_START = b"HTTP/1.1 "  # of every response
_COMMENT = b":\n\n"  # of a stream of events; clients ignore it

WIRE = "sage_infer.wire"
"""ASGI extension: the ``Wire`` of the request."""


class HeadHolder:
    """A transport that sends a response's head with the first piece of its body in one system call.

    Everything else is forwarded to the underlying transport. Before any other operation, and when
    the response ends without a body (``flush``), the head is sent alone. ``probe`` sends its first bytes early.
    """

    __slots__ = ("_early", "_head", "_transport", "write")

    write: Callable[[bytes], None]

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self._early = 0  # bytes of the head that were sent
        self.write = self._hold

    def _hold(self, data: bytes) -> None:
        if data.startswith(b"HTTP/1.1 100 "):
            self._send(data)  # the client waits for it before it sends its body
        elif not self._head:
            self._head = data
        else:
            self.write = self._transport.write
            self._send(self._head + data)
            self._head = b""

    def _send(self, data: bytes) -> None:
        self._transport.write(data[self._early :] if self._early else data)
        self._early = 0

    def flush(self) -> None:
        if self._head:
            self.write = self._transport.write
            self._send(self._head)
            self._head = b""

    def probe(self) -> bool:
        """Send the next byte that every response starts with; False if there is none, or the head was sent."""
        if self.write != self._hold or self._early == len(_START):
            return False
        self._transport.write(_START[self._early : self._early + 1])
        self._early += 1
        return True

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Wire:
    """One response's connection: direct writes of body parts, and notification of a disconnect.

    ``write`` does what uvicorn's ``send`` does for a ``http.response.body`` with ``more_body`` and chunked
    encoding; each token of a stream saves several microseconds.

    Attributes:
        loop: the event loop, stored because looking it up costs a system call.
        is_stream: a stream of events has started.
    """

    __slots__ = ("_cycle", "_flow", "_on_disconnect", "_transport", "is_stream", "loop")

    def __init__(
        self,
        cycle: RequestResponseCycle,
        transport: HeadHolder,
        flow: FlowControl,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._cycle, self._transport, self._flow, self.loop = cycle, transport, flow, loop
        self._on_disconnect: Callable[[], None] | None = None
        self.is_stream = False

    @property
    def has_body(self) -> bool:
        """Whether the whole request body has arrived."""
        return not self._cycle.more_body

    def write(self, data: bytes) -> bool:
        """Write, or return False if ``send`` is required: the client reads too slowly, has disconnected, or rejects
        chunks.
        """
        cycle = self._cycle
        if self._flow.write_paused or cycle.disconnected or not cycle.chunked_encoding:
            return False
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    def probe(self) -> None:
        """Send bytes without a meaning, to learn from a failing write that the client has disconnected."""
        if self._flow.write_paused or self._cycle.disconnected or self._transport.probe():
            return
        if self.is_stream and not self.write(_COMMENT):
            self._transport.write(_COMMENT)

    def watch(self, on_disconnect: Callable[[], None]) -> None:
        """Call ``on_disconnect`` when the client disconnects, or soon if it already has."""
        self._on_disconnect = on_disconnect
        self._flow.resume_reading()  # may be paused by a long body, which would hide a disconnect
        if self._cycle.disconnected:
            self.loop.call_soon(self.lost)

    def unwatch(self) -> None:
        self._on_disconnect = None

    def lost(self) -> None:
        """Called by the server when the connection is lost."""
        self._cycle.disconnected = True  # uvicorn marks the latest of pipelined requests only
        on_disconnect, self._on_disconnect = self._on_disconnect, None
        if on_disconnect is not None:
            on_disconnect()

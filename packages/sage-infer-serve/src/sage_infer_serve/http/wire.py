"""What an endpoint can do on our own server beside ASGI, where ASGI would cost a coroutine, a task or a
system call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uvicorn.protocols.http.flow_control import FlowControl
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

__all__ = ["WIRE", "HeadHolder", "Wire"]

WIRE = "sage_infer.wire"
"""ASGI extension: the ``Wire`` of the request."""


class HeadHolder:
    """A transport that sends a response's head together with the first piece of its body, in one system call.

    Everything else goes straight to the transport behind it. Before anything that is not a write, and when
    the response ends without a body (``flush``), the head is sent by itself.
    """

    __slots__ = ("_head", "_transport", "write")

    write: Callable[[bytes], None]

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self.write = self._hold

    def _hold(self, data: bytes) -> None:
        if data.startswith(b"HTTP/1.1 100 "):
            self._transport.write(data)  # the client waits for it before it sends its body
        elif not self._head:
            self._head = data
        else:
            self.write = self._transport.write
            self._transport.write(self._head + data)
            self._head = b""

    def flush(self) -> None:
        if self._head:
            self.write = self._transport.write
            self._transport.write(self._head)
            self._head = b""

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Wire:
    """One response's connection: parts of its body at once, and word of a client that has gone.

    ``write`` does what uvicorn's ``send`` does for a ``http.response.body`` with ``more_body`` and chunked
    encoding; a stream's tokens each save several microseconds by it.

    Attributes:
        loop: the event loop, which costs a system call to ask for.
    """

    __slots__ = ("_cycle", "_flow", "_on_disconnect", "_transport", "loop")

    def __init__(
        self,
        cycle: RequestResponseCycle,
        transport: HeadHolder,
        flow: FlowControl,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._cycle, self._transport, self._flow, self.loop = cycle, transport, flow, loop
        self._on_disconnect: Callable[[], None] | None = None

    @property
    def has_body(self) -> bool:
        """The request's body has arrived as a whole."""
        return not self._cycle.more_body

    def write(self, data: bytes) -> bool:
        """Write, or give False where it takes ``send``: the client reads too slowly, has gone, or wants no
        chunks.
        """
        cycle = self._cycle
        if self._flow.write_paused or cycle.disconnected or not cycle.chunked_encoding:
            return False
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    def watch(self, on_disconnect: Callable[[], None]) -> None:
        """Call ``on_disconnect`` when the client goes away, or soon where it has gone already."""
        self._on_disconnect = on_disconnect
        self._flow.resume_reading()  # which a long body may have paused, and who does not read is told nothing
        if self._cycle.disconnected:
            self.loop.call_soon(self.lost)

    def unwatch(self) -> None:
        self._on_disconnect = None

    def lost(self) -> None:
        """For the server to call: the connection is gone."""
        on_disconnect, self._on_disconnect = self._on_disconnect, None
        if on_disconnect is not None:
            on_disconnect()

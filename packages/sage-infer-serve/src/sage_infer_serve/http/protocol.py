"""uvicorn's HTTP protocol with limits on what comes before a request: time, size and number.

uvicorn waits without end for a first request, and its parser takes headers of any length; both are ways to hold a
server up. What comes after the headers is limited in ``app``.
"""

from __future__ import annotations

import asyncio
from typing import Any

from attrs import define, field
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from sage_infer_serve.http.errors import error_body, wrong_request
from sage_infer_serve.http.wire import WIRE, HeadHolder, Wire

__all__ = ["ConnectionLimits", "limited_protocol"]

_MAX_HEADER_BYTES = 64 * 1024


@define(eq=False)
class ConnectionLimits:
    """Connections that have no request under way, oldest first; beyond ``max_idle`` the oldest one has to go."""

    max_idle: int
    header_timeout_s: float
    idle: dict[asyncio.Protocol, asyncio.Transport] = field(factory=dict)

    def add(self, protocol: asyncio.Protocol, transport: asyncio.Transport) -> None:
        self.idle[protocol] = transport
        if len(self.idle) > self.max_idle:
            oldest = next(iter(self.idle))
            self.idle.pop(oldest).close()

    def remove(self, protocol: asyncio.Protocol) -> None:
        self.idle.pop(protocol, None)


def limited_protocol(limits: ConnectionLimits) -> type[HttpToolsProtocol]:
    """A protocol class whose connections share ``limits``."""

    class LimitedProtocol(HttpToolsProtocol):
        _header_timer: asyncio.TimerHandle | None = None
        _header_bytes = 0
        _in_headers = True
        _has_begun = False  # a request whose headers are not complete
        _wires: tuple[Wire, ...] = ()  # of the responses that are not complete, oldest first

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            limits.add(self, transport)
            self._await_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            limits.remove(self)
            self._headers_are_here()
            super().connection_lost(exc)
            wires, self._wires = self._wires, ()
            for wire in wires:
                wire.lost()

        def data_received(self, data: bytes) -> None:
            if self._in_headers:
                self._header_bytes += len(data)
                if self._header_bytes > _MAX_HEADER_BYTES and not self._ends_soon(data):
                    self._refuse(431, f"the headers are longer than {_MAX_HEADER_BYTES} bytes")
                    return
            super().data_received(data)
            if self._has_begun and self._header_timer is None:  # not the connection's first request
                self._await_headers()

        def _ends_soon(self, data: bytes) -> bool:
            """Whether the headers end in this piece, so that what is counted is mostly a body."""
            return b"\r\n\r\n" in data and self._header_bytes - len(data) < _MAX_HEADER_BYTES

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._in_headers = self._has_begun = True

        def on_headers_complete(self) -> None:
            limits.remove(self)
            self._headers_are_here()
            super().on_headers_complete()
            cycle, held = self.cycle, HeadHolder(self.transport)
            cycle.transport = held  # type: ignore[assignment]  # has what is used of it
            wire = Wire(cycle, held, self.flow, self.loop)
            self._wires += (wire,)
            extensions: dict[str, Any] = {WIRE: wire}
            self.scope["extensions"] = extensions

            def complete() -> None:
                held.flush()
                self._wires = self._wires[1:]
                self.on_response_complete()

            cycle.on_response = complete

        def on_message_complete(self) -> None:
            super().on_message_complete()
            self._in_headers, self._header_bytes = True, 0

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self.pipeline and not self.transport.is_closing():
                limits.add(self, self.transport)

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, "this is not HTTP/1.1 as RFC 9112 has it")

        def _refuse(self, status: int, message: str) -> None:
            if self.transport.is_closing():
                return
            body = error_body(wrong_request(message, status=status, code="bad_http"))
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(
                body
            )
            self.transport.write(STATUS_LINE[status] + head + body)
            self.transport.close()

        def _await_headers(self) -> None:
            self._header_timer = self.loop.call_later(limits.header_timeout_s, self._give_up)

        def _headers_are_here(self) -> None:
            self._in_headers = self._has_begun = False
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _give_up(self) -> None:
            """No whole request came in time. One that had begun is told so."""
            self._header_timer = None
            if self._header_bytes:
                self._refuse(408, "the request's headers did not arrive in time")
            else:
                self.transport.close()

    return LimitedProtocol

"""uvicorn's HTTP protocol with limits on request sizes, on time, and on the number of connections.

uvicorn waits indefinitely for a first request, its parser accepts headers and trailers of any length, and it queues any
number of pipelined requests. Each allows denial of service. The body size is limited in ``app``.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from sage_infer_serve.http.connections import ConnectionLimits
from sage_infer_serve.http.errors import error_body, wrong_request
from sage_infer_serve.http.old_client import unchunked_send
from sage_infer_serve.http.turns import Turns
from sage_infer_serve.http.wire import WIRE, HeadHolder, Wire

__all__ = ["MAX_HEADER_BYTES", "limited_protocol"]

MAX_HEADER_BYTES = 64 * 1024
_FRAMING_PER_BYTE = 8  # a one-byte chunk needs six bytes; all other framing is limited like headers
_MAX_HEADERS = 256  # each costs objects that take ten times its bytes
_MAX_CHUNKS = 65_536  # of a body, and one more for every 64 bytes of it
_MAX_PIPELINED = 16  # requests waiting for earlier responses
_MAX_UNWANTED_BODY = 2**20  # bytes of a body that are read after the response
_PROBE_DELAYS_S = (0.02, 0.1, 0.5, 2.0, 8.0, 30.0, 100.0)  # seconds between probes; the last one repeats
_FRAMING = (b"content-length", b"transfer-encoding")


class _Refusal(Exception):
    """Raised in a callback of the parser, to make it stop."""


def limited_protocol(limits: ConnectionLimits) -> type[HttpToolsProtocol]:
    """A protocol class whose connections share ``limits``."""
    turns = Turns()

    class LimitedProtocol(HttpToolsProtocol):
        _header_timer: asyncio.TimerHandle | None = None
        _header_bytes = 0
        _in_headers = True
        _has_begun = False  # a request with incomplete headers
        _wires: tuple[Wire, ...] = ()  # of incomplete responses, oldest first
        _requests = 0  # started and ended, to tell whether data belongs to a single request
        _body_bytes = 0  # of the current request
        _chunks = 0
        _framing_bytes = 0  # chunk sizes, their extensions, and trailers
        _prober: asyncio.TimerHandle | None = None  # of a client that has closed its writing side
        _is_replaying = False  # the head of a request that asks for an upgrade
        _postponed = b""  # data with several requests, until this connection's turn
        _refusal = (400, "invalid HTTP/1.1 (RFC 9112)")

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            peer = self.client[0] if self.client else ""
            if not limits.admit(self, transport, peer):
                self._refuse(503, "too many open connections; retry later")
                return
            limits.idle(self)
            self._await_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            limits.lost(self)
            self._headers_are_here()
            if self._prober is not None:
                self._prober.cancel()
            super().connection_lost(exc)
            wires, self._wires = self._wires, ()
            for wire in wires:
                wire.lost()

        def eof_received(self) -> bool:  # type: ignore[override]
            """The client has closed its writing side; requests that arrived completely are answered.

            Clients that have disconnected look the same until they receive data, which they answer with a reset.
            """
            self._take_postponed()
            if not self._in_headers and self.pipeline and self.pipeline[0][0] is self.cycle:
                self.pipeline.popleft()  # its body will not arrive
                self._wires = self._wires[:-1]
            elif not self._in_headers:
                return False
            if not self._wires or self.transport.is_closing():
                return False
            self._headers_are_here()
            self._probe(0)
            return True

        def _probe(self, sent: int) -> None:
            if self._wires and not self.transport.is_closing():
                self._wires[0].probe()
            delay = _PROBE_DELAYS_S[min(sent, len(_PROBE_DELAYS_S) - 1)]
            self._prober = self.loop.call_later(delay, self._probe, sent + 1)

        def data_received(self, data: bytes) -> None:
            if self._postponed:
                self._postponed += data
            elif data.count(b"\r\n\r\n") > 1:
                self._postponed = data
                self.flow.pause_reading()
                turns.add(self._take_postponed)
            else:
                self._read(data)

        def _take_postponed(self) -> None:
            data, self._postponed = self._postponed, b""
            if data and not self.transport.is_closing():
                self.flow.resume_reading()
                self._read(data)

        def _read(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            limits.churn += len(data)
            if self._in_headers:
                self._header_bytes += len(data)
                if self._header_bytes > MAX_HEADER_BYTES and not self._ends_soon(data):
                    self._refuse(431, f"headers exceed {MAX_HEADER_BYTES} bytes")
                    return
            was_body, requests, body_bytes = not self._in_headers, self._requests, self._body_bytes
            self._unset_keepalive_if_required()
            self._parse(data)
            if was_body and requests == self._requests:  # all of it belongs to this request
                self._framing_bytes += len(data) - (self._body_bytes - body_bytes)
                if self._framing_bytes > MAX_HEADER_BYTES + _FRAMING_PER_BYTE * self._body_bytes:
                    self._refuse(431, f"chunk sizes and trailers exceed {MAX_HEADER_BYTES} bytes")
                elif self._body_bytes > _MAX_UNWANTED_BODY and self.cycle.response_complete:
                    self.transport.abort()
            if self._has_begun and self._header_timer is None:  # not the connection's first request
                self._await_headers()

        def _parse(self, data: bytes) -> None:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserError:
                self._refuse(*self._refusal)
            except httptools.HttpParserUpgrade as upgrade:
                self._ignore_upgrade(data[upgrade.args[0] :])

        def _ignore_upgrade(self, rest: bytes) -> None:
            """Read the body of a request that asks for an upgrade, as Java's HTTP client does with the first one.

            The parser takes it for a request without a body. Another one, which gets the framing only, reads the body.
            """
            if self._has_framing():
                lines = b"".join(b"%b: %b\r\n" % pair for pair in self.headers if pair[0] in _FRAMING)
                self.parser = httptools.HttpRequestParser(self)
                self._is_replaying = True
                self.parser.feed_data(b"POST / HTTP/1.1\r\n" + lines + b"\r\n")
                self._is_replaying = False
            if rest:
                self._parse(rest)

        def _has_framing(self) -> bool:
            return any(name in _FRAMING for name, _ in self.headers)

        def _ends_soon(self, data: bytes) -> bool:
            """Whether the headers end in this piece, so that the counted bytes are mostly body."""
            return b"\r\n\r\n" in data and self._header_bytes - len(data) < MAX_HEADER_BYTES

        def on_message_begin(self) -> None:
            if self._is_replaying:
                return
            super().on_message_begin()
            self._in_headers = self._has_begun = True
            self._requests += 1
            self._body_bytes = self._framing_bytes = self._chunks = 0

        def on_url(self, url: bytes) -> None:
            if not self._is_replaying:
                super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            if self._is_replaying:
                return
            if len(self.headers) >= _MAX_HEADERS:
                raise self._stop(431, f"more than {_MAX_HEADERS} headers")
            if self._in_headers:  # else a trailer, which is not used
                super().on_header(name, value)

        def on_body(self, body: bytes) -> None:
            self._body_bytes += len(body)
            self._chunks += 1
            if self._chunks > _MAX_CHUNKS + self._body_bytes // 64:
                raise self._stop(400, "the chunks of the body are too small")
            super().on_body(body)

        def on_headers_complete(self) -> None:
            if self._is_replaying:
                return
            if len(self.pipeline) >= _MAX_PIPELINED:
                raise self._stop(400, f"more than {_MAX_PIPELINED} pipelined requests")
            is_old = self.parser.get_http_version() == "1.0"
            hosts = sum(name == b"host" for name, _ in self.headers)
            if hosts != 1 and not (is_old and hosts == 0):
                raise self._stop(400, f"expected one Host header, got {hosts}")
            limits.busy(self)
            self._headers_are_here()
            super().on_headers_complete()
            cycle, held = self.cycle, HeadHolder(self.transport)
            cycle.transport = held  # type: ignore[assignment]  # has what is used of it
            if is_old:
                cycle.send = unchunked_send(cycle)  # type: ignore[method-assign,assignment]  # its task comes later
            wire = Wire(cycle, held, self.flow, self.loop)
            self._wires += (wire,)
            extensions: dict[str, Any] = {WIRE: wire}
            self.scope["extensions"] = extensions

            def complete() -> None:
                held.flush()
                extensions.clear()  # else scope, wire and cycle would keep each other until a full collection
                self._wires = self._wires[1:]
                self.on_response_complete()

            cycle.on_response = complete

        def on_message_complete(self) -> None:
            if self.parser.should_upgrade() and self._has_framing():
                return  # see _ignore_upgrade
            super().on_message_complete()
            self._in_headers, self._header_bytes = True, 0
            self._requests += 1

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._wires or self.transport.is_closing():  # a pipelined request has started
                return
            if self._prober is not None:  # no further request can arrive
                self.transport.close()
            else:
                limits.idle(self)

        def pause_writing(self) -> None:
            super().pause_writing()
            limits.stalled(self, True)

        def resume_writing(self) -> None:
            super().resume_writing()
            limits.stalled(self, False)

        def waits_for_reader(self) -> bool:
            return self.flow.write_paused or self.transport.is_closing() or not self._wires

        def _stop(self, status: int, message: str) -> _Refusal:
            self._refusal = status, message
            return _Refusal(message)

        def _refuse(self, status: int, message: str) -> None:
            if self.transport.is_closing():
                return
            if self._answers_have_begun():  # it would follow or corrupt an earlier response
                self.transport.abort()
                return
            body = error_body(wrong_request(message, status=status, code="bad_http"))
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(
                body
            )
            self.transport.write(STATUS_LINE[status] + head + body)
            self.transport.close()

        def _answers_have_begun(self) -> bool:
            if self._in_headers or self.cycle is None:
                return bool(self._wires)
            return len(self._wires) > 1 or self.cycle.response_started

        def _await_headers(self) -> None:
            self._header_timer = self.loop.call_later(limits.header_timeout_s, self._give_up)

        def _headers_are_here(self) -> None:
            self._in_headers = self._has_begun = False
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _give_up(self) -> None:
            """No complete request arrived in time. A client that has started one gets an error response."""
            self._header_timer = None
            if self._header_bytes:
                self._refuse(408, "timed out waiting for the request headers")
            else:
                self.transport.close()

    return LimitedProtocol

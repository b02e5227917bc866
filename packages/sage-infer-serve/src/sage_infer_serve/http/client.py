"""An HTTP client for streams: keep-alive connections with one request at a time, and arrival times of pieces.

Bytes are parsed on arrival, in the protocol's ``data_received``, by httptools, which the gateway uses too. A streamed
chunk costs no task switch, so its recorded time is its arrival time. docs/decisions/0028 compares the cost with
aiohttp and httpx.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import httptools
from attrs import field, frozen
from sage_infer.compat import timeout
from sage_infer.errors import InvalidRequest

__all__ = ["Answer", "Client", "Disconnected", "Server"]

OnPiece = Callable[[bytes, float], None]
OnHead = Callable[[], None]


class Disconnected(Exception):
    """The server could not be reached, or disconnected before its answer was complete."""


@frozen(kw_only=True)
class Answer:
    """A response. Names of headers are lower-case; the body is empty if its pieces were passed to a callback."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(factory=dict)


@frozen(kw_only=True)
class Server:
    """Address of a server. ``prefix`` precedes every path."""

    host: str
    port: int
    tls: bool
    prefix: str

    @classmethod
    def parse(cls, url: str) -> Server:
        """Parse a URL, with or without the trailing ``/v1`` of OpenAI clients.

        Raises:
            InvalidRequest: it is not a server URL.
        """
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError as error:
            raise InvalidRequest(f"--url {url!r}: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise InvalidRequest(
                f"--url must be like http://127.0.0.1:8000 or https://host/prefix, got {url!r}"
            )
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        tls = parts.scheme == "https"
        return cls(host=parts.hostname, port=port or (443 if tls else 80), tls=tls, prefix=prefix)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.prefix}"


class Client:
    """Sends requests to one server, with one connection per concurrent request."""

    def __init__(
        self,
        server: Server,
        *,
        api_key: str | None = None,
        agent: str = "sage-infer-bench",
        connect_s: float | None = None,
    ) -> None:
        self._server, self._connect_s = server, connect_s
        self._idle: list[_Connection] = []
        self._tls = ssl.create_default_context() if server.tls else None
        host = str(server).split("/")[2]
        lines = [f"Host: {host}", f"User-Agent: {agent}", "Accept: */*"]
        if api_key:
            lines.append(f"Authorization: Bearer {api_key}")
        self._headers = "".join(f"{line}\r\n" for line in lines).encode("latin-1")

    async def get(self, path: str) -> Answer:
        head = b"GET %b HTTP/1.1\r\n%b\r\n" % (self._target(path), self._headers)
        return await self._exchange(head, None)

    async def post(
        self,
        path: str,
        body: bytes,
        on_piece: OnPiece | None = None,
        *,
        on_head: OnHead | None = None,
        headers: bytes = b"",
    ) -> Answer:
        """Send JSON. ``on_piece(bytes, time)`` receives the body of a 200 in pieces, timed by ``time.perf_counter``.

        ``on_head`` is called when the head of a 200 has arrived. ``headers`` are additional lines, each with its end.

        Raises:
            Disconnected: the response is incomplete.
        """
        head = b"POST %b HTTP/1.1\r\n%b%bContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (
            self._target(path),
            self._headers,
            headers,
            len(body),
        )
        return await self._exchange(head + body, on_piece, on_head)

    def close(self) -> None:
        for connection in self._idle:
            connection.abort()
        self._idle.clear()

    def _target(self, path: str) -> bytes:
        return (self._server.prefix + path).encode("ascii", "replace")

    async def _exchange(
        self, request: bytes, on_piece: OnPiece | None, on_head: OnHead | None = None
    ) -> Answer:
        while self._idle:
            connection = self._idle.pop()
            try:
                return await self._on(connection, request, on_piece, on_head)
            except _Stale:  # the server closed the idle connection before it saw the request
                continue
        return await self._on(await self._connect(), request, on_piece, on_head)

    async def _on(
        self, connection: _Connection, request: bytes, on_piece: OnPiece | None, on_head: OnHead | None
    ) -> Answer:
        try:
            answer = await connection.exchange(request, on_piece, on_head)
        except BaseException:
            connection.abort()
            raise
        if connection.reusable:
            self._idle.append(connection)
        else:
            connection.abort()
        return answer

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with timeout(self._connect_s):
                _, connection = await loop.create_connection(
                    _Connection, self._server.host, self._server.port, ssl=self._tls
                )
        except TimeoutError:
            raise Disconnected(f"cannot connect in {self._connect_s:g} s") from None
        except OSError as error:
            raise Disconnected(f"cannot connect: {error.strerror or error}") from None
        return connection


class _Stale(Exception):
    """A keep-alive connection was closed before the server sent anything on it."""


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._transport: Any = None  # no common base class in asyncio and uvloop
        self._answered = False  # a response was received on it
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None
        self._reset(None, None)

    def _reset(self, on_piece: OnPiece | None, on_head: OnHead | None) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._on_piece, self._on_head = on_piece, on_head
        self._head: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._status = 0
        self._until_close = self._keep_alive = False
        self._now = 0.0

    @property
    def reusable(self) -> bool:
        return not self._closed and self._keep_alive

    async def exchange(self, request: bytes, on_piece: OnPiece | None, on_head: OnHead | None) -> Answer:
        if self._closed:
            raise _Stale
        self._reset(on_piece, on_head)
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await self._waiter
        self._answered = True
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in self._head}
        return Answer(status=self._status, body=b"".join(self._body), headers=headers)

    def abort(self) -> None:
        self._closed = True
        if self._transport is not None:
            self._transport.abort()

    def _end(self, error: Exception | None = None) -> None:
        if self._waiter is not None and not self._waiter.done():
            if error is None:
                self._waiter.set_result(None)
            else:
                self._waiter.set_exception(error)

    # --- asyncio callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort()
            self._end(Disconnected("the response is not HTTP"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        if self._until_close and exc is None:
            self._end()
        elif self._answered and not self._status:
            self._end(_Stale())
        else:
            self._end(Disconnected("the connection was closed before the end of the response"))

    # --- httptools callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head.append((name, value))
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._until_close = False

    def on_status(self, status: bytes) -> None:
        self._until_close = True  # unless a header gives the body's length

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        if self._on_head is not None and self._status == 200:
            self._on_head()

    def on_body(self, body: bytes) -> None:
        if self._on_piece is not None and self._status == 200:
            self._on_piece(body, self._now)
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._status >= 200:  # 1xx responses precede the final one
            self._until_close = False
            self._keep_alive = self._parser.should_keep_alive()  # the parser knows it only here
            self._end()

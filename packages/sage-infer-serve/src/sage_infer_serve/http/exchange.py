"""One request and its response, over ASGI."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Literal

from sage_infer.compat import timeout

from sage_infer_serve.http.auth import APIKey
from sage_infer_serve.http.errors import HTTPError, error_body, wrong_request
from sage_infer_serve.http.intake import FREE, Intake
from sage_infer_serve.http.shares import network_of
from sage_infer_serve.http.wire import WIRE, Wire

__all__ = ["JSON", "Exchange", "Receive", "Scope", "Send"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

JSON = b"application/json"
_FORMS = frozenset((b"application/x-www-form-urlencoded", b"multipart/form-data"))
Stop = Literal["client", "body", "timeout", "shutdown"]
"""Reason for an early end: the client, the body timeout, the request timeout, or server shutdown."""

_SSE_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # otherwise nginx would buffer the events
)
_DISCARD_S = 5.0  # time to read the rest of a rejected body, so that the client sees the response


class Exchange:
    """One request and its response, as seen by handlers. ``stopped`` is the reason for an early end, if any.

    Attributes:
        headers: the request's, by name in lower case.
        client: name of the API key, else the address of the client (of IPv6 its network); empty if unknown.
        ended: the whole response has been sent.
        body_bytes: length of the request's body, once it was read.
        model: the answering model, for metrics; empty until it is known to exist.
        status: the status sent, 0 before.
        failed: an error was sent inside a stream.
    """

    __slots__ = (
        "_held",
        "_intake",
        "_receive",
        "_send",
        "_task",
        "_timer",
        "_watcher",
        "_wire",
        "body_bytes",
        "client",
        "ended",
        "extra_headers",
        "failed",
        "headers",
        "key",
        "loop",
        "model",
        "path",
        "request_id",
        "scope",
        "started",
        "status",
        "stopped",
        "streaming",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self.request_id = request_id
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.started = time.perf_counter()
        self.key: APIKey | None = None
        peer = scope.get("client")
        self.client = network_of(peer[0]) if peer else ""
        self.model = ""
        self.status = 0
        self.streaming = False
        self.failed = False
        self.stopped: Stop | None = None
        self.extra_headers: tuple[tuple[bytes, bytes], ...] = ()
        self.ended = False
        self.body_bytes = 0
        self._held = 0
        self._intake: Intake | None = None
        self._wire: Wire | None = scope.get("extensions", {}).get(WIRE)  # None on other servers
        self.loop = asyncio.get_running_loop() if self._wire is None else self._wire.loop
        self._task = asyncio.current_task(self.loop)
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None

    # --- the request

    async def body(self, limit: int, intake: Intake) -> bytes:
        """The whole body. What ``intake`` holds of it is given back by ``release_body``.

        Raises:
            HTTPError: it exceeds ``limit`` bytes (413), is compressed or a form (415), or there is no memory for it
                (503).
        """
        length = self.headers.get(b"content-length")
        if length is not None and int(length) > limit:  # the parser guarantees a number
            raise _too_large(limit)
        parts, size, more = [], 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.stopped = "client"
                raise asyncio.CancelledError
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
            size += len(parts[-1])
            if size > limit:
                raise _too_large(limit)
            if size - FREE > self._held:
                more_bytes = size - FREE - self._held
                intake.check(more_bytes)
                self._held, self._intake = size - FREE, intake
                await intake.take(more_bytes)
        self.body_bytes = size
        self._check_form()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def release_body(self) -> None:
        if self._intake is not None:
            self._intake.give_back(self._held)
            self._held, self._intake = 0, None

    def _check_form(self) -> None:
        """Reject bodies that are not plain JSON by their headers: the JSON decoder's message would be less clear."""
        encoding = self.headers.get(b"content-encoding", b"").strip().lower()
        if encoding not in (b"", b"identity"):
            name = encoding.decode("latin-1")[:40]
            message = f"content-encoding {name!r} is not supported; send the body without compression"
            error = wrong_request(message, status=415, code="unsupported_content_encoding")
            error.headers = ((b"accept-encoding", b"identity"),)
            raise error
        kind = self.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind in _FORMS:
            message = f"content-type {kind.decode()} is not supported; send JSON with content-type: application/json"
            error = wrong_request(message, status=415, code="unsupported_media_type")
            error.headers = ((b"accept", JSON),)
            raise error

    def watch(self) -> None:
        """Stop the exchange when the client disconnects. Called after the body was read."""
        if self._wire is not None:
            self._wire.watch(self._client_left)
        else:
            self._watcher = self.loop.create_task(self._watch())

    def unwatch(self) -> None:
        if self._wire is not None:
            self._wire.unwatch()
        if self._watcher is not None:
            self._watcher.cancel()

    @property
    def has_body(self) -> bool:
        """Whether the whole body is known to have arrived."""
        return self._wire is not None and self._wire.has_body

    def stop_after(self, seconds: float, why: Stop) -> None:
        """Set or replace the time at which the exchange stops; ``in_time`` clears it."""
        self.in_time()
        self._timer = self.loop.call_later(seconds, self.stop, why)

    def in_time(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._client_left()

    def _client_left(self) -> None:
        self.stop("client")

    def stop(self, why: Stop) -> None:
        """End the exchange early; its task is cancelled, which frees its resources in the engine."""
        if not self.stopped and not self.ended and self._task is not None and not self._task.done():
            self.stopped = why
            self._task.cancel()

    # --- the response

    async def respond(
        self,
        body: bytes,
        *,
        status: int = 200,
        kind: bytes = JSON,
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        """Send the whole response."""
        await self._start(status, [(b"content-type", kind), (b"content-length", b"%d" % len(body)), *headers])
        self.ended = True
        await self._send({"type": "http.response.body", "body": body})

    async def respond_in_parts(self, parts: Iterable[bytes]) -> None:
        """Send a large JSON response in parts, so that other requests proceed in between."""
        await self._start(200, [(b"content-type", JSON)])
        for part in parts:
            await self.write(part)
            await asyncio.sleep(0)
        await self.end()

    async def start_stream(self) -> None:
        self.streaming = True
        await self._start(200, list(_SSE_HEADERS))
        if self._wire is not None:
            self._wire.is_stream = True

    def write_nowait(self, data: bytes) -> bool:
        """``write`` without waiting; False if impossible, and then nothing was written."""
        return self._wire is not None and self._wire.write(data)

    async def write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        self.ended = True
        await self._send({"type": "http.response.body", "body": data})

    async def fail(self, error: HTTPError) -> None:
        """Respond with an error: as an event if a stream has started, else as the response."""
        body = error_body(error)
        if self.streaming:
            self.failed = True
            await self.end(b"data: " + body + b"\n\n")
            return
        if self.status:  # a response has started; an error could not be delivered
            self.failed = True
            raise error
        headers = [*error.headers]
        unread = error.status in (408, 413)
        if unread:
            headers.append((b"connection", b"close"))
            await self._start(
                error.status, [(b"content-type", JSON), (b"content-length", b"%d" % len(body)), *headers]
            )
            await self.write(body)  # complete for the client, which knows the length
            await self._discard()
            await self.end()
        else:
            await self.respond(body, status=error.status, headers=headers)

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = status
        headers.append((b"x-request-id", self.request_id.encode()))
        headers.extend(self.extra_headers)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _discard(self) -> None:
        try:
            async with timeout(_DISCARD_S):
                message = await self._receive()
                while message["type"] != "http.disconnect" and message.get("more_body"):
                    message = await self._receive()
        except TimeoutError:
            pass


def _too_large(limit: int) -> HTTPError:
    return wrong_request(
        f"request body exceeds {limit} bytes; split it into smaller requests",
        status=413,
        code="body_too_large",
    )

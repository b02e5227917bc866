"""Responses to HTTP/1.0 clients: no chunked encoding; the end of the connection ends the body (RFC 9112 6.1)."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

__all__ = ["unchunked_send"]


def unchunked_send(cycle: RequestResponseCycle) -> Callable[[Any], Coroutine[Any, Any, None]]:
    """A replacement for uvicorn's ``send``, which would use chunked encoding even if the client lacks support."""

    async def send(message: Any) -> None:
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if cycle.disconnected:
            return
        if message["type"] == "http.response.start":
            cycle.response_started = True
            cycle.waiting_for_100_continue = False
            lines = [STATUS_LINE[message["status"]]]
            for name, value in message.get("headers", ()):
                if name.lower() != b"connection":
                    lines += [name, b": ", value, b"\r\n"]
            cycle.transport.write(b"".join([*lines, b"connection: close\r\n\r\n"]))
            return
        body = message.get("body", b"")
        if body and cycle.scope["method"] != "HEAD":
            cycle.transport.write(body)
        if not message.get("more_body", False):
            cycle.response_complete = True
            cycle.message_event.set()
            cycle.transport.close()
            cycle.on_response()

    return send

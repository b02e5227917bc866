"""A gateway in a thread of its own, and clients for it: whole requests, events of a stream, and bare sockets."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from attrs import frozen
from openai import OpenAI
from sage_infer_serve import Gateway, GatewaySettings, running_gateway
from sage_infer_serve.http.auth import APIKey
from sage_infer_testing.loop import LoopThread

WAIT_S = 300.0


@frozen
class Answer:
    """A whole response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def data(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.data["error"]
        return found


class Served:
    """A running gateway."""

    def __init__(self, backend: Any, settings: GatewaySettings, keys: Iterable[APIKey] = ()) -> None:
        self.backend = backend
        self._loop = LoopThread("gateway")
        self._context = running_gateway(backend, settings, keys=keys)
        self.running = self.run(self._context.__aenter__())
        self.gateway: Gateway = self.running.gateway
        self.url: str = self.running.url
        parts = urlsplit(self.url)
        self.address = parts.hostname or "", parts.port or 0
        self._closed = False

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.run(self._context.__aexit__(None, None, None))
            self._loop.close()

    def run(self, coroutine: Any) -> Any:
        return self._loop.run(coroutine, timeout_s=WAIT_S)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in the gateway's thread."""

        async def called() -> Any:
            return function(*arguments)

        return self.run(called())

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Let the gateway's loop turn until ``condition`` holds there."""
        from sage_infer_testing.waiting import eventually

        self.run(eventually(condition, what, within_s=WAIT_S))

    # --- clients

    def client(self, **options: Any) -> OpenAI:
        """The official client."""
        return OpenAI(**{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, **options})

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """A request with any body; header names have _ for -."""
        connection = http.client.HTTPConnection(*self.address, timeout=WAIT_S)
        try:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def post(self, path: str, data: Any, **headers: str) -> Answer:
        return self.ask(
            "POST", path, json.dumps(data).encode(), **{"content_type": "application/json", **headers}
        )

    def chat(self, content: str = "hello big world", **fields: Any) -> Answer:
        return self.post("/v1/chat/completions", chat_body(content, **fields))

    def connect(self) -> socket.socket:
        connection = socket.create_connection(self.address, timeout=WAIT_S)
        connection.settimeout(WAIT_S)
        return connection

    def raw(self, data: bytes) -> bytes:
        """Send bytes; everything that comes back until the server closes."""
        with self.connect() as connection:
            connection.sendall(data)
            return read_all(connection)


def chat_body(content: str = "hello big world", **fields: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": content}], **fields}


def request_bytes(path: str, data: Any, *headers: str) -> bytes:
    """A POST request as bytes."""
    body = json.dumps(data).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def read_all(connection: socket.socket) -> bytes:
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def read_head(connection: socket.socket) -> bytes:
    """Everything up to the end of the response's headers, and what came with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            break
        data += part
    return data


def events(body: bytes) -> Iterator[Any]:
    """Data of the events of a whole stream; the last one is "[DONE]" as text where it is there."""
    for block in body.decode("utf-8").split("\n\n"):
        if block:
            assert block.startswith("data: "), block
            text = block.removeprefix("data: ")
            yield text if text == "[DONE]" else json.loads(text)

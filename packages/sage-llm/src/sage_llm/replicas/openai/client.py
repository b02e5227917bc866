"""HTTP requests to an OpenAI-compatible server, and its errors as errors of the contract."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
from sage_infer import errors
from sage_infer.errors import (
    ConfigError,
    ContextLengthExceeded,
    EngineDead,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PluginFailed,
    RequestCancelled,
    SageInferError,
    SchemaError,
)

__all__ = ["EventParser", "ServerClient", "error_of"]

_CONNECT_S = 10.0
_RETRY_S = 1.0  # for a server that is overloaded and does not say for how long
_MAX_BODY = 4096  # characters of a foreign error page in a message
_SIMPLE = {
    cls.code: cls
    for cls in vars(errors).values()
    if isinstance(cls, type)
    and issubclass(cls, SageInferError)
    and cls not in (Overloaded, RequestCancelled, SchemaError)
}


class ServerClient:
    """Connections to one server.

    Args:
        url: address of the server, with or without ``/v1``.
        api_key_env: environment variable with the API key; None sends no key.
    """

    def __init__(self, url: str, api_key_env: str | None) -> None:
        if not url.startswith(("http://", "https://")):
            raise InvalidRequest(f"the model path must be the server's http: or https: address, got {url!r}")
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers: dict[str, str] = {}
        if api_key_env is not None:
            key = os.environ.get(api_key_env)
            if not key:
                raise ConfigError(f"api_key_env names {api_key_env}, which is not set; set it to the API key")
            self._headers["Authorization"] = f"Bearer {key}"
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_S),
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str) -> Any:
        """Return the JSON answer of a GET request.

        Raises:
            SageInferError: as for ``exchange``.
        """
        async with self.exchange("GET", path) as response:
            return _json(await response.read(), path)

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the JSON answer of a POST request."""
        async with self.exchange("POST", path, body) as response:
            return _json(await response.read(), path)

    @asynccontextmanager
    async def exchange(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request and return its successful response, whose body was not read.

        Raises:
            EngineDead: the server cannot be reached, or the connection was lost.
            SageInferError: the server answered with an error; 429 and 503 are ``Overloaded``.
        """
        if self._session is None or self._session.closed:
            raise EngineDead(f"{self.url} is not connected; open a new backend")
        data = None if body is None else msgspec.json.encode(body)
        headers = {"Content-Type": "application/json"} if data is not None else None
        try:
            async with self._session.request(method, self.url + path, data=data, headers=headers) as response:
                if response.status >= 400:
                    raise error_of(response.status, response.headers, await response.read())
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise EngineDead(f"{self.url} is lost: {str(error) or type(error).__name__}") from None


class EventParser:
    """``feed`` accepts bytes of server-sent events, split anywhere, and returns the data of complete events."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        *blocks, self._rest = (self._rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        found = []
        for block in blocks:
            lines = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line[:5] == b"data:"]
            if lines:
                found.append(b"\n".join(lines))
        return found


def error_of(status: int, headers: Mapping[str, str], body: bytes) -> SageInferError:
    """Return the error of a response."""
    message, code = _told(body)
    message = f"the server answered {status}: {message}"
    if status in (429, 503):
        return Overloaded(message, retry_after=_retry_after(headers))
    if status == 504 or code == "deadline_exceeded":
        return RequestCancelled(message, by="deadline")
    if code in _SIMPLE and code != SageInferError.code:
        return _SIMPLE[code](message)
    if status == 404:
        return ModelNotFound(message)
    if status in (401, 403):
        return ConfigError(f"{message}; check the API key (option api_key_env)")
    if status in (400, 413, 422):
        too_long = code == "context_length_exceeded" or "context length" in message
        return ContextLengthExceeded(message) if too_long else InvalidRequest(message)
    return PluginFailed(message)


def _told(body: bytes) -> tuple[str, str]:
    """Return message and code of an error's body, in the formats of OpenAI, vLLM and others."""
    try:
        data = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return body[:_MAX_BODY].decode("utf-8", "replace").strip() or "no message", ""
    inner = data.get("error", data) if isinstance(data, dict) else data
    if not isinstance(inner, dict):
        return str(inner)[:_MAX_BODY], ""
    return str(inner.get("message") or inner.get("detail") or inner)[:_MAX_BODY], str(inner.get("code") or "")


def _retry_after(headers: Mapping[str, str]) -> float:
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) / scale)
        except (KeyError, ValueError):
            continue  # missing, or a date
    return _RETRY_S


def _json(data: bytes, path: str) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise PluginFailed(f"the server's answer to {path} is not JSON: {error}") from None

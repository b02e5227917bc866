"""HTTP requests to an OpenAI-compatible server, and its errors as errors of the contract."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from sage_infer.errors import (
    BY_CODE,
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
from sage_infer.schemas import RequestOptions
from sage_infer_serve.http.client import Answer, Client, Disconnected, Server

__all__ = ["EventParser", "ServerClient", "error_of", "listed"]

_CONNECT_S = 10.0
_RETRY_S = 1.0  # for a server that is overloaded and does not say for how long
_MAX_BODY = 4096  # characters of a foreign error page in a message
_WITH_FIELDS = (Overloaded, RequestCancelled, SchemaError)  # more than a message


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
        self._server, self._key = Server.parse(url), None
        if api_key_env is not None:
            self._key = os.environ.get(api_key_env)
            if not self._key:
                raise ConfigError(f"api_key_env names {api_key_env}, which is not set; set it to the API key")
        self._client: Client | None = None

    async def open(self) -> None:
        self._client = Client(self._server, api_key=self._key, agent="sage-llm", connect_s=_CONNECT_S)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    async def get(self, path: str) -> Any:
        """Return the JSON answer of a GET request.

        Raises:
            EngineDead: the server cannot be reached, or the connection was lost.
            SageInferError: the server answered with an error; 429 and 503 are ``Overloaded``.
        """
        return _json(await self._answered(self._open().get(path)), path)

    async def post(self, path: str, body: Mapping[str, Any], options: RequestOptions | None = None) -> Any:
        """Return the JSON answer of a POST request. Raises as ``get``."""
        sent = self._open().post(path, msgspec.json.encode(body), headers=_lines(options))
        return _json(await self._answered(sent), path)

    async def stream(
        self,
        path: str,
        body: Mapping[str, Any],
        options: RequestOptions | None,
        *,
        on_head: Callable[[], None],
        on_piece: Callable[[bytes, float], None],
    ) -> None:
        """Send a request, and pass the pieces of the answer's body to ``on_piece`` on arrival.

        ``on_head`` is called when the server has accepted the request. Raises as ``get``, also after pieces.
        """
        sent = msgspec.json.encode(body)
        await self._answered(
            self._open().post(path, sent, on_piece, on_head=on_head, headers=_lines(options))
        )

    def _open(self) -> Client:
        if self._client is None:
            raise EngineDead(f"{self.url} is not connected; open a new backend")
        return self._client

    async def _answered(self, exchange: Awaitable[Answer]) -> bytes:
        try:
            answer = await exchange
        except (Disconnected, OSError) as error:
            raise EngineDead(f"{self.url} is lost: {error}") from None
        if not 200 <= answer.status < 300:
            raise error_of(answer.status, answer.headers, answer.body)
        return answer.body


def _lines(options: RequestOptions | None) -> bytes:
    """Headers of a request: those of its trace, so that the server's spans belong to it."""
    if options is None or not options.trace:
        return b""
    return "".join(f"{name}: {value}\r\n" for name, value in options.trace.items()).encode(
        "latin-1", "ignore"
    )


class EventParser:
    """``feed`` accepts bytes of server-sent events, split anywhere, and returns the data of complete events."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        if (
            not self._rest
            and piece[:6] == b"data: "
            and piece.find(b"\n") == len(piece) - 2
            and piece[-1:] == b"\n"
        ):
            return [piece[6:-2]]  # one whole event, the usual case
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
    known = BY_CODE.get(code, SageInferError)
    if known is not SageInferError and known not in _WITH_FIELDS:
        return known(message)
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


def listed(answer: Any, url: str) -> list[dict[str, Any]]:
    """The rows of a list of models.

    Raises:
        PluginFailed: it is not one.
    """
    rows = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("id"), str) for row in rows
    ):
        raise PluginFailed(
            f"{url}/v1/models is not a list of models: {str(answer)[:200]}; is it an OpenAI-compatible server?"
        )
    return rows


def _json(data: bytes, path: str) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise PluginFailed(f"the server's answer to {path} is not JSON: {error}") from None

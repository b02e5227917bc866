"""The control socket of a running control plane: its server, and the client of the commands."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sage_infer.errors import BackendUnavailable, InvalidRequest, SageInferError

from sage_llm.replicas.run_folder import run_folder

__all__ = ["ControlServer", "ask", "control_path"]

_PREFIX, _SUFFIX = "control-", ".sock"
_MAX_BYTES = 16 * 2**20

Handler = Callable[..., Awaitable[Any]]


def control_path(port: int) -> Path:
    """The control socket of the server at a port."""
    return run_folder() / f"{_PREFIX}{port}{_SUFFIX}"


class ControlServer:
    """Answers one JSON line per connection: ``{"method": …, "arguments": {…}}``.

    Args:
        path: the socket; only this user can open it.
        handlers: coroutine functions by method.
    """

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        self._path, self._handlers = path, handlers
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._path.unlink(missing_ok=True)  # of a server that was killed; the port belongs to this one
        for path in _sockets():
            if not _answers(path):
                path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        before = os.umask(0o177)
        try:
            listener.bind(os.fspath(self._path))
            listener.listen()
        finally:
            os.umask(before)
        self._server = await asyncio.start_unix_server(self._answer, sock=listener, limit=_MAX_BYTES)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
            writer.write(json.dumps(await self._handle(line)).encode() + b"\n")
            await writer.drain()
        except (ConnectionError, ValueError):
            pass  # the command has gone, or has sent something else than a line
        finally:
            writer.close()

    async def _handle(self, line: bytes) -> dict[str, Any]:
        try:
            question = json.loads(line)
            handler = self._handlers.get(question["method"])
            if handler is None:
                raise InvalidRequest(
                    f"no method {question['method']!r}; methods: {', '.join(self._handlers)}"
                )
            return {"result": await handler(**question.get("arguments", {}))}
        except SageInferError as error:
            return {"error": {"code": error.code, "message": error.message, "exit_code": error.exit_code}}
        except (ValueError, KeyError, TypeError) as error:
            return {
                "error": {"code": "invalid_request", "message": f"invalid question: {error}", "exit_code": 2}
            }


class _Reported(SageInferError):
    """An error that the server reported."""

    def __init__(self, message: str, code: str, exit_code: int) -> None:
        super().__init__(message)
        self.code, self.exit_code = code, exit_code  # type: ignore[misc]  # the server's, per error


def ask(port: int | None, method: str, **arguments: Any) -> Any:
    """Ask the running control plane; without a port, the only one of this user.

    Raises:
        BackendUnavailable: none is running, or several are.
        SageInferError: as the control plane reports it.
    """
    path = _only() if port is None else control_path(port)
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(os.fspath(path))
        except OSError as error:
            wanted = "" if port is None else f" at port {port}"
            raise BackendUnavailable(
                f"no control plane answers{wanted} ({path}: {error.strerror}); start one with `sage llm serve`"
            ) from None
        connection.sendall(json.dumps({"method": method, "arguments": arguments}).encode() + b"\n")
        with connection.makefile("rb") as lines:
            answer = lines.readline(_MAX_BYTES)
    if not answer:
        raise BackendUnavailable(f"the control plane at {path} closed the connection; is it still running?")
    found = json.loads(answer)
    if "error" in found:
        fault = found["error"]
        raise _Reported(fault["message"], fault["code"], fault["exit_code"])
    return found["result"]


def _only() -> Path:
    """The socket of the only control plane that answers."""
    found = [path for path in _sockets() if _answers(path)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise BackendUnavailable("no control plane is running; start one with `sage llm serve`")
    ports = ", ".join(path.name.removeprefix(_PREFIX).removesuffix(_SUFFIX) for path in found)
    raise BackendUnavailable(f"several control planes are running, at ports {ports}; choose one with --port")


def _sockets() -> list[Path]:
    return sorted(run_folder().glob(f"{_PREFIX}*{_SUFFIX}"))


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
        connection.connect(os.fspath(path))
        return True
    return False

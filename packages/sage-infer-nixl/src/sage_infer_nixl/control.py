"""Questions and answers between transports and endpoints over TCP: one JSON object on a line.

============ ==================================================================================================
``read``     where the bytes of a room are; refused until they have arrived
``write``    where to write them; the room then belongs to this connection until ``written``, or until it ends
``written``  the bytes are there: the endpoint verifies them and answers whether they are whole
============ ==================================================================================================

The bytes themselves travel through NIXL. A connection that ends tells both sides that the other one has gone.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from attrs import define, field, frozen
from sage_infer_transport.execution import Failed

__all__ = ["Client", "Connection", "Place", "read_line"]

_MAX_LINE = 1 << 20
_SILENCE_S = 30.0


@frozen
class Place:
    """Bytes in the memory of a process that runs NIXL.

    Attributes:
        agent: name of its agent.
        metadata: what another agent needs to reach it.
        address: address in that process.
        nbytes: number of bytes.
    """

    agent: str
    metadata: bytes
    address: int
    nbytes: int

    def as_json(self) -> dict[str, Any]:
        return {
            "agent": self.agent, "metadata": base64.b64encode(self.metadata).decode(), "address": self.address,
            "nbytes": self.nbytes,
        }  # fmt: skip

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Place:
        """
        Raises:
            Failed: not what ``as_json`` returns.
        """
        try:
            agent, metadata = str(data["agent"]), base64.b64decode(data["metadata"])
            return cls(agent, metadata, int(data["address"]), int(data["nbytes"]))
        except (KeyError, TypeError, ValueError) as error:
            raise Failed(f"the endpoint speaks another protocol: {error}") from None


class Connection:
    """One connection to an endpoint."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lines = sock.makefile("rb")

    def ask(self, **question: Any) -> dict[str, Any]:
        """The answer to a question.

        Raises:
            Failed: the endpoint refused, or the connection ended.
        """
        try:
            self._sock.sendall(json.dumps(question).encode() + b"\n")
            answer = read_line(self._lines)
        except OSError as error:
            raise Failed(f"the endpoint did not answer: {error}") from None
        if answer is None:
            raise Failed("the endpoint closed the connection")
        if "error" in answer:
            raise Failed(str(answer["error"]))
        return answer

    def has_ended(self) -> bool:
        """Whether the endpoint has closed the connection, which is idle."""
        try:
            self._sock.setblocking(False)
            try:
                self._sock.recv(1, socket.MSG_PEEK)
                return True  # the end, or unexpected bytes
            except BlockingIOError:
                self._sock.settimeout(_SILENCE_S)
                return False
        except OSError:
            return True

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._lines.close()
            self._sock.close()


@define(eq=False)
class Client:
    """Connections to endpoints, which are kept between exchanges."""

    _idle: dict[tuple[str, int], list[Connection]] = field(factory=lambda: defaultdict(list))
    _lock: threading.Lock = field(factory=threading.Lock)

    @contextmanager
    def connection(self, host: str, port: int) -> Iterator[Connection]:
        """A connection of this exchange alone; it is closed if the exchange fails, which also ends a ``write``.

        Raises:
            Failed: no process listens there.
        """
        with self._lock:
            idle = self._idle[host, port]
            found = idle.pop() if idle else None
        if found is not None and found.has_ended():
            found.close()
            found = None
        if found is None:
            found = self._new(host, port)
        try:
            yield found
        except BaseException:
            found.close()
            raise
        with self._lock:
            self._idle[host, port].append(found)

    def _new(self, host: str, port: int) -> Connection:
        try:
            sock = socket.create_connection((host, port), timeout=_SILENCE_S)
        except OSError as error:
            raise Failed(f"nixl://{host}:{port}: {error.strerror or error}") from None
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Connection(sock)


def read_line(lines: Any) -> dict[str, Any] | None:
    """The next object of a stream; None at its end, or if it is no object."""
    line = lines.readline(_MAX_LINE)
    if not line.endswith(b"\n"):
        return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None

"""Base of the endpoints that answer connections: their listening socket, and a thread for each connection."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import ClassVar

from sage_infer.errors import InvalidRequest

from sage_infer_transport.endpoint import BaseEndpoint
from sage_infer_transport.rooms import Region

__all__ = ["ListeningEndpoint", "cut"]


class ListeningEndpoint(BaseEndpoint):
    """An endpoint at ``SCHEME://HOST:PORT``. Subclasses answer the connections after ``_accept_connections``.

    Args:
        host: address to listen on.
        port: port to listen on; 0 chooses a free one.
        advertise: host in the URIs, if other hosts reach this one under another name; required for ``0.0.0.0``.
        capacity_bytes: maximum total bytes of payload.

    Attributes:
        scheme: scheme of the URIs.
        max_connections: further connections are closed.

    Raises:
        InvalidRequest: the address is not available, or ``advertise`` is missing.
    """

    scheme: ClassVar[str]
    max_connections: ClassVar[int]

    def __init__(self, host: str, port: int, advertise: str | None, capacity_bytes: int) -> None:
        self._server = _listening(host, port, advertise)
        name = advertise or host
        number = self._server.getsockname()[1]
        self._base = f"{self.scheme}://{f'[{name}]' if ':' in name else name}:{number}"
        self._connections: set[socket.socket] = set()
        super().__init__(Region.on(os.memfd_create("sage-kv", os.MFD_CLOEXEC), capacity_bytes))

    def _serve(self, sock: socket.socket) -> None:
        """Answer a connection until it ends, in a thread of its own. It is closed afterwards."""
        raise NotImplementedError

    def _accept_connections(self) -> None:
        threading.Thread(target=self._accept, name="sage-kv-endpoint", daemon=True).start()

    def _end_connections(self) -> None:
        """Accept no further connections, and cut those that are open."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        with self._lock:
            connections = list(self._connections)
        for sock in connections:
            cut(sock)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._server.accept()
            except OSError:
                return  # closed
            with self._lock:
                full = self._closed or len(self._connections) >= self.max_connections
                if not full:
                    self._connections.add(sock)
            if full:
                sock.close()
                continue
            threading.Thread(
                target=self._answer_all, args=(sock,), name="sage-kv-connection", daemon=True
            ).start()

    def _answer_all(self, sock: socket.socket) -> None:
        try:
            self._serve(sock)
        finally:
            with self._lock:
                self._connections.discard(sock)
            sock.close()


def cut(sock: socket.socket) -> None:
    """End a connection, also for a thread that waits for it."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _listening(host: str, port: int, advertise: str | None) -> socket.socket:
    if advertise is None and host in ("", "0.0.0.0", "::"):
        raise InvalidRequest(
            f"advertise is required with host {host!r}: the name that other hosts connect to"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise InvalidRequest(f"cannot listen on {host}:{port}: {error.strerror or error}") from None

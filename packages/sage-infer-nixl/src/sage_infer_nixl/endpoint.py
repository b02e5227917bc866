"""An endpoint whose rooms other hosts read and write through NIXL."""

from __future__ import annotations

import json
import secrets
import socket
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import xxhash
from sage_infer.errors import SageInferError
from sage_infer.schemas import KVLocation
from sage_infer_transport.listening import ListeningEndpoint
from sage_infer_transport.rooms import Room, read_header, write_header

from sage_infer_nixl.control import Place, read_line
from sage_infer_nixl.process import AgentProcess

__all__ = ["NIXLEndpoint"]


class NIXLEndpoint(ListeningEndpoint):
    """KV under ``nixl://HOST:PORT/ROOM``.

    A process of its own runs NIXL and maps the endpoint's memory, so that a fault of native code does not end this
    process; it is started again when it is needed next. A room's address has 128 random bits, but NIXL grants a peer
    that has one address access to all of the endpoint's memory, and traffic is not encrypted: use it among hosts that
    you trust. With RDMA, the operating system pins twice ``capacity_bytes``.

    Args:
        host: address to listen on, for questions about rooms. NIXL listens on the interfaces that UCX chooses
            (``UCX_NET_DEVICES``).
        port: port to listen on; 0 chooses a free one.
        advertise: host in the URIs, if other hosts reach this one under another name; required for ``0.0.0.0``.
        capacity_bytes: maximum total bytes of payload. Memory is used as rooms are written.

    Raises:
        BackendUnavailable: NIXL is not installed, or does not start.
        InvalidRequest: the address is not available, or ``advertise`` is missing.
    """

    scheme = "nixl"
    max_connections = 256

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        advertise: str | None = None,
        capacity_bytes: int = 1 << 30,
    ) -> None:
        self._ids: dict[str, Room] = {}
        # The connection that a room belongs to while it is written.
        self._writers: dict[str, socket.socket] = {}
        self._leaving: dict[str, Room] = {}  # withdrawn, and still being written
        super().__init__(host, port, advertise, capacity_bytes)
        self._starting = threading.Lock()
        try:
            self._process = self._start()
        except BaseException:
            self._server.close()
            super().close()
            raise
        self._accept_connections()

    def withdraw(self, locations: Sequence[KVLocation]) -> None:
        with self._lock:
            for location in locations:
                room = self._rooms.pop(location.uri, None)
                if room is None:
                    continue
                key = location.uri.rpartition("/")[2]
                del self._ids[key]
                if key in self._writers:
                    self._leaving[key] = room  # late bytes must not meet another chunk there
                else:
                    self._region.free(room)

    def close(self) -> None:
        self._end_connections()
        with self._starting:
            self._process.close()
            super().close()
        with self._lock:
            self._ids.clear()
            self._leaving.clear()

    @property
    def agent_pid(self) -> int:
        """Id of the process that runs NIXL."""
        return self._process.pid

    # --- names of rooms

    def _uri(self, room: Room) -> str:
        key = secrets.token_hex(16)
        self._ids[key] = room
        return f"{self._base}/{key}"

    # --- the process with NIXL

    def _start(self) -> AgentProcess:
        return AgentProcess(region=(self._region.fd, len(self._region.memory)))

    def _place(self, room: Room) -> Place:
        """Where a room is for other agents; starts the process again if it has ended."""
        with self._starting:
            if not self._process.is_alive and not self._closed:
                self._process.close()
                self._process = self._start()
            base = self._process.place
        return Place(base.agent, base.metadata, base.address + room.offset, room.nbytes)

    # --- questions of transports

    def _serve(self, sock: socket.socket) -> None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1
            )  # a host that has gone leaves its rooms
            with sock.makefile("rb") as lines:
                while (question := read_line(lines)) is not None:
                    sock.sendall(json.dumps(self._answer(sock, question)).encode() + b"\n")
        except (OSError, ValueError):  # cut off or closed
            pass
        finally:
            with self._lock:
                for key in [key for key, writer in self._writers.items() if writer is sock]:
                    self._left(key)

    def _answer(self, sock: socket.socket, question: Mapping[str, Any]) -> dict[str, Any]:
        what, key = question.get("do"), str(question.get("room"))
        with self._lock:
            room = self._ids.get(key)
        if room is None:
            return _error("no such room here; was it withdrawn?")
        if what == "read":
            return self._read(room)
        if what == "write":
            return self._write(sock, key, room, question.get("nbytes"))
        if what == "written":
            return self._written(sock, key, room, question.get("digest"))
        return _error(f"expected read, write or written, got {what!r}")

    def _read(self, room: Room) -> dict[str, Any]:
        state = read_header(self._region.memory, room.offset)
        if state is None or not state[0]:
            return _error("the bytes of this room have not arrived")
        return self._place_or_error(room)

    def _write(self, sock: socket.socket, key: str, room: Room, nbytes: object) -> dict[str, Any]:
        if nbytes != room.nbytes:
            return _error(f"the room has {room.nbytes} bytes, not {nbytes}")
        with self._lock:
            if key not in self._ids or self._writers.setdefault(key, sock) is not sock:
                return _error("another transfer writes to this room")
            write_header(self._region.memory, room.offset, arrived=False, nbytes=room.nbytes, digest=0)
        return self._place_or_error(room)

    def _written(self, sock: socket.socket, key: str, room: Room, digest: object) -> dict[str, Any]:
        if self._writers.get(key) is not sock:
            return _error("this room was not opened for writing")
        found = xxhash.xxh3_64_intdigest(self._region.view(room))
        with self._lock:
            whole = found == digest and key in self._ids
            if whole:
                write_header(self._region.memory, room.offset, arrived=True, nbytes=room.nbytes, digest=found)
            self._left(key)
        return {} if whole else _error(f"the bytes that arrived have the checksum {found:016x}")

    def _place_or_error(self, room: Room) -> dict[str, Any]:
        try:
            return self._place(room).as_json()
        except SageInferError as error:
            return _error(error.message)

    def _left(self, key: str) -> None:
        """A room is no longer written; call it with the lock."""
        self._writers.pop(key, None)
        room = self._leaving.pop(key, None)
        if room is not None and not self._closed:
            self._region.free(room)


def _error(text: str) -> dict[str, Any]:
    return {"error": text}

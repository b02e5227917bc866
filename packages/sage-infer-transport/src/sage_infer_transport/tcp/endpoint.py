"""An endpoint that serves its rooms over TCP."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
from collections.abc import Sequence

import xxhash
from attrs import define, field
from sage_infer.schemas import KVLocation

from sage_infer_transport.copying import BLOCK_BYTES
from sage_infer_transport.listening import ListeningEndpoint, cut
from sage_infer_transport.rooms import Room, read_header, write_header
from sage_infer_transport.tcp.protocol import Answer, Operation, ProtocolError, Request, Status
from sage_infer_transport.tcp.sockets import prepare, receive_some, send_some

__all__ = ["TCPEndpoint"]

IDLE_S = 60.0
"""Seconds without a byte after which a connection is closed."""


@define(eq=False)
class _Arrival:
    """What of a room has arrived, over one or more connections. Its lock is held by the connection that writes."""

    digest: int = 0
    received: int = 0
    hasher: xxhash.xxh3_64 = field(factory=xxhash.xxh3_64)
    lock: threading.Lock = field(factory=threading.Lock)
    writer: socket.socket | None = None


class TCPEndpoint(ListeningEndpoint):
    """KV under ``tcp://HOST:PORT/ROOM``.

    A room's address has 128 random bits; only clients that have it can read and write the room. Traffic is not
    encrypted; use it in a network that you trust.

    Args:
        host: address to listen on.
        port: port to listen on; 0 chooses a free one.
        advertise: host in the URIs, if other hosts reach this one under another name; required for ``0.0.0.0``.
        capacity_bytes: maximum total bytes of payload. Memory is used as rooms are written.

    Raises:
        InvalidRequest: the address is not available, or ``advertise`` is missing.
    """

    scheme = "tcp"
    max_connections = 64

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        advertise: str | None = None,
        capacity_bytes: int = 1 << 30,
    ) -> None:
        self._ids: dict[bytes, Room] = {}
        self._arrivals: dict[bytes, _Arrival] = {}
        super().__init__(host, port, advertise, capacity_bytes)
        self._accept_connections()

    def withdraw(self, locations: Sequence[KVLocation]) -> None:
        for location in locations:
            key = self._key(location.uri)
            with self._lock:
                arrival = self._arrivals.pop(key, None)
                self._ids.pop(key, None)
            if arrival is not None:
                with _sole_writer(arrival, None):
                    pass  # the room may be allocated again, so its writer must have ended
        super().withdraw(locations)

    def close(self) -> None:
        self._end_connections()
        self.withdraw([KVLocation(tier="dram", uri=uri) for uri in list(self._rooms)])
        super().close()

    def _uri(self, room: Room) -> str:
        key = secrets.token_bytes(16)
        self._ids[key] = room
        self._arrivals[key] = _Arrival()
        return f"{self._base}/{key.hex()}"

    def _key(self, uri: str) -> bytes:
        prefix, _, key = uri.rpartition("/")
        try:
            return bytes.fromhex(key) if prefix == self._base else b""
        except ValueError:
            return b""

    def _serve(self, sock: socket.socket) -> None:
        try:
            prepare(sock, IDLE_S)
            while (request := Request.read(sock)) is not None:
                with self._lock:
                    room, arrival = self._ids.get(request.room), self._arrivals.get(request.room)
                if room is None or arrival is None:
                    sock.sendall(Answer(Status.REFUSED, text="no such room here; was it withdrawn?").encode())
                    return
                if request.operation is Operation.GET:
                    self._send(sock, room, request)
                elif not self._receive(sock, room, arrival, request):
                    return
        except ProtocolError as error:
            with contextlib.suppress(OSError):
                sock.sendall(Answer(Status.REFUSED, text=str(error)).encode())
        except (OSError, ValueError):  # cut off or closed; the peer continues with another connection
            pass

    def _send(self, sock: socket.socket, room: Room, request: Request) -> None:
        state = read_header(self._region.memory, room.offset)
        if state is None or not state[0]:
            sock.sendall(Answer(Status.REFUSED, text="the bytes of this room have not arrived").encode())
        elif request.offset > room.nbytes:
            sock.sendall(Answer(Status.REFUSED, text=f"the room has {room.nbytes} bytes").encode())
        else:
            sock.sendall(Answer(Status.OK, room.nbytes - request.offset).encode())
            payload, begin = self._region.view(room), request.offset
            while begin < room.nbytes:
                fd, offset, left = self._region.fd, room.offset + begin, room.nbytes - begin
                begin += send_some(sock, fd, offset, left, payload[begin:])

    def _receive(self, sock: socket.socket, room: Room, arrival: _Arrival, request: Request) -> bool:
        """Receive a payload; False if the connection must end."""
        if request.nbytes != room.nbytes:
            sock.sendall(
                Answer(
                    Status.REFUSED, text=f"the room has {room.nbytes} bytes, not {request.nbytes}"
                ).encode()
            )
            return True
        with _sole_writer(arrival, sock):
            with self._lock:
                if request.room not in self._ids:  # withdrawn while this connection waited
                    return False
            memory = self._region.memory
            if request.digest != arrival.digest or arrival.received == 0:
                arrival.digest, arrival.received, arrival.hasher = request.digest, 0, xxhash.xxh3_64()
                write_header(memory, room.offset, arrived=False, nbytes=room.nbytes, digest=0)
            sock.sendall(Answer(Status.OK, arrival.received).encode())
            payload = self._region.view(room)
            while arrival.received < room.nbytes:
                block = payload[arrival.received : arrival.received + BLOCK_BYTES]
                count = receive_some(sock, block)
                if count == 0:
                    return False
                arrival.hasher.update(block[:count])
                arrival.received += count
            if arrival.hasher.intdigest() != request.digest:
                found = arrival.hasher.hexdigest()
                arrival.digest, arrival.received = 0, 0
                sock.sendall(
                    Answer(Status.CORRUPT, text=f"the bytes that arrived have the checksum {found}").encode()
                )
                return True
            write_header(memory, room.offset, arrived=True, nbytes=room.nbytes, digest=request.digest)
        sock.sendall(Answer(Status.OK, room.nbytes).encode())
        return True


class _sole_writer:
    """Take over a room: the connection that wrote to it is cut, since its peer came back with another one."""

    def __init__(self, arrival: _Arrival, sock: socket.socket | None) -> None:
        self._arrival, self._sock = arrival, sock

    def __enter__(self) -> None:
        former = self._arrival.writer
        if former is not None and former is not self._sock:
            cut(former)
        self._arrival.lock.acquire()
        self._arrival.writer = self._sock

    def __exit__(self, *exception: object) -> None:
        self._arrival.writer = None
        self._arrival.lock.release()

"""Wire format, version 1. All numbers are big-endian; a connection carries any number of exchanges in turn.

======== ========================================================================================================
``GET``  request (room, offset) → answer (``value`` bytes follow) → bytes from ``offset`` to the room's end
``PUT``  request (room, nbytes, digest) → answer (``value`` bytes arrived before) → the remaining bytes → answer
======== ========================================================================================================

Both continue after an interruption: ``GET`` by its offset, ``PUT`` by the answer's ``value``. The receiver verifies.
"""

from __future__ import annotations

import socket
import struct
from enum import IntEnum

from attrs import frozen

from sage_infer_transport.tcp.sockets import receive_some

__all__ = [
    "ANSWER_BYTES",
    "REQUEST_BYTES",
    "Answer",
    "Operation",
    "ProtocolError",
    "Request",
    "Status",
    "receive",
]

_MAGIC = b"SKV1"
_REQUEST = struct.Struct(">4sB3x16sQQQ")
_ANSWER = struct.Struct(">4sBxHQ")
REQUEST_BYTES, ANSWER_BYTES = _REQUEST.size, _ANSWER.size
_TEXT_LIMIT = 1000


class ProtocolError(ConnectionError):
    """The peer does not speak this protocol, or another version of it."""


class Operation(IntEnum):
    GET = 1
    PUT = 2


class Status(IntEnum):
    OK = 0
    REFUSED = 1
    CORRUPT = 2


@frozen
class Request:
    operation: Operation
    room: bytes
    offset: int = 0
    nbytes: int = 0
    digest: int = 0

    def encode(self) -> bytes:
        return _REQUEST.pack(_MAGIC, self.operation, self.room, self.offset, self.nbytes, self.digest)

    @classmethod
    def read(cls, sock: socket.socket) -> Request | None:
        """The next request; None if the peer closed the connection between two.

        Raises:
            ProtocolError: something else.
        """
        data = bytearray(REQUEST_BYTES)
        if not receive(sock, memoryview(data), allow_end=True):
            return None
        magic, operation, room, offset, nbytes, digest = _REQUEST.unpack(data)
        if magic != _MAGIC or operation not in Operation.__members__.values():
            raise ProtocolError(f"not a request of this protocol: {bytes(data[:8])!r}")
        return cls(Operation(operation), room, offset, nbytes, digest)


@frozen
class Answer:
    status: Status
    value: int = 0
    text: str = ""

    def encode(self) -> bytes:
        text = self.text.encode()[:_TEXT_LIMIT]
        return _ANSWER.pack(_MAGIC, self.status, len(text), self.value) + text

    @classmethod
    def read(cls, sock: socket.socket) -> Answer:
        data = bytearray(ANSWER_BYTES)
        receive(sock, memoryview(data))
        magic, status, length, value = _ANSWER.unpack(data)
        if magic != _MAGIC or status not in Status.__members__.values() or length > _TEXT_LIMIT:
            raise ProtocolError(f"not an answer of this protocol: {bytes(data[:8])!r}")
        text = bytearray(length)
        receive(sock, memoryview(text))
        return cls(Status(status), value, text.decode(errors="replace"))


def receive(sock: socket.socket, view: memoryview, *, allow_end: bool = False) -> bool:
    """Fill a buffer. False if the connection ended before the first byte and ``allow_end`` is set.

    Raises:
        ConnectionError: it ended early.
    """
    filled = 0
    while filled < len(view):
        count = receive_some(sock, view[filled:])
        if count == 0:
            if allow_end and filled == 0:
                return False
            raise ConnectionResetError("the connection ended early")
        filled += count
    return True

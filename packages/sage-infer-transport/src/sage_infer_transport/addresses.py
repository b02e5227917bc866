"""Addresses of KV: ``shm://NAME#OFFSET``, ``file:///PATH#OFFSET`` and ``tcp://HOST:PORT/ROOM``."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from attrs import frozen
from sage_infer.errors import InvalidRequest

__all__ = ["SHARED_MEMORY", "FileAddress", "TCPAddress", "parse", "scheme"]

SHARED_MEMORY = Path("/dev/shm")
"""Where Linux mounts POSIX shared memory: a segment is a file there, which can also be sent without a copy."""

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
_ROOM = re.compile(r"[0-9a-f]{32}")


@frozen
class FileAddress:
    """Bytes of a file or of a shared memory segment, from ``offset`` on."""

    path: Path
    offset: int
    shared: bool


@frozen
class TCPAddress:
    """A room of a ``TCPEndpoint``: 16 random bytes, known only to those who were given the address."""

    host: str
    port: int
    room: bytes


def scheme(uri: str) -> str:
    return uri.partition(":")[0].lower()


@lru_cache(maxsize=4096)  # a plan's addresses are checked, and then used
def parse(uri: str) -> FileAddress | TCPAddress:
    """Parse a location's URI.

    Raises:
        InvalidRequest: another scheme, or not of the form above.
    """
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as error:
        raise InvalidRequest(f"{uri!r} is not an address: {error}") from None
    if parts.scheme == "tcp":
        room = parts.path.removeprefix("/")
        if not parts.hostname or port is None or not _ROOM.fullmatch(room):
            raise InvalidRequest(f"{uri!r} is not of the form tcp://HOST:PORT/ROOM with 32 hex digits")
        return TCPAddress(parts.hostname, port, bytes.fromhex(room))
    offset = parts.fragment or "0"
    if not (offset.isascii() and offset.isdigit() and len(offset) <= 18):
        raise InvalidRequest(f"{uri!r}: the part after # must be an offset in bytes")
    if parts.scheme == "shm":
        if not _SEGMENT.fullmatch(parts.netloc) or parts.path.strip("/"):
            raise InvalidRequest(f"{uri!r} is not of the form shm://NAME#OFFSET")
        return FileAddress(SHARED_MEMORY / parts.netloc, int(offset), shared=True)
    if parts.scheme == "file":
        path = unquote(parts.path)
        if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
            raise InvalidRequest(f"{uri!r} is not of the form file:///PATH#OFFSET")
        return FileAddress(Path(path), int(offset), shared=False)
    raise InvalidRequest(f"{uri!r} is not reachable; expected an address with shm:, file: or tcp:")

"""Addresses of KV: ``nixl://HOST:PORT/ROOM``, and those of files and shared memory."""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import urlsplit

from attrs import frozen
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import KVLocation
from sage_infer_transport.addresses import FileAddress
from sage_infer_transport.addresses import parse as parse_other

__all__ = ["NIXLAddress", "parse", "reachable"]

_ROOM_DIGITS = 32


@frozen
class NIXLAddress:
    """A room of a ``NIXLEndpoint``; ``host`` and ``port`` are where the endpoint answers questions about it."""

    host: str
    port: int
    room: str


@lru_cache(maxsize=4096)  # a plan's addresses are checked, and then used
def parse(uri: str) -> NIXLAddress | FileAddress:
    """Parse a location's URI.

    Raises:
        InvalidRequest: another scheme, or not of the form above.
    """
    if not uri.startswith("nixl:"):
        other = parse_other(uri)
        if not isinstance(other, FileAddress):
            raise InvalidRequest(f"{uri!r} is not reachable; expected an address with nixl:, shm: or file:")
        return other
    try:
        parts = urlsplit(uri)
        host, port, room = parts.hostname, parts.port, parts.path.removeprefix("/")
    except ValueError as error:
        raise InvalidRequest(f"{uri!r} is not an address: {error}") from None
    if not host or port is None or len(room) != _ROOM_DIGITS or set(room) - set("0123456789abcdef"):
        raise InvalidRequest(
            f"{uri!r} is not of the form nixl://HOST:PORT/ROOM with {_ROOM_DIGITS} hex digits"
        )
    return NIXLAddress(host, port, room)


def reachable(source: KVLocation, target: KVLocation) -> bool:
    """Whether a chunk can be moved: between rooms of endpoints, shared memory and files; a target file is whole."""
    try:
        parse(source.uri)
        last = parse(target.uri)
    except InvalidRequest:
        return False
    return isinstance(last, NIXLAddress) or last.shared or last.offset == 0

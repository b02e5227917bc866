"""A transport between shared memory and files of one host."""

from __future__ import annotations

import os

from sage_infer.errors import InvalidRequest
from sage_infer.schemas import KVLocation, TransportSettings

from sage_infer_transport.addresses import FileAddress, parse
from sage_infer_transport.copying import Segments, copy
from sage_infer_transport.execution import Move, ThreadedTransport

__all__ = ["LocalTransport", "is_local_target", "local_address"]


class LocalTransport(ThreadedTransport):
    """Implements ``sage_infer.contracts.Transport`` for ``shm:`` and ``file:``.

    A target in shared memory is a room that an endpoint reserved. A target file is replaced as a whole; its address
    has no offset.
    """

    schemes = ("file", "shm")

    def __init__(self, *, settings: TransportSettings) -> None:
        super().__init__(settings, threads=min(settings.max_in_flight, os.cpu_count() or 1))
        self._segments = Segments()

    def can_reach(self, source: KVLocation, target: KVLocation) -> bool:
        return local_address(source) is not None and is_local_target(target)

    async def close(self) -> None:
        await super().close()
        self._segments.close()

    def _move(self, move: Move) -> None:
        source, target = local_address(move.step.source), local_address(move.step.target)
        assert source is not None
        assert target is not None
        copy(source, target, move, self._segments)


def local_address(location: KVLocation) -> FileAddress | None:
    """The address of a location on this host; None for any other."""
    try:
        address = parse(location.uri)
    except InvalidRequest:
        return None
    return address if isinstance(address, FileAddress) else None


def is_local_target(location: KVLocation) -> bool:
    """Whether a chunk can be written to a location: rooms of shared memory, and whole files."""
    address = local_address(location)
    return address is not None and (address.shared or address.offset == 0)

"""Base of the endpoints: rooms of one region under URIs of their own."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from sage_infer.errors import InvalidRequest
from sage_infer.schemas import KVChunk, KVLocation
from sage_infer.sdk import checksum

from sage_infer_transport.rooms import Region, Room, read_header, write_header

__all__ = ["BaseEndpoint"]


class BaseEndpoint:
    """Implements ``sage_infer.contracts.KVEndpoint`` over a ``Region``; subclasses name the rooms.

    Safe to use from several threads. Views that ``open`` returned must not be used after ``withdraw``: the room may
    then be allocated again.
    """

    def __init__(self, region: Region) -> None:
        self._region = region
        self._rooms: dict[str, Room] = {}
        self._lock = threading.Lock()
        self._closed = False

    def _uri(self, room: Room) -> str:
        """A URI for a new room, never used before."""
        raise NotImplementedError

    def publish(self, chunks: Sequence[KVChunk], buffers: Sequence[memoryview]) -> tuple[KVLocation, ...]:
        if len(chunks) != len(buffers):
            raise InvalidRequest(
                f"{len(chunks)} chunks and {len(buffers)} buffers; expected one buffer per chunk"
            )
        flat = [memoryview(buffer).cast("B") for buffer in buffers]
        for chunk, view in zip(chunks, flat, strict=True):
            if view.nbytes != chunk.nbytes:
                raise InvalidRequest(
                    f"chunk {chunk.chunk_id} has {chunk.nbytes} bytes, its buffer {view.nbytes}; expected equal sizes"
                )
        locations = self.reserve(chunks)
        for location, chunk, view in zip(locations, chunks, flat, strict=True):
            room = self._rooms[location.uri]
            target = self._region.view(room)
            target[:] = view
            digest = int((chunk.checksum or checksum(target)).rpartition(":")[2], 16)
            write_header(
                self._region.memory,
                room.offset,
                arrived=True,
                nbytes=room.nbytes,
                digest=digest & (2**64 - 1),
            )
        return locations

    def reserve(self, chunks: Sequence[KVChunk]) -> tuple[KVLocation, ...]:
        with self._lock:
            if self._closed:
                raise InvalidRequest("this endpoint is closed; open another one")
            rooms = self._region.allocate([chunk.nbytes for chunk in chunks])
            uris = [self._uri(room) for room in rooms]
            self._rooms.update(zip(uris, rooms, strict=True))
        return tuple(KVLocation(tier="dram", uri=uri) for uri in uris)

    def open(self, location: KVLocation) -> memoryview:
        with self._lock:
            room = self._rooms.get(location.uri)
            if room is None:
                raise InvalidRequest(
                    f"{location.uri} is not a location of this endpoint, or it was withdrawn"
                )
            state = read_header(self._region.memory, room.offset)
            if state is None or not state[0]:
                raise InvalidRequest(
                    f"the bytes of {location.uri} have not arrived; wait for its step to be done"
                )
            return self._region.view(room)

    def withdraw(self, locations: Sequence[KVLocation]) -> None:
        with self._lock:
            for location in locations:
                room = self._rooms.pop(location.uri, None)
                if room is not None:
                    self._region.free(room)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._rooms.clear()
        self._region.close()

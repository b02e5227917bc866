"""An endpoint of files in a folder."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sage_infer.errors import InvalidRequest, Overloaded
from sage_infer.schemas import KVChunk, KVLocation

__all__ = ["CAPACITY", "ReferenceEndpoint"]

CAPACITY = 400_000  # bytes


class ReferenceEndpoint:
    """Each location is a file."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="sage-infer-endpoint-")
        self.sizes: dict[str, int] = {}
        self.numbers = itertools.count()

    def path(self, location: KVLocation) -> Path:
        return Path(location.uri.removeprefix("file://"))

    def locations(self, chunks: Sequence[KVChunk]) -> tuple[KVLocation, ...]:
        needed = sum(chunk.nbytes for chunk in chunks)
        if needed + sum(self.sizes.values()) > CAPACITY:
            raise Overloaded(f"{needed} bytes do not fit into {CAPACITY}; withdraw some", retry_after=1.0)
        made = [
            KVLocation(tier="ssd", uri=f"file://{self.folder.name}/{self.name(chunk)}") for chunk in chunks
        ]
        self.sizes |= {place.uri: chunk.nbytes for place, chunk in zip(made, chunks, strict=True)}
        return tuple(made)

    def name(self, chunk: KVChunk) -> str:
        return f"{chunk.chunk_id}-{next(self.numbers)}"

    def publish(self, chunks: Sequence[KVChunk], buffers: Sequence[memoryview]) -> tuple[KVLocation, ...]:
        self.check(chunks, buffers)
        made = self.locations(chunks)
        for location, buffer in zip(made, buffers, strict=True):
            self.path(location).write_bytes(buffer)
        return made

    def check(self, chunks: Sequence[KVChunk], buffers: Sequence[memoryview]) -> None:
        if [chunk.nbytes for chunk in chunks] != [buffer.nbytes for buffer in buffers]:
            raise InvalidRequest(f"{len(chunks)} chunks need as many buffers of their sizes")

    def reserve(self, chunks: Sequence[KVChunk]) -> tuple[KVLocation, ...]:
        return self.locations(chunks)

    def open(self, location: KVLocation) -> memoryview:
        if location.uri not in self.sizes:
            raise InvalidRequest(f"{location.uri} is not a location of this endpoint")
        return memoryview(self.path(location).read_bytes())

    def withdraw(self, locations: Sequence[KVLocation]) -> None:
        for location in locations:
            if self.sizes.pop(location.uri, None) is not None:
                self.path(location).unlink(missing_ok=True)

    def close(self) -> None:
        self.sizes.clear()
        self.folder.cleanup()

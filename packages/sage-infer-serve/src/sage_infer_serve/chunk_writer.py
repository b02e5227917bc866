"""Parts of a streamed body, written without an ASGI message and a coroutine for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uvicorn.protocols.http.flow_control import FlowControl
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

__all__ = ["CHUNK_WRITER", "ChunkWriter"]

CHUNK_WRITER = "sage_infer.chunk_writer"
"""ASGI extension: an object that writes a part of a body at once, without a message and a coroutine for each."""


class ChunkWriter:
    """Writes parts of one response's body, between its start and its end.

    It does what uvicorn's ``send`` does for a ``http.response.body`` with ``more_body`` and chunked encoding; a
    stream's tokens each save several microseconds by it.
    """

    __slots__ = ("_cycle", "_flow", "_write")

    def __init__(
        self, cycle: RequestResponseCycle, write: Callable[[bytes], None], flow: FlowControl
    ) -> None:
        self._cycle, self._write, self._flow = cycle, write, flow

    def write(self, data: bytes) -> bool:
        """Write, or give False where it takes ``send``: the client reads too slowly, has gone, or wants no chunks."""
        if self._flow.write_paused or self._cycle.disconnected or not self._cycle.chunked_encoding:
            return False
        self._write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

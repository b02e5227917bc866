"""A transport between endpoints of different hosts."""

from __future__ import annotations

import socket
import tempfile

from sage_infer.errors import ConfigError, InvalidRequest
from sage_infer.schemas import KVLocation, TransportSettings

from sage_infer_transport.addresses import FileAddress, TCPAddress, parse
from sage_infer_transport.copying import BLOCK_BYTES, Hasher, Segments, copy, new_file, opened, write_all
from sage_infer_transport.execution import Move, ThreadedTransport
from sage_infer_transport.local import is_local_target, local_address
from sage_infer_transport.tcp.client import Client
from sage_infer_transport.tcp.sockets import receive_some

__all__ = ["TCPTransport"]


class TCPTransport(ThreadedTransport):
    """Implements ``sage_infer.contracts.Transport`` for ``tcp:``, ``shm:`` and ``file:``, in any combination.

    Bytes go from the file or segment to the network without a copy, and from the socket to their place. An interrupted
    chunk continues where it stopped. Between two remote endpoints chunks pass through this host.

    Args:
        settings: ``max_in_flight`` connections; ``chunk_bytes`` are sent between two checks for cancellation.
        retry_s: seconds without progress after which a step fails.
    """

    schemes = ("file", "shm", "tcp")

    def __init__(self, *, settings: TransportSettings, retry_s: float = 15.0) -> None:
        if type(retry_s) not in (int, float) or not 0 < retry_s <= 3600:
            raise ConfigError(f"retry_s must be a number of seconds between 0 and 3600, got {retry_s!r}")
        self._segments = Segments()
        self._client = Client(float(retry_s), settings.chunk_bytes)
        super().__init__(settings, threads=settings.max_in_flight)

    def can_reach(self, source: KVLocation, target: KVLocation) -> bool:
        readable = _tcp(source) is not None or local_address(source) is not None
        return readable and (_tcp(target) is not None or is_local_target(target))

    async def close(self) -> None:
        await super().close()
        self._client.close()
        self._segments.close()

    def _move(self, move: Move) -> None:
        step = move.step
        source, target = _tcp(step.source), _tcp(step.target)
        local_source, local_target = local_address(step.source), local_address(step.target)
        if source is not None and target is not None:
            with tempfile.TemporaryFile() as between:
                self._receive_file(source, between.fileno(), move)
                self._client.put(target, move, between.fileno(), 0)
        elif source is not None and local_target is not None:
            if local_target.shared:
                self._receive_room(source, local_target, move)
            else:
                with new_file(local_target.path) as fd:
                    self._receive_file(source, fd, move)
        elif target is not None and local_source is not None:
            with opened(local_source, step.chunk) as fd:
                mapped = self._segments.payload(local_source, step.chunk) if local_source.shared else None
                self._client.put(target, move, fd, local_source.offset, mapped)
        elif local_source is not None and local_target is not None:
            copy(local_source, local_target, move, self._segments)

    def _receive_room(self, source: TCPAddress, target: FileAddress, move: Move) -> None:
        chunk, hasher = move.step.chunk, Hasher()
        room = self._segments.room(target, chunk)
        payload = room.payload

        def take(sock: socket.socket, begin: int, end: int) -> int:
            block = payload[begin : min(begin + BLOCK_BYTES, end)]
            count = _some(sock, block)
            hasher.update(block[:count])
            return count

        self._client.get(source, move, take)
        room.arrived(hasher.check(chunk, move.step.source.uri))

    def _receive_file(self, source: TCPAddress, fd: int, move: Move) -> None:
        hasher, buffer = Hasher(), memoryview(bytearray(BLOCK_BYTES))

        def take(sock: socket.socket, begin: int, end: int) -> int:
            count = _some(sock, buffer[: end - begin])
            hasher.update(buffer[:count])
            write_all(fd, buffer[:count], begin)
            return count

        self._client.get(source, move, take)
        hasher.check(move.step.chunk, move.step.source.uri)


def _some(sock: socket.socket, block: memoryview) -> int:
    count = receive_some(sock, block)
    if count == 0:
        raise ConnectionResetError("the connection ended early")
    return count


def _tcp(location: KVLocation) -> TCPAddress | None:
    try:
        address = parse(location.uri)
    except InvalidRequest:
        return None
    return address if isinstance(address, TCPAddress) else None

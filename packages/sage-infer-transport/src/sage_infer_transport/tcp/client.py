"""Connections to endpoints, and exchanges that continue after an interruption."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from attrs import define, field
from sage_infer.schemas import KVChunk

from sage_infer_transport.addresses import TCPAddress
from sage_infer_transport.execution import Failed, Move
from sage_infer_transport.tcp.protocol import Answer, Operation, ProtocolError, Request, Status
from sage_infer_transport.tcp.sockets import prepare, send_some

__all__ = ["Client"]

_SILENCE_S = 2.0  # without a byte for so long, a new connection is tried: the old one's route may have gone
_PAUSE_S = (0.05, 1.0)  # first and longest pause between attempts


@define(eq=False)
class Client:
    """Reads and writes rooms. ``retry_s`` without progress fail a step; ``message_bytes`` are sent between checks."""

    retry_s: float
    message_bytes: int
    _idle: dict[tuple[str, int], list[socket.socket]] = field(factory=lambda: defaultdict(list))
    _lock: threading.Lock = field(factory=threading.Lock)

    def get(self, address: TCPAddress, move: Move, take: Callable[[socket.socket, int, int], int]) -> None:
        """Read a room. ``take(sock, begin, end)`` receives some of those bytes and returns how many."""
        nbytes, done = move.step.chunk.nbytes, 0

        def attempt(sock: socket.socket) -> None:
            nonlocal done
            sock.sendall(Request(Operation.GET, address.room, offset=done).encode())
            answer = _accepted(Answer.read(sock), move.step.source.uri)
            if answer.value != nbytes - done:
                raise Failed(
                    f"{move.step.source.uri} has {answer.value + done} bytes, chunk {move.step.chunk.chunk_id} {nbytes}"
                )
            while done < nbytes:
                move.check()
                done += take(sock, done, nbytes)

        self._retried(address, move, attempt, lambda: done)

    def put(
        self, address: TCPAddress, move: Move, fd: int, offset: int, mapped: memoryview | None = None
    ) -> None:
        """Write a chunk from a file, which may be ``mapped`` too, into a room; the endpoint verifies it."""
        chunk, sent = move.step.chunk, 0

        def attempt(sock: socket.socket) -> None:
            nonlocal sent
            request = Request(Operation.PUT, address.room, nbytes=chunk.nbytes, digest=_digest(chunk))
            sock.sendall(request.encode())
            sent = _accepted(Answer.read(sock), move.step.target.uri).value
            while sent < chunk.nbytes:
                move.check()
                count = min(self.message_bytes, chunk.nbytes - sent)
                rest = None if mapped is None else mapped[sent:]
                moved = send_some(sock, fd, offset + sent, count, rest)
                if moved == 0:
                    raise Failed(f"{move.step.source.uri} became shorter while it was sent")
                sent += moved
            _accepted(Answer.read(sock), move.step.target.uri)

        self._retried(address, move, attempt, lambda: sent)

    def close(self) -> None:
        with self._lock:
            for sockets in self._idle.values():
                for sock in sockets:
                    sock.close()
            self._idle.clear()

    def _retried(
        self,
        address: TCPAddress,
        move: Move,
        attempt: Callable[[socket.socket], None],
        done: Callable[[], int],
    ) -> None:
        """Repeat an attempt while it makes progress, or for ``retry_s`` without any."""
        progress_at, furthest, pause = time.monotonic(), 0, _PAUSE_S[0]
        while True:
            try:
                with self._connection(address) as sock:
                    attempt(sock)
                return
            except Failed:
                raise
            except ProtocolError as error:
                raise Failed(f"{address.host}:{address.port}: {error}") from None
            except OSError as error:
                if done() > furthest:
                    furthest, progress_at, pause = done(), time.monotonic(), _PAUSE_S[0]
                if time.monotonic() - progress_at > self.retry_s:
                    raise Failed(
                        f"{address.host}:{address.port}: no progress for {self.retry_s:g} s: {error}"
                    ) from None
            move.check()
            move.retries += 1
            move.stop.wait(pause)
            pause = min(2 * pause, _PAUSE_S[1])

    @contextmanager
    def _connection(self, address: TCPAddress) -> Iterator[socket.socket]:
        """A connection, which is kept if the exchange ended well."""
        key = (address.host, address.port)
        with self._lock:
            idle = self._idle[key]
            sock = idle.pop() if idle else None
        if sock is not None and not _usable(sock):
            sock.close()
            sock = None
        if sock is None:
            sock = socket.create_connection(key, timeout=_SILENCE_S)
            prepare(sock, _SILENCE_S)
        try:
            yield sock
        except BaseException:
            sock.close()
            raise
        with self._lock:
            self._idle[key].append(sock)


def _digest(chunk: KVChunk) -> int:
    assert chunk.checksum is not None  # check_plan has seen to it
    return int(chunk.checksum.rpartition(":")[2], 16)


def _accepted(answer: Answer, where: str) -> Answer:
    if answer.status is not Status.OK:
        raise Failed(f"{where}: {answer.text}")
    return answer


def _usable(sock: socket.socket) -> bool:
    """Whether an idle connection is still open: nothing can be read from it."""
    sock.setblocking(False)
    try:
        with contextlib.suppress(BlockingIOError):
            sock.recv(1)
            return False  # ended, or bytes that nobody asked for
        return True
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            sock.setblocking(True)

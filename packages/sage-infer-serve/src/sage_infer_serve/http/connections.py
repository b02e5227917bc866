"""Limits on a server's connections: their number, in total and per peer, and the time without reads.

Without them, any client could exhaust the file descriptors of the process without an API key, with connections
that it never uses or whose responses it never reads.
"""

from __future__ import annotations

import asyncio
import ctypes
import sys
import time
from typing import Protocol

from attrs import define, field

__all__ = ["Connection", "ConnectionLimits"]

_LEAST_READ = 16 * 1024  # bytes of a response that a client must read within the write timeout
_CALM_CHURN = 2**20  # the same once no more arrive
_CHURN = 32 * 2**20  # bytes received or discarded after which freed memory is returned to the system


class Connection(Protocol):
    """The protocol interface that the limits use."""

    def waits_for_reader(self) -> bool:
        """Whether writing is paused until the client reads."""
        ...


@define(eq=False)
class _Kept:
    """A connection and its state. ``unread`` bytes were waiting at the time ``since``."""

    transport: asyncio.Transport
    peer: str
    unread: int = 0
    since: float = 0.0


@define(eq=False)
class ConnectionLimits:
    """The connections of one server, oldest first.

    If there are too many, in total or from one peer, an idle connection is closed, or else one whose client does not
    read. Without either, the new connection is rejected.

    Attributes:
        max_idle: maximum connections without a request.
        max_connections: maximum connections in total.
        max_per_peer: maximum connections from one address.
        header_timeout_s: seconds for the headers of a request.
        write_timeout_s: seconds without reads after which a connection is closed.
        idle_timeout_s: seconds without a request after which a connection is closed, whatever else it sends.
        churn: bytes received or discarded since freed memory was returned.
        looks: how often all connections were checked.
    """

    max_idle: int
    max_connections: int
    max_per_peer: int
    header_timeout_s: float
    write_timeout_s: float
    idle_timeout_s: float
    churn: int = 0
    looks: int = 0
    _seen: int = field(default=0, init=False)  # churn at the last look
    _all: dict[Connection, _Kept] = field(factory=dict, init=False)
    _idle: dict[Connection, float] = field(factory=dict, init=False)  # since when
    _stalled: dict[Connection, None] = field(factory=dict, init=False)
    _peers: dict[str, dict[Connection, None]] = field(factory=dict, init=False)
    _sweeper: asyncio.TimerHandle | None = field(default=None, init=False)
    _trimming: asyncio.Future[object] | None = field(default=None, init=False)

    def admit(self, connection: Connection, transport: asyncio.Transport, peer: str) -> bool:
        """Admit a new connection, if necessary in place of another; False if there is no room."""
        of_peer = self._peers.get(peer, {})
        if len(of_peer) >= self.max_per_peer and not self._drop_one_of(of_peer):
            return False
        if len(self._all) >= self.max_connections and not self._drop_one_of(self._all):
            return False
        self._all[connection] = _Kept(transport, peer)
        self._peers.setdefault(peer, {})[connection] = None
        if self._sweeper is None:
            self._sweep_later(asyncio.get_running_loop())
        return True

    def lost(self, connection: Connection) -> None:
        """A connection is gone; one that was not admitted is ignored."""
        kept = self._all.pop(connection, None)
        if kept is None:
            return
        self._idle.pop(connection, None)
        self._stalled.pop(connection, None)
        of_peer = self._peers[kept.peer]
        del of_peer[connection]
        if not of_peer:
            del self._peers[kept.peer]

    def idle(self, connection: Connection) -> None:
        """The connection has no request in progress."""
        if connection not in self._all:
            return
        self._idle[connection] = time.monotonic()
        if len(self._idle) > self.max_idle:
            self._close(next(iter(self._idle)))

    def busy(self, connection: Connection) -> None:
        self._idle.pop(connection, None)

    def stalled(self, connection: Connection, is_stalled: bool) -> None:
        """Whether the client reads more slowly than the server writes."""
        if not is_stalled:
            self._stalled.pop(connection, None)
        elif connection in self._all:
            self._stalled[connection] = None

    def _drop_one_of(self, connections: dict[Connection, _Kept] | dict[Connection, None]) -> bool:
        everyone = connections is self._all
        for candidates in (self._idle, self._stalled):
            pool = candidates if everyone or len(candidates) < len(connections) else connections
            for connection in pool:
                if connection in candidates and connection in connections:
                    if candidates is self._idle:
                        self._close(connection)
                    else:
                        self._abort(connection)
                    return True
        return False

    def _close(self, connection: Connection) -> None:
        """Close it after sending buffered data."""
        kept = self._all[connection]
        self.lost(connection)
        if kept.transport.get_write_buffer_size():
            kept.transport.abort()
        else:
            kept.transport.close()

    def _abort(self, connection: Connection) -> None:
        kept = self._all[connection]
        self.churn += kept.transport.get_write_buffer_size()
        self.lost(connection)
        kept.transport.abort()

    # --- periodic work

    def _sweep_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweeper = loop.call_later(self.write_timeout_s / 4, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close connections whose clients have not read for too long, and return freed memory to the system."""
        self.looks += 1
        now = time.monotonic()
        late = [connection for connection, kept in self._all.items() if self._is_late(connection, kept, now)]
        for connection in late:
            self._abort(connection)
        for connection in [c for c, since in self._idle.items() if now - since > self.idle_timeout_s]:
            self._close(connection)
        is_calm, self._seen = self.churn == self._seen, self.churn
        if (self.churn > _CHURN or (is_calm and self.churn > _CALM_CHURN)) and (
            self._trimming is None or self._trimming.done()
        ):
            self.churn = self._seen = 0
            self._trimming = loop.run_in_executor(None, _return_memory)
        self._sweeper = None
        if self._all or self.churn > _CALM_CHURN:
            self._sweep_later(loop)

    def _is_late(self, connection: Connection, kept: _Kept, now: float) -> bool:
        unread = kept.transport.get_write_buffer_size()
        if not unread or not connection.waits_for_reader():
            kept.unread = 0
        elif not kept.unread or kept.unread - unread >= _LEAST_READ:
            kept.unread, kept.since = unread, now
        else:
            return now - kept.since > self.write_timeout_s
        return False


def _return_memory() -> None:
    """Return memory to the system that was freed but is still held by the C library."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc; musl lacks it
        if trim is not None:
            trim(0)

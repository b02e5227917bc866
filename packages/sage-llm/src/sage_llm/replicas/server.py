"""Server of one backend, on a unix socket or at a port."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
from sage_infer.compat import timeout
from sage_infer.contracts import EmbeddingBackend, Health
from sage_infer.errors import SageInferError, UnsupportedFeature
from sage_infer.schemas import InstanceDescriptor, ReplicaSpec
from sage_infer.schemas.instance import InstanceState

from sage_llm.replicas.hand_over import HandOverRoom
from sage_llm.replicas.link import Link
from sage_llm.replicas.net.gate import Gate
from sage_llm.replicas.protocol import PROTOCOL, Gauges, Hello, carried
from sage_llm.replicas.run_folder import new_socket
from sage_llm.replicas.session import Session
from sage_llm.replicas.spans import spans_of_replica

__all__ = ["ReplicaServer", "describe", "register", "serve", "served", "stop_serving"]

LEASE_S = 5.0
WINDOW = 256
REPORT_S = 0.1
_CLOSE_S = 1.0  # for clients to read what was sent before the close
_IDLE_REPORTS = 3  # an idle replica sends every third report

_running: dict[str, ReplicaServer] = {}


class ReplicaServer:
    """Serves one started backend to any number of clients.

    Requests belong to a connection: they are aborted when it is closed, or when its client has been silent for the
    lease. Each stream has a window of unread deltas, so a slow consumer delays only its own stream.

    Args:
        backend: the backend.
        descriptor: identity of the replica; its features are reduced to those that the protocol carries.
        lease_s: lease of a silent client, in seconds.
        window: maximum number of deltas of a stream that its consumer has not read.
        report_s: interval of the reports of a busy replica, in seconds.
    """

    def __init__(
        self,
        backend: Any,
        descriptor: InstanceDescriptor,
        *,
        lease_s: float = LEASE_S,
        window: int = WINDOW,
        report_s: float = REPORT_S,
    ) -> None:
        self.backend, self.room = backend, HandOverRoom(backend)
        self.spans = spans_of_replica()
        capability = carried(descriptor.capability)
        if self.spans is not None and not capability.supports("trace"):
            capability = attrs.evolve(capability, features=(*capability.features, "trace"))
        self.descriptor = attrs.evolve(descriptor, capability=capability)
        self.window = window
        self._lease_s, self._report_s = lease_s, report_s
        self._reports = descriptor.capability.supports("reports")
        self._health = Health(status="ok")
        self._state: InstanceState = "ready"
        self._sessions: set[Session] = set()
        self._server: asyncio.Server | None = None
        self._reporting: asyncio.Task[None] | None = None

    async def start(self, path: Path) -> None:
        """Listen on a unix socket that only this user can open."""
        await self._look()
        loop = asyncio.get_running_loop()
        self._listening(await loop.create_unix_server(self._connected, sock=_private_socket(path)))

    async def start_tcp(self, host: str, token: str) -> int:
        """Listen at a free port of an address, for clients that know the token; returns the port."""
        await self._look()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Gate(token, self._connected), host, 0)
        self._listening(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    def _listening(self, server: asyncio.Server) -> None:
        self._server = server
        self._reporting = asyncio.get_running_loop().create_task(self._report())

    async def close(self) -> None:
        """Stop listening, and close all connections after sending what is pending. Safe to call twice."""
        if self._server is not None:
            self._server.close()
        if self._reporting is not None:
            self._reporting.cancel()
            await asyncio.wait([self._reporting])
        sessions = list(self._sessions)
        for session in sessions:
            session.close("the replica was stopped")
        with suppress(TimeoutError):
            async with timeout(_CLOSE_S):
                await asyncio.gather(*(session.wait_closed() for session in sessions))
        for session in sessions:
            session.abort("the replica was stopped")
        await self.room.close()

    def gauges(self) -> Gauges:
        """Return the load now, with health and state of the latest report."""
        return Gauges(time.monotonic(), self._state, self._health, self.backend.stats())

    def hello(self) -> Hello:
        backend = self.backend
        embeds = isinstance(backend, EmbeddingBackend)
        dim: int | None = None
        with suppress(UnsupportedFeature):  # rerankers have no vectors
            dim = backend.get_embedding_dim() if embeds else None
        return Hello(
            PROTOCOL,
            "embedding" if embeds else "inference",
            self.descriptor,
            self.gauges(),
            self._lease_s,
            self.window,
            dim,
            backend.get_max_length() if embeds else None,
        )

    def forget(self, session: Session) -> None:
        self._sessions.discard(session)

    def _connected(self) -> Link:
        session = Session(self)
        self._sessions.add(session)
        return session.link

    async def _look(self) -> None:
        """Read health and state."""
        self._health = await self.backend.health()
        status = self._health.status
        self._state = "ready" if status == "ok" else status
        if self._reports and self._state == "ready":
            with suppress(SageInferError):
                self._state = self.backend.report().state

    async def _report(self) -> None:
        tick = 0
        while True:
            await asyncio.sleep(self._report_s)
            await self._look()
            gauges, tick = self.gauges(), tick + 1
            busy = gauges.stats.running or gauges.stats.waiting or gauges.state == "dead"
            for session in list(self._sessions):
                if session.silence(self._report_s) > self._lease_s:
                    session.abort(f"the client was silent for {self._lease_s:g} s")
                elif busy or tick % _IDLE_REPORTS == 0:
                    session.report(gauges)


def _private_socket(path: Path) -> socket.socket:
    """Return a socket that is bound to ``path``, with mode 0600 from its creation on."""
    made = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        made.bind(os.fspath(path))
    except OSError:
        made.close()
        raise
    finally:
        os.umask(mask)
    return made


async def serve(backend: Any, spec: ReplicaSpec) -> str:
    """Serve a started backend to other processes of this user; the ``server`` of a ``ReplicaSpec``.

    Returns:
        The address, ``unix:`` and the path of a socket in the run folder.
    """
    path = new_socket()
    address = f"unix:{path}"
    server = ReplicaServer(backend, describe(backend, spec, address))
    await server.start(path)
    register(address, server)
    return address


def register(address: str, server: ReplicaServer) -> None:
    """Make a server known to ``served`` and ``stop_serving``."""
    _running[address] = server


def served(address: str) -> InstanceDescriptor | None:
    """Return the descriptor of the server at an address; None if ``serve`` did not return the address."""
    server = _running.get(address)
    return None if server is None else server.descriptor


async def stop_serving(address: str) -> None:
    """Stop the server at an address that ``serve`` returned; unknown addresses are ignored."""
    server = _running.pop(address, None)
    if server is not None:
        await server.close()
        with suppress(FileNotFoundError):
            os.unlink(address.removeprefix("unix:"))


def describe(backend: Any, spec: ReplicaSpec, address: str) -> InstanceDescriptor:
    """Return the identity of a replica that was started just now."""
    capability = carried(backend.get_capability())
    known: dict[str, Any] = {}
    if capability.supports("reports"):
        own = backend.describe()
        names = ("adapters", "host", "numa_node", "device_uuids", "key_space", "versions")
        known = {name: getattr(own, name) for name in names}
    return InstanceDescriptor(
        instance_id=spec.replica_id,
        generation=time.time_ns(),
        model_ids=(spec.model.model_id,),
        capability=capability,
        addresses=(address,) if address else (),
        **known,
    )

"""Connections to replicas: the backend object, its reports, its KV events, and the news of its loss."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import attrs
from sage_infer.contracts import Health, KVEvents, KVSnapshot, ReplicaHandle
from sage_infer.errors import SageInferError, UnsupportedFeature
from sage_infer.names import GENERATING
from sage_infer.schemas import InstanceDescriptor, InstanceReport
from sage_infer.schemas.replica import ReplicaRole
from sage_infer.sdk import Reporter

from sage_llm.replicas.backends import EmbeddingReplica, InferenceReplica
from sage_llm.replicas.client import ReplicaClient
from sage_llm.replicas.net.gate import TOKEN_VARIABLE
from sage_llm.tasks import Tasks

__all__ = ["ConnectedReplica", "connect"]

_APART_S = 0.02  # between two reports of the same state

OnReport = Callable[[InstanceReport], object]
OnKV = Callable[[KVSnapshot | KVEvents], object]
OnLost = Callable[[str], object]


class ConnectedReplica:
    """A replica with a connection.

    All callbacks run in the event loop's thread. A callback that is registered late is called with the latest report,
    or with the reason of the loss.

    Attributes:
        descriptor: identity of the replica. ``key_space``, ``adapters`` and ``versions`` are the backend's.
        backend: an ``InferenceBackend`` or ``EmbeddingBackend``, wherever the replica runs. When the replica is lost,
            its open calls and streams end with ``EngineDead``.
    """

    def __init__(self, handle: ReplicaHandle, backend: Any, *, interval_s: float) -> None:
        self.backend = backend
        self._client = backend if isinstance(backend, ReplicaClient) else None
        self.descriptor = _in_role(_identity(handle.descriptor, backend), handle.spec.role)
        self._interval_s = interval_s
        self._labels = Reporter(self.descriptor.capability.backend_name, self.descriptor.model_ids[0])
        self._on_report: list[OnReport] = []
        self._on_kv: list[OnKV] = []
        self._on_lost: list[OnLost] = []
        self._latest: InstanceReport | None = None
        self._seq = 0
        self._lost: str | None = None
        self._closed = False
        self._tasks = Tasks()
        if self._client is None:
            self._tasks.spawn(self._poll())
        else:
            self._client.on_gauges = self._gauges_arrived
            self._client.on_lost = self._lose
            self._gauges_arrived()
        self._tasks.spawn(self._watch(handle))

    def on_report(self, callback: OnReport) -> None:
        """Call ``callback`` with each report; ``instance_id`` and ``generation`` are those of ``descriptor``."""
        self._on_report.append(callback)
        if self._latest is not None:
            callback(self._latest)

    def on_kv(self, callback: OnKV) -> None:
        """Call ``callback`` with a snapshot of the cached blocks, then with each event after it.

        After a gap in the events, the next call is a new snapshot. ``generation`` is that of ``descriptor``. Nothing
        is called if the backend does not claim ``kv_events``.
        """
        if not self.descriptor.capability.supports("kv_events"):
            return
        self._on_kv.append(callback)
        self._tasks.spawn(self._follow(callback))

    def on_lost(self, callback: OnLost) -> None:
        """Call ``callback`` once with the reason when the replica ends without ``close``."""
        self._on_lost.append(callback)
        if self._lost is not None:
            callback(self._lost)

    async def close(self) -> None:
        """Close the connection; the replica continues to run. Safe to call twice."""
        self._closed = True
        await self._tasks.cancel()
        if self._client is not None:
            await self._client.close()

    async def _poll(self) -> None:
        while True:
            health = await self.backend.health()
            if health.status == "dead":
                self._lose(health.reason)
                return
            self._tell(self._read(health))
            await asyncio.sleep(self._interval_s)

    def _gauges_arrived(self) -> None:
        """Pass on what the replica has sent. A replica that sends nothing has no reports.

        Gauges arrive with each answer, too; those that follow others closely are left out, as a report costs as much
        as a decision.
        """
        assert self._client is not None
        now, latest = time.monotonic(), self._latest
        if latest is not None and now - latest.taken_at < _APART_S and self._client.state == latest.state:
            return
        report = self._client.report()
        self._tell(report)
        if report.state == "dead":
            self._lose(self._client.health_reason)

    def _read(self, health: Health) -> InstanceReport:
        """Return the backend's own report, or one made of its gauges."""
        if self.descriptor.capability.supports("reports"):
            with suppress(SageInferError):
                report: InstanceReport = self.backend.report()
                return report
        return self._labels.report(self.backend.stats(), health)

    def _tell(self, report: InstanceReport) -> None:
        self._seq += 1
        self._latest = attrs.evolve(
            report,
            instance_id=self.descriptor.instance_id,
            generation=self.descriptor.generation,
            seq=self._seq,
            taken_at=time.monotonic(),
        )
        for callback in self._on_report:
            callback(self._latest)

    async def _follow(self, callback: OnKV) -> None:
        while self._lost is None:
            try:
                snapshot = await self.backend.kv_snapshot()
                callback(attrs.evolve(snapshot, generation=self.descriptor.generation))
                expected = snapshot.seq + 1
                async for event in self.backend.kv_events(snapshot.seq):
                    if event.seq != expected or event.generation != snapshot.generation:
                        break
                    callback(attrs.evolve(event, generation=self.descriptor.generation))
                    expected += 1
                else:
                    return  # the backend was closed
            except SageInferError:
                return  # the replica is lost; ``on_lost`` says so

    async def _watch(self, handle: ReplicaHandle) -> None:
        self._lose((await handle.wait()).reason)

    def _lose(self, reason: str) -> None:
        if self._lost is None and not self._closed:
            self._lost = reason
            for callback in self._on_lost:
                callback(reason)


async def connect(handle: ReplicaHandle, *, interval_s: float = 0.1) -> ConnectedReplica:
    """Connect to a replica, at the first of its addresses that this process can reach.

    Args:
        handle: handle of a started or adopted replica.
        interval_s: interval of the reports of a replica in this process, in seconds; others choose it themselves.

    Raises:
        EngineDead: the replica has ended, or does not answer.
        UnsupportedFeature: the replica has no address of a known scheme.
    """
    if handle.backend is not None:
        return ConnectedReplica(handle, handle.backend, interval_s=interval_s)
    for address in handle.descriptor.addresses:
        if address.startswith(("unix:", "tcp:")):
            generates = handle.spec.model.model_type in GENERATING
            token = handle.spec.environment.get(TOKEN_VARIABLE, "")
            client = (InferenceReplica if generates else EmbeddingReplica)(address, token=token)
            await client.start()
            return ConnectedReplica(handle, client, interval_s=interval_s)
    raise UnsupportedFeature(
        f"replica {handle.descriptor.instance_id!r} has no address that can be reached from this process: "
        f"{', '.join(handle.descriptor.addresses) or 'none'}"
    )


def _identity(descriptor: InstanceDescriptor, backend: Any) -> InstanceDescriptor:
    if isinstance(backend, ReplicaClient):  # what the frames carry of it
        descriptor = attrs.evolve(descriptor, capability=backend.get_capability())
    if not descriptor.capability.supports("reports"):
        return descriptor
    own = backend.describe()
    return attrs.evolve(
        descriptor,
        key_space=descriptor.key_space or own.key_space,
        adapters=descriptor.adapters or own.adapters,
        versions=descriptor.versions or own.versions,
        host=descriptor.host or own.host,
    )


def _in_role(descriptor: InstanceDescriptor, role: ReplicaRole) -> InstanceDescriptor:
    """The descriptor of an instance that gets only a part of each request.

    Raises:
        UnsupportedFeature: its backend cannot hand over or take over KV.
    """
    if role == "general":
        return descriptor
    needed = ("prefill_decode", "kv_export" if role == "prefill" else "kv_import")
    capability = descriptor.capability
    if missing := [feature for feature in needed if not capability.supports(feature)]:
        raise UnsupportedFeature(
            f"replica {descriptor.instance_id!r} cannot have the role {role}: {capability.backend_name} does not claim "
            f"{' and '.join(missing)}; leave --pd out, or choose another backend"
        )
    return attrs.evolve(descriptor, capability=attrs.evolve(descriptor.capability, instance_type=role))

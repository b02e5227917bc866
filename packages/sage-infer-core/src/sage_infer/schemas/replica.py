"""Specification of a replica for an executor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from attrs import field, frozen

from sage_infer.checks import Choice, Each, Entries, Instance, Integer, Json, Number, Text, as_tuple, optional
from sage_infer.schemas.base import schema
from sage_infer.schemas.model import ModelDescriptor

__all__ = ["ReplicaSpec"]

Spread = Literal["pack", "spread"]
ReplicaRole = Literal["general", "prefill", "decode"]


@schema("1.1")
@frozen(kw_only=True)
class ReplicaSpec:
    """One replica to run.

    Attributes:
        replica_id: name of the replica; becomes its ``instance_id``.
        backend: name of the backend to open.
        model: model to load.
        options: options of the backend.
        server: dotted path of a function that serves the replica to other processes. It is called as
            ``server(backend, spec)`` and returns the replica's address. Null for a replica in the caller's own
            process.
        environment: environment variables of the replica.
        device_ids: devices that the replica may use; empty lets the executor choose.
        cpus: number of CPUs to reserve.
        gpus: number of accelerators to reserve; with a fraction, replicas share one.
        memory_gb: memory to reserve in GiB; null reserves none.
        group: name of a placement group; its replicas are placed together (pack) or apart (spread).
        placement: pack or spread.
        role: part of a request that routers send to the replica: general (all of it), prefill, or decode.
        start_timeout_s: startup timeout in seconds; a replica that is not ready by then has failed.
    """

    replica_id: str = field(validator=Text(min_length=1))
    backend: str = field(validator=Text(min_length=1))
    model: ModelDescriptor = field(validator=Instance(ModelDescriptor))
    options: Mapping[str, Any] = field(factory=dict, validator=Entries(Json()))
    server: str | None = field(
        default=None, validator=optional(Text(pattern=r"[\w.]+:[\w.]+", hint="package.module:factory"))
    )
    environment: Mapping[str, str] = field(factory=dict, validator=Entries(Text()))
    device_ids: tuple[int, ...] = field(
        default=(), converter=as_tuple, validator=Each(Integer(ge=0), unique=True)
    )
    cpus: float = field(default=1.0, validator=Number(ge=0))
    gpus: float = field(default=0.0, validator=Number(ge=0))
    memory_gb: float | None = field(default=None, validator=optional(Number(gt=0)))
    group: str = field(default="", validator=Text())
    placement: Spread = field(default="spread", validator=Choice(("pack", "spread")))
    role: ReplicaRole = field(default="general", validator=Choice(("general", "prefill", "decode")))
    start_timeout_s: float = field(default=600.0, validator=Number(gt=0))

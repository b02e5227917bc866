"""Which instance of a backend this is, and how it is doing: what routers know of replicas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from attrs import field, frozen

from sage_infer.checks import Choice, Each, Entries, Instance, Integer, Number, Text, as_tuple, optional
from sage_infer.schemas.base import schema
from sage_infer.schemas.capability import CapabilityDescriptor

__all__ = ["InstanceDescriptor", "InstanceReport", "InstanceState"]

InstanceState = Literal["starting", "ready", "degraded", "draining", "sleeping", "dead"]


@schema("1.0")
@frozen(kw_only=True)
class InstanceDescriptor:
    """One running instance. It does not change while the instance lives.

    Attributes:
        instance_id: name of the instance, kept over its restarts.
        generation: start time in nanoseconds since the epoch; of two instances with one id the larger one
            counts.
        model_ids: models that it serves.
        capability: what it can do.
        adapters: LoRA adapters that are loaded.
        addresses: where it is reached: ``inproc:``, ``unix:…``, ``http://…``.
        host: name of its machine.
        numa_node: NUMA node that it is bound to; null where it is not.
        device_uuids: accelerators that it runs on.
        key_space: ``contracts.key_space`` of its KV; null where it holds none. Instances of one key space
            can share KV.
        labels: the operator's own.
        cost_per_hour: price of running it, in the operator's currency; null where unknown.
        versions: engine and libraries with their versions.
    """

    instance_id: str = field(validator=Text(min_length=1))
    generation: int = field(validator=Integer(ge=0))
    model_ids: tuple[str, ...] = field(converter=as_tuple, validator=Each(Text(min_length=1), unique=True))
    capability: CapabilityDescriptor = field(validator=Instance(CapabilityDescriptor))
    adapters: tuple[str, ...] = field(
        default=(), converter=as_tuple, validator=Each(Text(min_length=1), unique=True)
    )
    addresses: tuple[str, ...] = field(
        default=(), converter=as_tuple, validator=Each(Text(pattern="[a-z][a-z0-9+.-]*:.*", hint="a URI"))
    )
    host: str = field(default="", validator=Text())
    numa_node: int | None = field(default=None, validator=optional(Integer(ge=0)))
    device_uuids: tuple[str, ...] = field(default=(), converter=as_tuple, validator=Each(Text(min_length=1)))
    key_space: str | None = field(
        default=None, validator=optional(Text(pattern="[0-9a-f]+", hint="hex digits"))
    )
    labels: Mapping[str, str] = field(factory=dict, validator=Entries(Text()))
    cost_per_hour: float | None = field(default=None, validator=optional(Number(ge=0)))
    versions: Mapping[str, str] = field(factory=dict, validator=Entries(Text()))


@schema("1.0")
@frozen(kw_only=True)
class InstanceReport:
    """An instance's load at one moment.

    Attributes:
        instance_id: of the instance's descriptor.
        generation: of the instance's descriptor.
        seq: grows by one with each report of a generation.
        taken_at: seconds on the instance's monotonic clock.
        state: starting, ready, degraded, draining, sleeping or dead.
        running: sequences in the current batch.
        waiting: accepted requests that have not begun.
        waiting_prompt_tokens: prompt tokens of those requests, and what is left of prompts that are being
            computed.
        running_context_tokens: tokens whose KV the current batch holds.
        oldest_wait_s: seconds that the longest waiting request has waited; 0 where none waits.
        steps: engine steps since the start; a busy instance whose steps do not grow is stuck.
        step_s: duration of a recent step in seconds; null before the first.
        kv_blocks_total: KV blocks that the instance has.
        kv_blocks_free: KV blocks that a new request could take, cached ones included.
        kv_blocks_cached: free blocks that still hold a prefix.
        finished: requests that have ended, cancelled ones included.
        prompt_tokens: prompt tokens computed.
        output_tokens: tokens generated.
        prefix_hit_tokens: prompt tokens taken from a prefix cache.
        extensions: what only this engine reports.
    """

    instance_id: str = field(validator=Text(min_length=1))
    generation: int = field(validator=Integer(ge=0))
    seq: int = field(validator=Integer(ge=0))
    taken_at: float = field(validator=Number(ge=0))
    state: InstanceState = field(validator=Choice(get_args(InstanceState)))
    running: int = field(validator=Integer(ge=0))
    waiting: int = field(validator=Integer(ge=0))
    waiting_prompt_tokens: int = field(default=0, validator=Integer(ge=0))
    running_context_tokens: int = field(default=0, validator=Integer(ge=0))
    oldest_wait_s: float = field(default=0.0, validator=Number(ge=0))
    steps: int = field(default=0, validator=Integer(ge=0))
    step_s: float | None = field(default=None, validator=optional(Number(ge=0)))
    kv_blocks_total: int = field(default=0, validator=Integer(ge=0))
    kv_blocks_free: int = field(default=0, validator=Integer(ge=0))
    kv_blocks_cached: int = field(default=0, validator=Integer(ge=0))
    finished: int = field(default=0, validator=Integer(ge=0))
    prompt_tokens: int = field(default=0, validator=Integer(ge=0))
    output_tokens: int = field(default=0, validator=Integer(ge=0))
    prefix_hit_tokens: int = field(default=0, validator=Integer(ge=0))
    extensions: Mapping[str, float] = field(factory=dict, validator=Entries(Number()))

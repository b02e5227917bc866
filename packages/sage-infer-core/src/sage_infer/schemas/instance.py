"""Identity and load of backend instances, as seen by routers."""

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
    """Identity of one running instance. It does not change during the instance's lifetime.

    Attributes:
        instance_id: name of the instance; stays the same after a restart.
        generation: start time in nanoseconds since the epoch; of two instances with the same id, the one with
            the larger generation is current.
        model_ids: models that the instance serves.
        capability: capability of the instance.
        adapters: loaded LoRA adapters.
        addresses: URIs of the instance: ``inproc:``, ``unix:…``, ``http://…``.
        host: name of its machine.
        numa_node: NUMA node that the instance is bound to; null if it is not bound.
        device_uuids: accelerators that the instance runs on.
        key_space: ``contracts.key_space`` of its KV; null if it has no KV. Instances with the same key space
            can share KV.
        labels: labels set by the operator.
        cost_per_hour: cost of running the instance, in the operator's currency; null if unknown.
        versions: versions of the engine and its libraries.
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
    """Load of an instance at one moment.

    Attributes:
        instance_id: id from the instance's descriptor.
        generation: generation from the instance's descriptor.
        seq: sequence number, incremented with each report of a generation.
        taken_at: time of the report in seconds, on the instance's monotonic clock.
        state: starting, ready, degraded, draining, sleeping or dead.
        running: number of sequences in the current batch.
        waiting: number of accepted requests that have not started.
        waiting_prompt_tokens: prompt tokens of waiting requests, plus the tokens still to compute of prompts in
            prefill.
        running_context_tokens: tokens whose KV the current batch holds.
        oldest_wait_s: waiting time of the oldest waiting request in seconds; 0 if none waits.
        steps: engine steps since the start; if an instance is busy and this number does not grow, it is stuck.
        step_s: duration of a recent step in seconds; null before the first step.
        kv_blocks_total: total number of KV blocks.
        kv_blocks_free: KV blocks available to a new request, including cached ones.
        kv_blocks_cached: free KV blocks that still hold a cached prefix; null if the engine does not report them.
        finished: number of requests that have ended, including cancelled ones.
        prompt_tokens: number of prompt tokens computed.
        output_tokens: number of tokens generated.
        prefix_hit_tokens: number of prompt tokens found in a prefix cache.
        extensions: engine-specific metrics.
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
    kv_blocks_cached: int | None = field(default=0, validator=optional(Integer(ge=0)))
    finished: int = field(default=0, validator=Integer(ge=0))
    prompt_tokens: int = field(default=0, validator=Integer(ge=0))
    output_tokens: int = field(default=0, validator=Integer(ge=0))
    prefix_hit_tokens: int = field(default=0, validator=Integer(ge=0))
    extensions: Mapping[str, float] = field(factory=dict, validator=Entries(Number()))

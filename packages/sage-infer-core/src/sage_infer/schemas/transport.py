"""Transfer plans for KV, their reports, and the settings and presets of transports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from attrs import field, frozen

from sage_infer.checks import Choice, Each, Flag, Instance, Integer, Number, Text, as_tuple, optional
from sage_infer.errors import CapabilityMismatch, Problem, SchemaError
from sage_infer.schemas.base import schema
from sage_infer.schemas.kv_chunk import KVChunk, KVLocation

__all__ = ["TRANSPORT_PRESETS", "TransportPlan", "TransportReport", "TransportSettings", "TransportStep"]

Objective = Literal["bandwidth", "latency", "cost"]
StepStatus = Literal["done", "failed", "skipped"]


@schema("1.0")
@frozen(kw_only=True)
class TransportStep:
    """Transfer of one chunk between two locations.

    Attributes:
        chunk: chunk to transfer.
        source: current location of the chunk.
        target: destination.
        link: name of the link to use; null lets the transport choose.
        nbytes: bytes sent (the chunk's size, unless it is compressed for the transfer).
        priority: steps with smaller numbers start first.
        deadline_s: deadline in seconds after the start of the plan; null means no deadline.
    """

    chunk: KVChunk = field(validator=Instance(KVChunk))
    source: KVLocation = field(validator=Instance(KVLocation))
    target: KVLocation = field(validator=Instance(KVLocation))
    link: str | None = field(default=None, validator=optional(Text(min_length=1)))
    nbytes: int = field(validator=Integer(ge=0))
    priority: int = field(default=0, validator=Integer())
    deadline_s: float | None = field(default=None, validator=optional(Number(gt=0)))


@schema("1.0")
@frozen(kw_only=True)
class TransportPlan:
    """A set of transfer steps. A transport starts them in order of priority and may run them concurrently.

    Attributes:
        plan_id: name for logs and reports.
        steps: transfers to execute.
        total_bytes: sum of the steps' nbytes.
        estimated_time_s: estimated duration in seconds; null if no link is known.
    """

    plan_id: str = field(validator=Text(min_length=1))
    steps: tuple[TransportStep, ...] = field(
        default=(), converter=as_tuple, validator=Each(Instance(TransportStep))
    )
    total_bytes: int = field(validator=Integer(ge=0))
    estimated_time_s: float | None = field(default=None, validator=optional(Number(ge=0)))

    def __attrs_post_init__(self) -> None:
        total = sum(step.nbytes for step in self.steps)
        if total != self.total_bytes:
            message = f"must be the sum of the steps' nbytes ({total}), got {self.total_bytes}"
            raise SchemaError("TransportPlan", [Problem("$.total_bytes", message)])

    @classmethod
    def from_steps(
        cls, plan_id: str, steps: tuple[TransportStep, ...], *, estimated_time_s: float | None = None
    ) -> TransportPlan:
        total = sum(step.nbytes for step in steps)
        return cls(plan_id=plan_id, steps=steps, total_bytes=total, estimated_time_s=estimated_time_s)


@schema("1.0")
@frozen(kw_only=True)
class TransportReport:
    """Result of a plan, per step.

    Attributes:
        plan_id: name of the plan.
        statuses: done, failed or skipped, one per step in the plan's order.
        errors: one message per failed step, in the same order.
        moved_bytes: number of bytes transferred and verified.
        elapsed_s: duration of the plan in seconds.
        step_seconds: duration of each step in seconds, in the plan's order; empty if the transport does not
            measure it.
        retries: number of retries over all steps.
    """

    plan_id: str = field(validator=Text(min_length=1))
    statuses: tuple[StepStatus, ...] = field(converter=as_tuple, validator=Each(Choice(get_args(StepStatus))))
    errors: tuple[str, ...] = field(default=(), converter=as_tuple, validator=Each(Text()))
    moved_bytes: int = field(validator=Integer(ge=0))
    elapsed_s: float = field(validator=Number(ge=0))
    step_seconds: tuple[float, ...] = field(default=(), converter=as_tuple, validator=Each(Number(ge=0)))
    retries: int = field(default=0, validator=Integer(ge=0))

    @property
    def ok(self) -> bool:
        return all(status == "done" for status in self.statuses)


@schema("1.0")
@frozen(kw_only=True)
class TransportSettings:
    """Settings of a transport.

    Attributes:
        objective: optimization target: bandwidth, latency or cost.
        chunk_bytes: size of one message in bytes.
        max_in_flight: maximum number of messages in flight.
        compress: whether data may be compressed for the transfer.
        overlap_compute: whether to send a layer while the next one is computed.
    """

    objective: Objective = field(default="bandwidth", validator=Choice(get_args(Objective)))
    chunk_bytes: int = field(default=8 << 20, validator=Integer(ge=4096))
    max_in_flight: int = field(default=8, validator=Integer(ge=1))
    compress: bool = field(default=False, validator=Flag())
    overlap_compute: bool = field(default=True, validator=Flag())

    @classmethod
    def from_preset(cls, preset: str, **overrides: Any) -> TransportSettings:
        """Build settings from the preset ``high-bw``, ``low-latency`` or ``low-cost``.

        ``overrides`` replace values of the preset.

        Raises:
            CapabilityMismatch: the preset does not exist.
        """
        if preset not in TRANSPORT_PRESETS:
            raise CapabilityMismatch(
                f"no transport preset {preset!r}; choose one of {', '.join(TRANSPORT_PRESETS)}"
            )
        return cls(**{**TRANSPORT_PRESETS[preset], **overrides})


TRANSPORT_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "high-bw": {"objective": "bandwidth", "chunk_bytes": 32 << 20, "max_in_flight": 16},
    "low-latency": {"objective": "latency", "chunk_bytes": 1 << 20, "max_in_flight": 4},
    "low-cost": {
        "objective": "cost",
        "chunk_bytes": 8 << 20,
        "max_in_flight": 2,
        "compress": True,
        "overlap_compute": False,
    },
}

"""Plans that say which KV goes where, and the presets that shape them."""

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
    """One chunk from one place to another.

    Attributes:
        chunk: what moves.
        source: where it is.
        target: where it goes.
        link: name of the link to use; null lets the transport choose.
        nbytes: bytes on the wire (the chunk's own size, unless it is compressed on the way).
        priority: smaller goes first.
        deadline_s: seconds after the plan starts by which it is of use; null means whenever.
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
    """Steps that belong together. A transport may overlap them; it starts them by priority.

    Attributes:
        plan_id: name for logs and reports.
        steps: what to move.
        total_bytes: sum of the steps' nbytes.
        estimated_time_s: expected duration in seconds; null where no link is known.
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
    """What became of a plan, step by step.

    Attributes:
        plan_id: the plan.
        statuses: done, failed or skipped, one for each step in the plan's order.
        errors: one message per failed step, in the same order.
        moved_bytes: bytes that arrived and were verified.
        elapsed_s: seconds from start to end.
        step_seconds: seconds that each step took, in the plan's order; empty where the transport does not
            measure them.
        retries: how often a step was tried again.
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
    """How a transport should weigh what it does.

    Attributes:
        objective: bandwidth, latency or cost.
        chunk_bytes: size of one message in bytes.
        max_in_flight: messages under way at once.
        compress: whether bytes may be compressed on the way.
        overlap_compute: whether to send a layer while the next one is computed.
    """

    objective: Objective = field(default="bandwidth", validator=Choice(get_args(Objective)))
    chunk_bytes: int = field(default=8 << 20, validator=Integer(ge=4096))
    max_in_flight: int = field(default=8, validator=Integer(ge=1))
    compress: bool = field(default=False, validator=Flag())
    overlap_compute: bool = field(default=True, validator=Flag())

    @classmethod
    def from_preset(cls, preset: str, **overrides: Any) -> TransportSettings:
        """``high-bw``, ``low-latency`` or ``low-cost``; ``overrides`` win.

        Raises:
            CapabilityMismatch: there is no preset of that name.
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

"""What a machine has and how it is wired. Static facts only; a figure that is not known is null, never 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from attrs import field, frozen

from sage_infer.checks import Choice, Each, Entries, Instance, Integer, Json, Number, Text, as_tuple, optional
from sage_infer.errors import Problem, SchemaError
from sage_infer.names import Precision, hardware_name, precision
from sage_infer.schemas.base import schema

__all__ = ["AcceleratorDescriptor", "Figure", "HardwareProfile", "LinkProfile", "MemoryTierSpec"]

LinkKind = Literal[
    "pcie", "nvlink", "hccs", "sio", "mlu-link", "xgmi", "xpu-link", "numa", "network", "other"
]
TierKind = Literal["hbm", "dram", "ssd", "remote"]
Confidence = Literal["high", "medium", "low"]


@schema("1.0")
@frozen(kw_only=True)
class Figure:
    """A number with its source.

    Attributes:
        value: the number, in the unit that the field holding it names.
        source: the tool, table or measurement that it comes from.
        confidence: how far to trust it: high, medium or low.
    """

    value: float = field(validator=Number(ge=0))
    source: str = field(validator=Text(min_length=1))
    confidence: Confidence = field(default="high", validator=Choice(get_args(Confidence)))


_FIGURE = optional(Instance(Figure))


@schema("1.0")
@frozen(kw_only=True)
class AcceleratorDescriptor:
    """One device that runs models.

    Attributes:
        hardware_backend: cuda, ascend, … or a plug-in's own name.
        vendor: maker, such as NVIDIA.
        model: product name as the vendor's tool prints it.
        index: the number that addresses it on this machine.
        uuid: the vendor's unique id; null where the tool shows none.
        pci_address: ``domain:bus:device.function`` in lower-case hex; null where unknown.
        numa_node: nearest NUMA node; null where unknown.
        memory_bytes: device memory; null where unknown.
        compute_capability: the vendor's architecture version, such as 9.0; null where it has none.
        supported_precisions: precisions that its arithmetic units support.
        peak_tflops: dense peak rate in TFLOP/s (TOP/s for integers) by precision.
        memory_bandwidth_gbs: peak device memory bandwidth in GB/s.
    """

    hardware_backend: str = field(validator=hardware_name())
    vendor: str = field(validator=Text(min_length=1))
    model: str = field(validator=Text(min_length=1))
    index: int = field(validator=Integer(ge=0))
    uuid: str | None = field(default=None, validator=optional(Text(min_length=1)))
    pci_address: str | None = field(
        default=None,
        validator=optional(
            Text(
                pattern=r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]",
                hint="an address such as 0000:3b:00.0",
            )
        ),
    )
    numa_node: int | None = field(default=None, validator=optional(Integer(ge=0)))
    memory_bytes: int | None = field(default=None, validator=optional(Integer(ge=1)))
    compute_capability: str | None = field(default=None, validator=optional(Text(min_length=1)))
    supported_precisions: tuple[Precision, ...] = field(
        default=(), converter=as_tuple, validator=Each(precision(), unique=True)
    )
    peak_tflops: Mapping[str, Figure] = field(factory=dict, validator=Entries(Instance(Figure)))
    memory_bandwidth_gbs: Figure | None = field(default=None, validator=_FIGURE)


@schema("1.0")
@frozen(kw_only=True)
class LinkProfile:
    """One direction of a link between two endpoints.

    Attributes:
        source: endpoint such as ``cuda:0``, ``numa:1`` or ``host``.
        target: endpoint that bytes go to.
        kind: pcie, nvlink, hccs, sio, mlu-link, xgmi, xpu-link, numa, network or other.
        vendor_code: the code that the vendor's tool prints, such as NV12 or PHB.
        hops: switches and bridges between the endpoints; null where unknown.
        nominal_gbs: data-sheet bandwidth in GB/s, this direction.
        measured_gbs: measured bandwidth in GB/s, this direction.
        latency_us: one-way latency in microseconds.
        extensions: settings that only a transport plug-in understands, under its own name.
    """

    source: str = field(validator=Text(min_length=1))
    target: str = field(validator=Text(min_length=1))
    kind: LinkKind = field(validator=Choice(get_args(LinkKind)))
    vendor_code: str | None = field(default=None, validator=optional(Text(min_length=1)))
    hops: int | None = field(default=None, validator=optional(Integer(ge=0)))
    nominal_gbs: Figure | None = field(default=None, validator=_FIGURE)
    measured_gbs: Figure | None = field(default=None, validator=_FIGURE)
    latency_us: Figure | None = field(default=None, validator=_FIGURE)
    extensions: Mapping[str, Any] = field(factory=dict, validator=Entries(Json()))


@schema("1.0")
@frozen(kw_only=True)
class MemoryTierSpec:
    """One kind of memory that KV can live in.

    Attributes:
        tier: hbm, dram, ssd or remote.
        name: which one, such as ``cuda:0``, ``numa:0`` or ``/mnt/nvme0``.
        capacity_bytes: how much of it there is; null where unknown.
        usable_bytes: how much this process may use (cgroup, quota); null where unknown.
        nominal_gbs: data-sheet read bandwidth in GB/s.
        measured_read_gbs: measured sequential read bandwidth in GB/s.
        measured_write_gbs: measured sequential write bandwidth in GB/s.
        latency_us: access latency in microseconds.
    """

    tier: TierKind = field(validator=Choice(get_args(TierKind)))
    name: str = field(validator=Text(min_length=1))
    capacity_bytes: int | None = field(default=None, validator=optional(Integer(ge=1)))
    usable_bytes: int | None = field(default=None, validator=optional(Integer(ge=0)))
    nominal_gbs: Figure | None = field(default=None, validator=_FIGURE)
    measured_read_gbs: Figure | None = field(default=None, validator=_FIGURE)
    measured_write_gbs: Figure | None = field(default=None, validator=_FIGURE)
    latency_us: Figure | None = field(default=None, validator=_FIGURE)


@schema("1.0")
@frozen(kw_only=True)
class HardwareProfile:
    """One machine, or what one detector sees of it.

    Attributes:
        accelerators: devices, ordered by backend and index.
        links: directed links; where the vendor's table is asymmetric both directions are kept as they are.
        memory_tiers: memory that KV can live in.
        sources: tools and versions that were asked.
        notes: what a person should know, such as a link table that contradicts itself.
    """

    accelerators: tuple[AcceleratorDescriptor, ...] = field(
        default=(), converter=as_tuple, validator=Each(Instance(AcceleratorDescriptor))
    )
    links: tuple[LinkProfile, ...] = field(
        default=(), converter=as_tuple, validator=Each(Instance(LinkProfile))
    )
    memory_tiers: tuple[MemoryTierSpec, ...] = field(
        default=(), converter=as_tuple, validator=Each(Instance(MemoryTierSpec))
    )
    sources: tuple[str, ...] = field(default=(), converter=as_tuple, validator=Each(Text(min_length=1)))
    notes: tuple[str, ...] = field(default=(), converter=as_tuple, validator=Each(Text(min_length=1)))

    def __attrs_post_init__(self) -> None:
        seen = [(a.hardware_backend, a.index) for a in self.accelerators]
        twice = sorted({f"{name}:{index}" for name, index in seen if seen.count((name, index)) > 1})
        if twice:
            message = f"lists {', '.join(twice)} more than once"
            raise SchemaError("HardwareProfile", [Problem("$.accelerators", message)])

"""What a machine has and how it is wired. Static facts only; a figure that is not known is null, never 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from attrs import field, frozen

from sage_infer.checks import Choice, Each, Entries, Instance, Integer, Json, Number, Text, as_tuple, optional
from sage_infer.errors import Problem, SchemaError
from sage_infer.names import Precision, hardware_name, precision
from sage_infer.schemas.base import schema
from sage_infer.schemas.host import CPU_LIST, CpuDescriptor, NumaNode

__all__ = [
    "UNKNOWN_MODEL",
    "AcceleratorDescriptor",
    "AcceleratorPartition",
    "Figure",
    "HardwareProfile",
    "LinkProfile",
    "MemoryTierSpec",
]

UNKNOWN_MODEL = "unknown"
"""``AcceleratorDescriptor.model`` of a device of which only its place is known, as from a link table."""

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
class AcceleratorPartition:
    """A part of a device with memory and compute of its own, such as a MIG instance.

    Attributes:
        index: its number on the device.
        profile: the vendor's name of its size, such as 1g.10gb; null where unknown.
        uuid: what addresses it; null where the tool shows none.
        memory_bytes: its memory; null where unknown.
        compute_units: its streaming multiprocessors, cores or the like; null where unknown.
    """

    index: int = field(validator=Integer(ge=0))
    profile: str | None = field(default=None, validator=optional(Text(min_length=1)))
    uuid: str | None = field(default=None, validator=optional(Text(min_length=1)))
    memory_bytes: int | None = field(default=None, validator=optional(Integer(ge=1)))
    compute_units: int | None = field(default=None, validator=optional(Integer(ge=1)))


@schema("1.1")
@frozen(kw_only=True)
class AcceleratorDescriptor:
    """One device that runs models.

    Attributes:
        hardware_backend: cuda, ascend, … or a plug-in's own name.
        vendor: maker, such as NVIDIA.
        model: product name as the vendor's tool prints it; ``unknown`` where a recording has none.
        index: the number that addresses it on this machine.
        uuid: the vendor's unique id; null where the tool shows none.
        pci_address: ``domain:bus:device.function`` in lower-case hex; null where unknown.
        numa_node: nearest NUMA node; null where unknown.
        memory_bytes: device memory; null where unknown.
        compute_capability: the vendor's architecture version, such as 9.0; null where it has none.
        supported_precisions: precisions that its arithmetic units support.
        peak_tflops: dense peak rate in TFLOP/s (TOP/s for integers) by precision.
        memory_bandwidth_gbs: peak device memory bandwidth in GB/s.
        board: name of the board, equal for devices that share one, and never its serial number; null where unknown.
        cpu_affinity: logical CPUs nearest to it, as a list such as 0-23,48-71; null where unknown.
        partitions: parts that the device is divided into, each addressed by itself; empty where it is whole.
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
    board: str | None = field(default=None, validator=optional(Text(min_length=1)))
    cpu_affinity: str | None = field(default=None, validator=optional(CPU_LIST))
    partitions: tuple[AcceleratorPartition, ...] = field(
        default=(), converter=as_tuple, validator=Each(Instance(AcceleratorPartition))
    )


@schema("1.1")
@frozen(kw_only=True)
class LinkProfile:
    """One direction of a link between two endpoints.

    Attributes:
        source: endpoint such as ``cuda:0``, ``numa:1``, ``nic:mlx5_0`` or ``host``; ``pci:ADDRESS`` for a device
            of which only its address is known.
        target: endpoint that bytes go to.
        kind: pcie, nvlink, hccs, sio, mlu-link, xgmi, xpu-link, numa, network or other.
        vendor_code: the code that the vendor's tool prints, such as NV12 or PHB.
        hops: switches and bridges between the endpoints; null where unknown.
        nominal_gbs: data-sheet bandwidth in GB/s, this direction.
        measured_gbs: measured bandwidth in GB/s, this direction.
        latency_us: one-way latency in microseconds.
        extensions: settings that only a transport plug-in understands, under its own name.
        distance: relative cost of NUMA access as the firmware states it, where 10 is a node's own memory.
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
    distance: int | None = field(default=None, validator=optional(Integer(ge=1)))


@schema("1.1")
@frozen(kw_only=True)
class MemoryTierSpec:
    """One kind of memory that KV can live in.

    Attributes:
        tier: hbm, dram, ssd or remote.
        name: which one, such as ``cuda:0``, ``host`` or ``/mnt/nvme0``.
        capacity_bytes: how much of it there is; null where unknown.
        usable_bytes: how much this process may use (cgroup, quota); null where unknown.
        nominal_gbs: data-sheet read bandwidth in GB/s.
        measured_read_gbs: measured sequential read bandwidth in GB/s.
        measured_write_gbs: measured sequential write bandwidth in GB/s.
        latency_us: access latency in microseconds.
        device: block device or URI that holds it, such as nvme0n1; null where unknown.
        filesystem: file system type, such as ext4; null for a tier that is none.
        measured_copy_gbs: measured copy inside it in GB/s, bytes read plus bytes written as STREAM counts them.
        measured_random_read_iops: measured random reads of 4 KiB a second.
        measured_random_write_iops: measured random writes of 4 KiB a second.
    """

    tier: TierKind = field(validator=Choice(get_args(TierKind)))
    name: str = field(validator=Text(min_length=1))
    capacity_bytes: int | None = field(default=None, validator=optional(Integer(ge=1)))
    usable_bytes: int | None = field(default=None, validator=optional(Integer(ge=0)))
    nominal_gbs: Figure | None = field(default=None, validator=_FIGURE)
    measured_read_gbs: Figure | None = field(default=None, validator=_FIGURE)
    measured_write_gbs: Figure | None = field(default=None, validator=_FIGURE)
    latency_us: Figure | None = field(default=None, validator=_FIGURE)
    device: str | None = field(default=None, validator=optional(Text(min_length=1)))
    filesystem: str | None = field(default=None, validator=optional(Text(min_length=1)))
    measured_copy_gbs: Figure | None = field(default=None, validator=_FIGURE)
    measured_random_read_iops: Figure | None = field(default=None, validator=_FIGURE)
    measured_random_write_iops: Figure | None = field(default=None, validator=_FIGURE)


@schema("1.1")
@frozen(kw_only=True)
class HardwareProfile:
    """One machine, or what one detector sees of it.

    Attributes:
        accelerators: devices, ordered by backend and index.
        links: directed links; where the vendor's table is asymmetric both directions are kept as they are.
        memory_tiers: memory that KV can live in.
        sources: tools and versions that were asked.
        notes: what a person should know, such as a link table that contradicts itself.
        cpus: processors, one entry a model.
        numa_nodes: NUMA nodes by index; empty where they are not known.
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
    cpus: tuple[CpuDescriptor, ...] = field(
        default=(), converter=as_tuple, validator=Each(Instance(CpuDescriptor))
    )
    numa_nodes: tuple[NumaNode, ...] = field(
        default=(), converter=as_tuple, validator=Each(Instance(NumaNode))
    )

    def __attrs_post_init__(self) -> None:
        seen = [(a.hardware_backend, a.index) for a in self.accelerators]
        twice = sorted({f"{name}:{index}" for name, index in seen if seen.count((name, index)) > 1})
        if twice:
            message = f"lists {', '.join(twice)} more than once"
            raise SchemaError("HardwareProfile", [Problem("$.accelerators", message)])

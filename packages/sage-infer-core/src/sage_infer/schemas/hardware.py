"""Hardware of a machine and its topology. Static facts only; an unknown figure is null, never 0."""

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
"""``AcceleratorDescriptor.model`` of a device whose product name is unknown, for example one from a link table."""

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
        value: the number, in the unit of the containing field.
        source: the tool, table or measurement that the number comes from.
        confidence: reliability of the number: high, medium or low.
    """

    value: float = field(validator=Number(ge=0))
    source: str = field(validator=Text(min_length=1))
    confidence: Confidence = field(default="high", validator=Choice(get_args(Confidence)))


_FIGURE = optional(Instance(Figure))


@schema("1.0")
@frozen(kw_only=True)
class AcceleratorPartition:
    """A part of a device with its own memory and compute units, such as a MIG instance.

    Attributes:
        index: number of the partition on its device.
        profile: the vendor's name for the partition size, such as 1g.10gb; null if unknown.
        uuid: the vendor's unique id; null if the tool does not print it.
        memory_bytes: memory in bytes; null if unknown.
        compute_units: number of streaming multiprocessors, cores or similar units; null if unknown.
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
        hardware_backend: cuda, ascend, … or a name defined by a plug-in.
        vendor: manufacturer, such as NVIDIA.
        model: product name as the vendor's tool prints it; ``unknown`` if a recording has none.
        index: device number on this machine.
        uuid: the vendor's unique id; null if the tool does not print it.
        pci_address: ``domain:bus:device.function`` in lower-case hex; null if unknown.
        numa_node: nearest NUMA node; null if unknown.
        memory_bytes: device memory in bytes; null if unknown.
        compute_capability: the vendor's architecture version, such as 9.0; null if it has none.
        supported_precisions: precisions that its arithmetic units support.
        peak_tflops: dense peak rate in TFLOP/s (TOP/s for integers) by precision.
        memory_bandwidth_gbs: peak device memory bandwidth in GB/s.
        board: name of the board, equal for devices on the same board; never a serial number; null if unknown.
        cpu_affinity: logical CPUs nearest to the device, as a list such as 0-23,48-71; null if unknown.
        partitions: separately addressable parts of the device; empty if it is not partitioned.
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
        source: sending endpoint, such as ``cuda:0``, ``numa:1``, ``nic:mlx5_0`` or ``host``; ``pci:ADDRESS`` if
            only the device's address is known.
        target: receiving endpoint.
        kind: pcie, nvlink, hccs, sio, mlu-link, xgmi, xpu-link, numa, network or other.
        vendor_code: the code that the vendor's tool prints, such as NV12 or PHB.
        hops: number of switches and bridges between the endpoints; null if unknown.
        nominal_gbs: data-sheet bandwidth in GB/s, in this direction.
        measured_gbs: measured bandwidth in GB/s, in this direction.
        latency_us: one-way latency in microseconds.
        extensions: settings of a transport plug-in, under the plug-in's name.
        distance: relative cost of NUMA access as reported by the firmware; 10 is a node's own memory.
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
    """One memory tier that can store KV.

    Attributes:
        tier: hbm, dram, ssd or remote.
        name: name of the memory, such as ``cuda:0``, ``host`` or ``/mnt/nvme0``.
        capacity_bytes: total size in bytes; null if unknown.
        usable_bytes: bytes that this process may use (cgroup, quota); null if unknown.
        nominal_gbs: data-sheet read bandwidth in GB/s.
        measured_read_gbs: measured sequential read bandwidth in GB/s.
        measured_write_gbs: measured sequential write bandwidth in GB/s.
        latency_us: access latency in microseconds.
        device: underlying block device or URI, such as nvme0n1; null if unknown.
        filesystem: file system type, such as ext4; null if the tier is not a file system.
        measured_copy_gbs: measured copy bandwidth in GB/s; bytes read and bytes written both count, as in STREAM.
        measured_random_read_iops: measured random 4 KiB reads per second.
        measured_random_write_iops: measured random 4 KiB writes per second.
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
    """Hardware of one machine, or the part of it that one detector reports.

    Attributes:
        accelerators: devices, ordered by backend and index.
        links: directed links; both directions are kept unchanged, even if the vendor's table is asymmetric.
        memory_tiers: memory tiers that can store KV.
        sources: names and versions of the tools that were queried.
        notes: remarks for the user, for example that a link table contradicts itself.
        cpus: processors, one entry per model.
        numa_nodes: NUMA nodes by index; empty if unknown.
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

"""Processors and NUMA nodes of a machine, and the part of them that this process may use."""

from __future__ import annotations

from attrs import field, frozen

from sage_infer.checks import Each, Integer, Number, Text, as_tuple, optional
from sage_infer.schemas.base import schema

__all__ = ["CPU_LIST", "CpuDescriptor", "NumaNode"]

CPU_LIST = Text(
    pattern=r"[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*", hint="a list of CPU numbers such as 0-15,32-47"
)


@schema("1.0")
@frozen(kw_only=True)
class CpuDescriptor:
    """All processors of one model in a machine. A process in a container may be limited to some of them.

    Attributes:
        vendor: manufacturer as reported by the processor, such as GenuineIntel.
        model: model name as reported by the processor; ``unknown`` if it reports none.
        architecture: instruction set, such as x86_64 or aarch64.
        isa: extensions that matter for inference, by the kernel's names, such as avx512_bf16 or sve; sorted.
        sockets: number of packages; null if unknown.
        cores: number of physical cores; null if unknown.
        threads: number of online logical CPUs; null if unknown.
        usable_threads: number of logical CPUs that this process may run on (affinity, cpuset); null if unknown.
        quota_cpus: CPU quota of the control group in CPUs, such as 1.5; null if there is no limit.
    """

    vendor: str = field(validator=Text(min_length=1))
    model: str = field(validator=Text(min_length=1))
    architecture: str = field(validator=Text(min_length=1))
    isa: tuple[str, ...] = field(
        default=(), converter=as_tuple, validator=Each(Text(min_length=1), unique=True)
    )
    sockets: int | None = field(default=None, validator=optional(Integer(ge=1)))
    cores: int | None = field(default=None, validator=optional(Integer(ge=1)))
    threads: int | None = field(default=None, validator=optional(Integer(ge=1)))
    usable_threads: int | None = field(default=None, validator=optional(Integer(ge=1)))
    quota_cpus: float | None = field(default=None, validator=optional(Number(gt=0)))


@schema("1.0")
@frozen(kw_only=True)
class NumaNode:
    """One NUMA node; distances between nodes are links of kind ``numa``.

    Attributes:
        index: number of the node; ``numa:index`` is its endpoint name in links.
        cpus: logical CPUs of the node, as a list such as 0-15,32-47; null if none or unknown.
        usable_cpus: logical CPUs of the node that this process may run on; null if none or unknown.
        memory_bytes: memory of the node in bytes; null if none or unknown.
    """

    index: int = field(validator=Integer(ge=0))
    cpus: str | None = field(default=None, validator=optional(CPU_LIST))
    usable_cpus: str | None = field(default=None, validator=optional(CPU_LIST))
    memory_bytes: int | None = field(default=None, validator=optional(Integer(ge=1)))

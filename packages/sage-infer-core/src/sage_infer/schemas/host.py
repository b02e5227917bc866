"""The processors and NUMA nodes of a machine: what it has, and beside it what this process may use."""

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
    """The processors of one model in a machine. A process in a container may use fewer than there are.

    Attributes:
        vendor: maker, such as GenuineIntel, as the processor says it.
        model: model name as the processor says it; ``unknown`` where it says none.
        architecture: instruction set, such as x86_64 or aarch64.
        isa: extensions that matter for inference, by the kernel's names, such as avx512_bf16 or sve; sorted.
        sockets: packages; null where unknown.
        cores: physical cores of the machine; null where unknown.
        threads: logical CPUs of the machine that are online; null where unknown.
        usable_threads: logical CPUs that this process may run on (affinity, cpuset); null where unknown.
        quota_cpus: CPUs' worth of time that a control group grants, such as 1.5; null where it sets no limit.
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
        index: the node's number; ``numa:index`` is its name as an endpoint.
        cpus: its logical CPUs, as a list such as 0-15,32-47; null where it has none or they are not known.
        usable_cpus: those that this process may run on; null where there are none or they are not known.
        memory_bytes: its memory; null where it has none or it is not known.
    """

    index: int = field(validator=Integer(ge=0))
    cpus: str | None = field(default=None, validator=optional(CPU_LIST))
    usable_cpus: str | None = field(default=None, validator=optional(CPU_LIST))
    memory_bytes: int | None = field(default=None, validator=optional(Integer(ge=1)))

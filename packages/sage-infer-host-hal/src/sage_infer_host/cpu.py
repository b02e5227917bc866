"""Processors, from /proc/cpuinfo and the topology in /sys."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from attrs import frozen
from sage_infer.schemas import CpuDescriptor
from sage_infer.schemas.hardware import UNKNOWN_MODEL
from sage_infer.system.files import cpus_in, number_in, text_in

__all__ = ["CpuInfo", "describe_cpus", "parse_cpuinfo"]

# x86: the flags of arch/x86/include/asm/cpufeatures.h; arm64: Documentation/arch/arm64/elf_hwcaps.rst.
_ISA = frozenset({
    "avx", "avx2", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "avx_vnni", "avx_vnni_int8", "avx_ne_convert", "avx10", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16",
    "f16c", "fma", "sse4_2",
    "asimd", "asimdhp", "asimddp", "asimdfhm", "fphp", "bf16", "i8mm", "sve", "sve2",
    "svebf16", "svei8mm", "sme", "sme2",
    "lsx", "lasx", "altivec", "vsx",
})  # fmt: skip

# arm64 reports implementer and part as numbers only. By the field "Implementer" of the Main ID register in the Arm
# Architecture Reference Manual, and by the parts in arch/arm64/include/asm/cputype.h of Linux.
_ARM_MAKERS: Mapping[int, str] = {
    0x41: "ARM", 0x43: "Cavium", 0x46: "Fujitsu", 0x48: "HiSilicon", 0x4E: "NVIDIA", 0x50: "APM", 0x51: "Qualcomm",
    0x61: "Apple", 0x6D: "Microsoft", 0x70: "Phytium", 0xC0: "Ampere",
}  # fmt: skip
_ARM_PARTS: Mapping[tuple[int, int], str] = {
    (0x41, 0xD07): "Cortex-A57", (0x41, 0xD08): "Cortex-A72", (0x41, 0xD0B): "Cortex-A76", (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD40): "Neoverse-V1", (0x41, 0xD49): "Neoverse-N2", (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD83): "Neoverse-V3AE", (0x41, 0xD84): "Neoverse-V3", (0x41, 0xD8E): "Neoverse-N3", (0x46, 0x001): "A64FX",
    (0x48, 0xD01): "Kunpeng-920", (0x4E, 0x004): "Carmel", (0xC0, 0xAC3): "Ampere-1", (0xC0, 0xAC4): "Ampere-1a",
}  # fmt: skip


@frozen(kw_only=True)
class CpuInfo:
    """One processor model in /proc/cpuinfo: the numbers of its logical CPUs, and the socket and core of each."""

    vendor: str
    model: str
    isa: frozenset[str]
    cpus: frozenset[int]
    places: frozenset[tuple[str, str]]


def parse_cpuinfo(text: str) -> list[CpuInfo]:
    """The models in /proc/cpuinfo, in the order of their first CPU; empty if it lists no processor.

    On POWER, s390 and older arm kernels, shared fields appear once, before or after the list.
    """
    shared: dict[str, str] = {}
    processors: list[dict[str, str]] = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        fields = {
            key.strip().lower(): value.strip()
            for key, colon, value in (line.partition(":") for line in block.splitlines())
            if colon
        }
        if fields.get("processor", "").isdecimal():
            processors.append(fields)
        else:
            shared |= fields
    found: dict[tuple[str, str, frozenset[str]], list[dict[str, str]]] = {}
    for own in processors:
        fields = shared | own
        flags = fields.get("flags") or fields.get("features") or ""
        key = (*_name(fields), frozenset(flags.lower().split()) & _ISA)
        found.setdefault(key, []).append(own)
    return [
        CpuInfo(
            vendor=vendor,
            model=model,
            isa=isa,
            cpus=frozenset(int(own["processor"]) for own in members),
            places=frozenset(
                (own["physical id"], own["core id"])
                for own in members
                if own.get("physical id") and own.get("core id")
            ),
        )
        for (vendor, model, isa), members in found.items()
    ]


def _name(fields: Mapping[str, str]) -> tuple[str, str]:
    vendor = fields.get("vendor_id") or UNKNOWN_MODEL
    model = fields.get("model name") or fields.get("cpu model") or fields.get("cpu") or fields.get("uarch")
    if "cpu implementer" in fields:
        try:
            maker, part = int(fields["cpu implementer"], 0), int(fields.get("cpu part", ""), 0)
        except ValueError:
            return vendor, model or UNKNOWN_MODEL
        vendor = _ARM_MAKERS.get(maker, f"implementer {maker:#x}")
        model = _ARM_PARTS.get((maker, part)) or f"part {part:#x}"
    return vendor, model or UNKNOWN_MODEL


def describe_cpus(
    root: Path, architecture: str, usable: Collection[int], quota: float | None
) -> list[CpuDescriptor]:
    """The processors of the machine below ``root``; ``usable`` lists the CPUs that this process may run on."""
    folder = root / "sys/devices/system/cpu"
    online = cpus_in(text_in(folder / "online"))
    described = []
    for info in parse_cpuinfo(text_in(root / "proc/cpuinfo") or ""):
        cpus = info.cpus & online if online else info.cpus
        sockets, cores = _topology(folder, cpus)
        described.append(
            CpuDescriptor(
                vendor=info.vendor,
                model=info.model,
                architecture=architecture,
                isa=sorted(info.isa),
                sockets=sockets or len({socket for socket, _ in info.places}) or None,
                cores=cores or len(info.places) or None,
                threads=len(cpus) or None,
                usable_threads=len(cpus & frozenset(usable)) or None,
                quota_cpus=quota,
            )
        )
    return described


def _topology(folder: Path, cpus: Collection[int]) -> tuple[int, int]:
    """Number of sockets and of physical cores of these CPUs; 0 if the kernel does not report it."""
    sockets, cores = set(), set()
    for cpu in cpus:
        place = folder / f"cpu{cpu}" / "topology"
        socket = number_in(place / "physical_package_id")
        siblings = text_in(place / "core_cpus_list") or text_in(place / "thread_siblings_list")
        if siblings is None:
            return 0, 0
        cores.add(siblings)
        if socket is not None and socket >= 0:  # -1: not reported by the firmware
            sockets.add(socket)
    return len(sockets), len(cores)

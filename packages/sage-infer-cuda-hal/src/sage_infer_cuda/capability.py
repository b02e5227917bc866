"""Compute capabilities of chips, and the precisions of each capability."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sage_infer.names import Precision

__all__ = [
    "ID_RANGES", "PRECISIONS", "capability_of", "capability_of_id", "capability_of_name", "is_unified", "nvlink_gbs",
    "precisions_of",
]  # fmt: skip

ID_RANGES: tuple[tuple[int, int, str], ...] = (
    (0x15F0, 0x15FF, "6.0"),  # GP100
    (0x1B00, 0x1D7F, "6.1"),  # GP102 to GP108
    (0x1D80, 0x1DFF, "7.0"),  # GV100
    (0x1E00, 0x1FFF, "7.5"),  # TU102 to TU117
    (0x2080, 0x20FF, "8.0"),  # GA100
    (0x2180, 0x21FF, "7.5"),  # TU116
    (0x2200, 0x223F, "8.6"),  # GA102; what follows are NVSwitches, audio and bridges
    (0x2300, 0x23FF, "9.0"),  # GH100
    (0x2400, 0x25FF, "8.6"),  # GA103 to GA107
    (0x2680, 0x28FF, "8.9"),  # AD102 to AD107
    (0x2900, 0x29FF, "10.0"),  # GB100, GB102
    (0x2B00, 0x2B00, "11.0"),  # GB10B (Thor)
    (0x2B80, 0x2BFF, "12.0"),  # GB202
    (0x2C00, 0x2DFF, "12.0"),  # GB203, GB206, GB207
    (0x2E12, 0x2E12, "12.1"),  # GB20B (GB10)
    (0x2F00, 0x2F8F, "12.0"),  # GB205
    (0x3180, 0x31FF, "10.3"),  # GB110
)
"""First and last PCI device id, and the capability of all chips between them.

Chips' names are those of the PCI ID database (pci-ids.ucw.cz), capabilities those of developer.nvidia.com/cuda-gpus.
"""

# Architectures served by nvidia-smi whose chips all have the same capability.
_BY_ARCHITECTURE: Mapping[str, str] = {
    "Volta": "7.0", "Turing": "7.5", "Ada Lovelace": "8.9", "Hopper": "9.0",
}  # fmt: skip

# Names of products, without vendor and brand, whose chips all have one capability (developer.nvidia.com/cuda-gpus).
_BY_NAME: tuple[tuple[str, str], ...] = (
    (r"P100\b.*", "6.0"),
    (r"P4|P6|P40|GTX 10[5-8]0\b.*", "6.1"),
    (r"V100S?\b.*|TITAN V|Quadro GV100", "7.0"),
    (r"T4G?|RTX 20[6-8]0\b.*|GTX 16[356]0\b.*|Quadro RTX [3-8]000\b.*|TITAN RTX", "7.5"),
    (r"(A100|A800|A30)\b.*", "8.0"),
    (r"A2|A10|A10G|A10M|A16|A40|RTX 30[5-9]0\b.*|RTX A[2-6]\d00\b.*", "8.6"),
    (r"Orin \(nvgpu\)|Jetson .*Orin.*|Orin", "8.7"),
    (r"L2|L4|L20|L40|L40S|L40G|RTX 40[5-9]0\b.*|RTX \d{4}( SFF)? Ada Generation|RTX 5880 Ada\b.*", "8.9"),
    (r"(H100|H200|H800|H20|GH200|GH100)\b.*", "9.0"),
    (r"(B100|B200|GB200)\b.*", "10.0"),
    (r"(B300|GB300)\b.*", "10.3"),
    (r"Thor( \(nvgpu\))?|Jetson .*Thor.*", "11.0"),
    (r"RTX 50[5-9]0\b.*|RTX PRO [2-6]\d00 Blackwell\b.*", "12.0"),
    (r"GB10", "12.1"),
)
_BRAND = re.compile(r"(?:NVIDIA |GeForce |Tesla |GRID )*")
# Systems on a chip: the GPU computes in the memory of the processor, and nvidia-smi shows none of its own.
_UNIFIED = re.compile(r"GB10|(?:Jetson .*)?(?:Xavier|Orin|Thor)\b.*|.*\(nvgpu\)")

_AMPERE: tuple[Precision, ...] = ("fp64", "fp32", "tf32", "fp16", "bf16", "int8", "int4")
_BLACKWELL: tuple[Precision, ...] = (
    "fp64", "fp32", "tf32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2", "fp4", "int8",
)  # fmt: skip

PRECISIONS: Mapping[str, tuple[Precision, ...]] = {
    "6.0": ("fp64", "fp32", "fp16"),
    "6.1": ("fp64", "fp32", "int8"),
    "7.0": ("fp64", "fp32", "fp16", "int8"),
    "7.5": ("fp64", "fp32", "fp16", "int8", "int4"),
    "8.0": _AMPERE,
    "8.6": _AMPERE,
    "8.7": _AMPERE,
    "8.9": ("fp64", "fp32", "tf32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2", "int8", "int4"),
    "9.0": ("fp64", "fp32", "tf32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2", "int8"),
    "10.0": _BLACKWELL,
    "10.3": _BLACKWELL,
    "11.0": _BLACKWELL,
    "12.0": _BLACKWELL,
    "12.1": _BLACKWELL,
}
"""By the CUDA C++ Programming Guide: throughput of native arithmetic instructions, element types of tensor cores."""

# Of one link in one direction, by the data sheets of P100, V100, A100, A40, H100 and B200.
_NVLINK_GBS: Mapping[str, float] = {
    "6.0": 20.0, "7.0": 25.0, "8.0": 25.0, "8.6": 14.0625, "9.0": 25.0, "10.0": 50.0,
}  # fmt: skip


def capability_of_id(device_id: int | None) -> str | None:
    """Return the compute capability of a chip by its PCI device id."""
    if device_id is None:
        return None
    return next((found for first, last, found in ID_RANGES if first <= device_id <= last), None)


def capability_of_name(name: str) -> str | None:
    """Return the compute capability of a product by its full name; None for shortened or unknown names."""
    plain = name[_plain_start(name) :]
    if "..." in plain:
        return None
    return next((found for pattern, found in _BY_NAME if re.fullmatch(pattern, plain)), None)


def capability_of(
    name: str, device_id: int | None, architecture: str | None = None
) -> tuple[str | None, str]:
    """Return the capability on which name, device id and architecture agree, and a note if they do not.

    None if they contradict each other and the architecture does not decide.
    """
    by_name, by_id = capability_of_name(name), capability_of_id(device_id)
    by_architecture = _BY_ARCHITECTURE.get(architecture or "")
    found = [capability for capability in (by_name, by_id, by_architecture) if capability is not None]
    if len(set(found)) <= 1:
        return (found[0] if found else None), ""
    said = f"its name says {by_name}, its device id {device_id or 0:#06x} {by_id}, its architecture {architecture}"
    for candidate, settled in ((by_name, by_architecture), (by_id, by_architecture)):
        if candidate is not None and candidate == settled:
            return candidate, f"compute capability {candidate} is taken where {said}"
    if by_name is not None and architecture == "Blackwell" and by_name in ("10.0", "10.3", "12.0", "12.1"):
        return by_name, f"compute capability {by_name} is taken where {said}"
    return None, f"no compute capability is taken: {said}"


def is_unified(name: str) -> bool:
    """Whether the GPU has no memory of its own but shares the processor's."""
    return _UNIFIED.fullmatch(name[_plain_start(name) :]) is not None


def _plain_start(name: str) -> int:
    match = _BRAND.match(name)
    return match.end() if match else 0


def precisions_of(capability: str | None) -> tuple[Precision, ...]:
    """Precisions of a compute capability's arithmetic units; empty if unknown."""
    return PRECISIONS.get(capability or "", ())


def nvlink_gbs(capability: str | None) -> float | None:
    """GB/s of one NVLink in one direction; None if the data sheets do not list it."""
    return _NVLINK_GBS.get(capability or "")

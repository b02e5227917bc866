"""Compute capabilities of chips, and the precisions of each capability."""

from __future__ import annotations

from collections.abc import Mapping

from sage_infer.names import Precision

__all__ = ["capability_of", "nvlink_gbs", "precisions_of"]

# By the chips' names in the PCI ID database (pci-ids.ucw.cz) and NVIDIA's list of capabilities
# (developer.nvidia.com/cuda-gpus): first and last device id, and the capability of all chips between them.
_BY_DEVICE_ID: tuple[tuple[int, int, str], ...] = (
    (0x15F0, 0x15FF, "6.0"),  # GP100
    (0x1B00, 0x1D7F, "6.1"),  # GP102 to GP108
    (0x1D80, 0x1DFF, "7.0"),  # GV100
    (0x1E00, 0x1FFF, "7.5"),  # TU102 to TU117
    (0x2080, 0x20FF, "8.0"),  # GA100
    (0x2180, 0x21FF, "7.5"),  # TU116
    (0x2200, 0x25FF, "8.6"),  # GA102 to GA107
    (0x2300, 0x23FF, "9.0"),  # GH100
    (0x2680, 0x28FF, "8.9"),  # AD102 to AD107
    (0x2900, 0x29FF, "10.0"),  # GB100, GB102
)
# Architectures served by nvidia-smi whose chips all have the same capability.
_BY_ARCHITECTURE: Mapping[str, str] = {
    "Volta": "7.0", "Turing": "7.5", "Ada Lovelace": "8.9", "Hopper": "9.0",
}  # fmt: skip

# CUDA C++ Programming Guide, "Throughput of native arithmetic instructions" and "Tensor cores: element types".
_PRECISIONS: Mapping[str, tuple[Precision, ...]] = {
    "6.0": ("fp64", "fp32", "fp16"),
    "6.1": ("fp64", "fp32", "int8"),
    "7.0": ("fp64", "fp32", "fp16", "int8"),
    "7.5": ("fp64", "fp32", "fp16", "int8", "int4"),
    "8.0": ("fp64", "fp32", "tf32", "fp16", "bf16", "int8", "int4"),
    "8.6": ("fp64", "fp32", "tf32", "fp16", "bf16", "int8", "int4"),
    "8.9": ("fp64", "fp32", "tf32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2", "int8", "int4"),
    "9.0": ("fp64", "fp32", "tf32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2", "int8"),
    "10.0": ("fp64", "fp32", "tf32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2", "fp4", "int8"),
    "10.3": ("fp64", "fp32", "tf32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2", "fp4", "int8"),
    "12.0": ("fp64", "fp32", "tf32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2", "fp4", "int8"),
}

# Of one link in one direction, by the data sheets of P100, V100, A100, A40, H100 and B200.
_NVLINK_GBS: Mapping[str, float] = {
    "6.0": 20.0, "7.0": 25.0, "8.0": 25.0, "8.6": 14.0625, "9.0": 25.0, "10.0": 50.0,
}  # fmt: skip


def capability_of(device_id: int | None, architecture: str | None = None) -> str | None:
    """The compute capability of a chip, by its PCI device id, else by its architecture's name."""
    if device_id is not None:
        for first, last, capability in _BY_DEVICE_ID:
            if first <= device_id <= last:
                return capability
    return _BY_ARCHITECTURE.get(architecture or "")


def precisions_of(capability: str | None) -> tuple[Precision, ...]:
    """Precisions of a compute capability's arithmetic units; empty if unknown."""
    return _PRECISIONS.get(capability or "", ())


def nvlink_gbs(capability: str | None) -> float | None:
    """GB/s of one NVLink in one direction; None if the data sheets do not list it."""
    return _NVLINK_GBS.get(capability or "")

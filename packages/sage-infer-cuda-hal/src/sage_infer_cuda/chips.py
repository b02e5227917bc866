"""The chip table: peak rates by product, which no tool prints. Each row has its source and confidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve
from sage_infer.schemas import AcceleratorDescriptor
from sage_infer_hal.detection import Chip, find_chip

from sage_infer_cuda.capability import capability_of, precisions_of

__all__ = ["CHIPS", "described"]

_SHEETS = "llm-cal gpu_database.yaml (github.com/FlyTOmeLight/llm-cal), citing the"
_PAGE = "jishuzhan.net/article/1872432607539499010"


def _chip(
    name: str, capability: str, memory_gib: int, bandwidth_gbs: float, source: str, **more: Any
) -> Chip:
    return Chip(
        names=(name, f"NVIDIA {name}"),
        architecture=capability,
        memory_gib=memory_gib,
        bandwidth_gbs=bandwidth_gbs,
        source=source,
        precisions=precisions_of(capability),
        **({"confidence": "high"} | more),
    )


def _half(rate: float) -> Mapping[str, float]:
    return {"fp16": rate, "bf16": rate}


_A100 = {**_half(312), "int8": 624}
_H100 = {**_half(989), "int8": 1979, "fp8_e4m3": 1979, "fp8_e5m2": 1979}

# Names as NVML prints them, rates dense: where the source gives rates with sparsity they are halved.
CHIPS: tuple[Chip, ...] = (
    _chip("Tesla T4", "7.5", 16, 320, f"{_SHEETS} T4 datasheet 2018", tflops={"fp16": 65}),
    _chip("Tesla V100-SXM2-32GB", "7.0", 32, 900, f"{_SHEETS} V100 SXM2 datasheet 2017", tflops={"fp16": 125}),
    _chip("A100-SXM4-40GB", "8.0", 40, 1555, f"{_SHEETS} A100 40GB datasheet 2020; int8: {_PAGE}", tflops=_A100),
    _chip("A100-SXM4-80GB", "8.0", 80, 2039, f"{_SHEETS} A100 datasheet 2020; int8: {_PAGE}", tflops=_A100),
    _chip("A800-SXM4-80GB", "8.0", 80, 2039, "the A100's figures: the A800 differs in its links", tflops=_A100,
          confidence="medium"),
    _chip("A10", "8.6", 24, 600, f"{_SHEETS} A10 datasheet 2021", tflops={"fp16": 125}),
    _chip("A40", "8.6", 48, 696, f"{_SHEETS} A40 datasheet 2020", tflops={"fp16": 150}),
    _chip("L4", "8.9", 24, 300, f"{_SHEETS} L4 datasheet 2023", tflops=_half(121)),
    _chip("L40S", "8.9", 48, 864, f"{_SHEETS} L40S datasheet 2023", tflops=_half(362)),
    _chip("GeForce RTX 4090", "8.9", 24, 1008, f"{_SHEETS} RTX 4090 datasheet 2022", tflops=_half(165)),
    _chip("H20", "9.0", 96, 4000, f"{_SHEETS} H20", tflops=_half(148), other_sizes=True),
    _chip("H800", "9.0", 80, 3350, f"{_SHEETS} H800", tflops=_H100, confidence="medium"),
    _chip("H100 80GB HBM3", "9.0", 80, 3350, f"{_SHEETS} H100 datasheet; int8 and fp8: {_PAGE}", tflops=_H100),
    _chip("H200", "9.0", 141, 4800, f"{_SHEETS} H200 datasheet; int8 and fp8 as H100", tflops=_H100),
    _chip("B200", "10.0", 192, 8000, f"{_SHEETS} Blackwell overview", tflops=_half(2250)),
    _chip("GB200", "10.0", 192, 8000, f"{_SHEETS} GB200 datasheet 2024", tflops=_half(2250)),
)  # fmt: skip


def described(
    device: AcceleratorDescriptor,
    *,
    device_id: int | None = None,
    architecture: str | None = None,
    notes: list[str] | None = None,
) -> AcceleratorDescriptor:
    """The device with the table's figures added; a capability reported by NVML takes precedence.

    Rates are added only if name, memory and capability match the table's row. Contradictions are appended to ``notes``.
    """
    chip = find_chip(CHIPS, device.model, device.memory_bytes)
    capability, note = device.compute_capability, ""
    if capability is None:
        capability, note = capability_of(device.model, device_id, architecture)
    if note and notes is not None:
        notes.append(f"cuda:{device.index} contradicts itself: {note}")
    more = chip.fields() if chip is not None and chip.architecture == capability else {}
    return evolve(
        device,
        **(more | {"compute_capability": capability, "supported_precisions": precisions_of(capability)}),
    )

"""Cambricon chips: figures that ``cnmon`` does not print. Few data sheets exist; each figure has its confidence."""

from __future__ import annotations

from sage_infer_hal.detection import Chip

__all__ = ["CHIPS"]

_LLM_CAL = "llm-cal gpu_database.yaml (github.com/FlyTOmeLight/llm-cal)"
_SEEN = "cnmon recordings: memory only"

CHIPS = (
    Chip(names=("MLU370-S4", "MLU370-X4"), memory_gib=24, source=_SEEN, confidence="low"),
    Chip(
        names=("MLU370-X8",),
        memory_gib=24,
        bandwidth_gbs=307,
        tflops={"int8": 128},
        source=f"half of a card, which has two devices: {_LLM_CAL}, 614 GB/s, 256 TOPS INT8",
        confidence="medium",
    ),
    Chip(
        names=("MLU590-H8", "MLU590-M9DG"),
        memory_gib=80,
        bandwidth_gbs=2000,
        tflops={"fp16": 314},
        source=f"{_LLM_CAL}: MLU590, community",
        confidence="low",
    ),
    Chip(names=("MLU590-M9",), memory_gib=96, source=_SEEN, confidence="medium"),
)

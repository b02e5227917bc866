"""Hygon chips: figures that ``hy-smi`` does not print. No data sheet is public; each figure has its confidence."""

from __future__ import annotations

from sage_infer_hal.detection import Chip

__all__ = ["CHIPS"]

_LLM_CAL = "llm-cal gpu_database.yaml (github.com/FlyTOmeLight/llm-cal)"
_SURVEY = "public survey of DCU architectures"

CHIPS = (
    Chip(
        names=("Z100", "Z100L"),
        memory_gib=32,
        bandwidth_gbs=1000,
        architecture="gfx906",
        source=f"{_LLM_CAL}: Z100; architecture: {_SURVEY}",
        confidence="low",
    ),
    Chip(
        names=("K100", "K100_LC"),
        memory_gib=64,
        architecture="gfx926",
        source=_SURVEY,
        confidence="low",
    ),
    Chip(
        names=("K100_AI",),
        memory_gib=64,
        bandwidth_gbs=896,
        tflops={"fp16": 192, "bf16": 192, "int8": 392},
        precisions=("fp16", "bf16", "int8"),
        architecture="gfx928",
        source=f"{_LLM_CAL}: K100 AI; int8 and architecture: {_SURVEY}",
        confidence="low",
    ),
    Chip(
        names=("BW1000",),
        memory_gib=64,
        tflops={"fp16": 503, "bf16": 505, "int8": 1010},
        precisions=("fp16", "bf16", "int8"),
        architecture="gfx936",
        source="measured with the vendor's hyqual 3.0.3 on eight BW1000; the peak is not published",
        confidence="medium",
    ),
    Chip(names=("BW1100",), architecture="gfx938", source=_SURVEY, confidence="low"),
    Chip(names=("BW150",), memory_gib=64, architecture="gfx936", source=_SURVEY, confidence="low"),
)

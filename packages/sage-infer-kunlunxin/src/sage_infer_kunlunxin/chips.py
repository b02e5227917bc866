"""Kunlunxin chips: figures that ``xpu-smi`` does not print. Few data sheets exist; each figure has its confidence."""

from __future__ import annotations

from sage_infer_hal.detection import Chip

__all__ = ["CHIPS"]

_LLM_CAL = "llm-cal gpu_database.yaml (github.com/FlyTOmeLight/llm-cal)"
_SEEN = "xpu-smi recordings: memory only"

CHIPS = (
    Chip(
        names=("R200",),
        memory_gib=32,
        bandwidth_gbs=512,
        tflops={"fp16": 128, "int8": 256},
        precisions=("fp16", "int8"),
        source=f"{_LLM_CAL}: R200",
        confidence="medium",
    ),
    Chip(names=("R300",), memory_gib=32, source=_SEEN, confidence="low"),
    Chip(
        names=("P800 OAM",),
        memory_gib=96,
        bandwidth_gbs=2000,
        tflops={"fp16": 345},
        source=f"{_LLM_CAL}: P800, partly inferred from announcements",
        confidence="low",
    ),
    Chip(names=("P800 PCIe",), memory_gib=96, source=_SEEN, confidence="medium"),
)

"""Ascend chips: figures that ``npu-smi`` does not print. Few data sheets exist; each figure has its confidence."""

from __future__ import annotations

from sage_infer_hal.detection import Chip

__all__ = ["CHIPS", "DIE_OF_TWO"]

DIE_OF_TWO = "910C die"
"""Our name for one die of an Atlas A3 (910C): the tool prints ``Ascend910`` for it."""

_LLM_CAL = "llm-cal gpu_database.yaml (github.com/FlyTOmeLight/llm-cal)"
_HOT_CHIPS = "Huawei at Hot Chips 31 (2019): Ascend 910, 256 TFLOPS FP16, 512 TOPS INT8"

CHIPS = (
    Chip(
        names=("910A", "910"),
        memory_gib=32,
        bandwidth_gbs=1200,
        tflops={"fp16": 256, "int8": 512},
        precisions=("fp16", "int8"),
        source=f"{_HOT_CHIPS}; bandwidth: {_LLM_CAL}, community",
        confidence="medium",
    ),
    Chip(
        names=("910B1",),
        memory_gib=64,
        bandwidth_gbs=1600,
        tflops={"fp16": 414, "bf16": 414},
        precisions=("fp16", "bf16"),
        source=f"{_LLM_CAL}: Atlas 800T A2, community",
        confidence="low",
    ),
    Chip(
        names=("910B2",),
        memory_gib=64,
        bandwidth_gbs=1600,
        tflops={"fp16": 376, "bf16": 376},
        precisions=("fp16", "bf16"),
        source=f"{_LLM_CAL}, community",
        confidence="low",
    ),
    Chip(
        names=("910B2C",),
        memory_gib=64,
        bandwidth_gbs=1600,
        source="as 910B2, whose memory it has; no rate is known",
        confidence="low",
    ),
    Chip(
        names=("910B3",),
        memory_gib=64,
        bandwidth_gbs=1600,
        tflops={"fp16": 313, "bf16": 313},
        precisions=("fp16", "bf16"),
        source=f"{_LLM_CAL}, community",
        confidence="low",
    ),
    Chip(
        names=("910B4",),
        memory_gib=32,
        other_sizes=True,
        tflops={"fp16": 280, "bf16": 280},
        precisions=("fp16", "bf16"),
        source=f"{_LLM_CAL}: Atlas 800I A2, community; its 1600 GB/s contradict half of the HBM and are left out",
        confidence="low",
    ),
    Chip(
        names=(DIE_OF_TWO, "910_9391", "910_9392"),
        memory_gib=64,
        bandwidth_gbs=1600,
        tflops={"fp16": 390, "bf16": 390},
        precisions=("fp16", "bf16"),
        source="half of a 910C card: techpowerup.com/335749, 780 TFLOPS BF16 and 3200 GB/s",
        confidence="low",
    ),
    Chip(
        names=("950PR",),
        memory_gib=128,
        other_sizes=True,  # also 112 GiB
        bandwidth_gbs=1600,
        tflops={"fp8_e4m3": 1000},
        source="m.968545.com/doc-view-14099: HiBL 1.0, 128 GB, 1.6 TB/s, FP8 1 PFLOPS",
        confidence="low",
    ),
    Chip(
        names=("310P3",),
        memory_gib=24,
        ecc_share=0.125,
        other_sizes=True,  # also 48 GiB per chip
        bandwidth_gbs=102,
        tflops={"fp16": 70, "int8": 140},
        precisions=("fp16", "int8"),
        source=f"half of an Atlas 300I Duo: {_LLM_CAL}, 204 GB/s, 140 TFLOPS FP16, 280 TOPS INT8",
        confidence="low",
    ),
)

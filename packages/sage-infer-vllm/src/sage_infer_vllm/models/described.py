"""Checkpoints whose quantization is described by a file of a vendor's tool instead of ``config.json``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sage_infer.models import read_model_text

from sage_infer_vllm.platform import QuantizationMethod

__all__ = ["described_method", "read_object"]

_MODELSLIM = "quant_model_description.json"  # Huawei's msModelSlim
_MLU = "quantize_config.json"  # Cambricon's tools; AutoGPTQ's file of this name has no quant_mode
_TYPE = re.compile(r"W(\d+)A(\d+)")
_MLU_MODES = {"WeightOnly": "weightonly", "SmoothQuant": "smoothquant"}


def described_method(folder: Path) -> QuantizationMethod | None:
    """The quantization that a vendor's tool describes in the folder; None without such a file.

    As in vllm-ascend, the file of msModelSlim takes precedence over ``config.json``.
    """
    return _of_modelslim(read_object(folder / _MODELSLIM)) or _of_mlu(read_object(folder / _MLU))


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none."""
    try:
        found = json.loads(read_model_text(file))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _of_modelslim(description: dict[str, Any]) -> QuantizationMethod | None:
    """``model_quant_type`` is the type of most layers: ``W8A8``, ``W8A8_DYNAMIC``, ``W4A8_MXFP``, …"""
    found = _TYPE.match(str(description.get("model_quant_type", "")).upper())
    if found is None:
        return None
    return QuantizationMethod(name="ascend", weight_bits=int(found[1]), activation_bits=int(found[2]))


def _of_mlu(config: dict[str, Any]) -> QuantizationMethod | None:
    name = _MLU_MODES.get(str(config.get("quant_mode", "")))
    if name == "weightonly":
        bits = config.get("bits")
        return QuantizationMethod(name=name, weight_bits=bits) if isinstance(bits, int) else None
    if name == "smoothquant":
        return QuantizationMethod(
            name=name,
            weight_bits=_bits(config.get("weight_precision", "int8")),
            activation_bits=_bits(config.get("activation_precision", "int8")),
        )
    return None


def _bits(precision: object) -> int:
    """Bits of ``int8``, ``int4``, ``float8_e4m3fn``, …; 16 if unknown."""
    found = re.match(r"(?:int|float)(\d+)", str(precision))
    return int(found[1]) if found is not None else 16

"""Hygon as a platform of vLLM: known facts, each with its source. Everything else is queried from vLLM."""

from __future__ import annotations

from sage_infer_vllm.vendor import Platform, QuantizationMethod

from sage_infer_hygon.needs import ENGINE, LABEL

__all__ = ["HYGON"]

HYGON = Platform(
    backend_name="hygon",
    engine=ENGINE,
    engine_label=LABEL,
    builtin="rocm",
    hardware_backend="hygon",
    # vLLM calls the device cuda, but NVIDIA's kernels (marlin, online fp8) are not on it.
    quantization=(
        QuantizationMethod(name="awq", weight_bits=4),
        QuantizationMethod(name="gptq", weight_bits=4),
        QuantizationMethod(name="gptq", weight_bits=8),
        QuantizationMethod(name="compressed-tensors", weight_bits=8, activation_bits=8),
    ),
    visible_devices="HIP_VISIBLE_DEVICES",
    sources={
        "engine": "wheels of the developers' community: vllm-0.18.1+das.dtk2604",
        "engine_label": "the names of those wheels",
        "builtin": "vllm/platforms/rocm.py: RocmPlatform, whose device_type is cuda",
        "quantization": "vllm/platforms/rocm.py: supported_quantization, less what requires AMD's or NVIDIA's kernels",
        "visible_devices": "HIP, which DTK is built on",
    },
)

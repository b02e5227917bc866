"""Kunlunxin as a platform of vLLM: known facts, each with its source. Everything else is queried from vLLM."""

from __future__ import annotations

from sage_infer_vllm.vendor import Platform, QuantizationMethod

from sage_infer_kunlunxin.needs import ENGINE, PLUGIN, PLUGIN_DISTRIBUTIONS

__all__ = ["KUNLUNXIN"]

KUNLUNXIN = Platform(
    backend_name="kunlunxin",
    engine=ENGINE,
    plugin=PLUGIN,
    plugin_distributions=PLUGIN_DISTRIBUTIONS,
    hardware_backend="kunlunxin",
    quantization=(
        QuantizationMethod(name="compressed-tensors", weight_bits=8, activation_bits=8),
        QuantizationMethod(name="compressed-tensors", weight_bits=4),
        QuantizationMethod(name="awq", weight_bits=4),
        QuantizationMethod(name="gptq", weight_bits=4),
        QuantizationMethod(name="gptq", weight_bits=8),
    ),
    precisions=("fp32", "fp16", "bf16", "int8"),
    visible_devices="XPU_VISIBLE_DEVICES",
    sources={
        "engine": "pypi.org/project/vllm-kunlun: 0.11.1; github.com/baidu/vLLM-Kunlun setup.py: 0.15.1",
        "plugin": "vLLM-Kunlun setup.py",
        "quantization": "vLLM-Kunlun docs/source/user_guide/feature_guide/quantization.md",
        "precisions": "vllm_kunlun/platforms/kunlun.py: check_if_supports_dtype",
        "visible_devices": "vLLM-Kunlun docs/source/user_guide/configuration/env_vars.md",
    },
)

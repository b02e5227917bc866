"""Kunlunxin as a platform of vLLM: known facts, each with its source. Everything else is queried from vLLM."""

from __future__ import annotations

from sage_infer_vllm.vendor import Platform, QuantizationMethod

from sage_infer_kunlunxin.needs import ENGINE, PAIRS, PLUGIN, PLUGIN_DISTRIBUTIONS

__all__ = ["KUNLUNXIN"]

KUNLUNXIN = Platform(
    backend_name="kunlunxin",
    engine=ENGINE,
    plugin=PLUGIN,
    plugin_distributions=PLUGIN_DISTRIBUTIONS,
    pairs=PAIRS,
    hardware_backend="kunlunxin",
    kv_dtypes={},
    quantization=(
        QuantizationMethod(name="compressed-tensors", weight_bits=8, activation_bits=8),
        QuantizationMethod(name="compressed-tensors", weight_bits=4),
        QuantizationMethod(name="awq", weight_bits=4),
        QuantizationMethod(name="gptq", weight_bits=4),
        QuantizationMethod(name="gptq", weight_bits=8),
    ),
    precisions=("fp32", "fp16", "bf16", "int8"),
    prefix_caching=False,
    can_sleep=False,
    visible_devices="XPU_VISIBLE_DEVICES",
    engine_options={"block_size": 128, "enable_chunked_prefill": False},
    sources={
        "engine": "github.com/baidu/vLLM-Kunlun setup.py: 0.15.1",
        "pairs": "github.com/baidu/vLLM-Kunlun: imports selector.AttentionSelectorConfig of vLLM 0.15.1",
        "kv_dtypes": "github.com/baidu/vLLM-Kunlun documents none beside the model's type",
        "prefix_caching": "vLLM-Kunlun documentation: all launches have --no-enable-prefix-caching",
        "can_sleep": "vllm_kunlun/platforms/kunlun.py calls itself CUDA, so vLLM would claim it untested",
        "engine_options": "vLLM-Kunlun documentation: --block-size 128 --no-enable-chunked-prefill of all launches",
        "plugin": "vLLM-Kunlun setup.py",
        "quantization": "vLLM-Kunlun docs/source/user_guide/feature_guide/quantization.md",
        "precisions": "vllm_kunlun/platforms/kunlun.py: check_if_supports_dtype",
        "visible_devices": "vLLM-Kunlun docs/source/user_guide/configuration/env_vars.md",
    },
)

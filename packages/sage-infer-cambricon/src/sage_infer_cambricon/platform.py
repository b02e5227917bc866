"""Cambricon as a platform of vLLM: known facts, each with its source. Everything else is queried from vLLM."""

from __future__ import annotations

from sage_infer_vllm.vendor import Platform, QuantizationMethod

from sage_infer_cambricon.needs import ENGINE, PAIRS, PLUGIN, PLUGIN_DISTRIBUTIONS

__all__ = ["CAMBRICON"]

CAMBRICON = Platform(
    backend_name="cambricon",
    engine=ENGINE,
    plugin=PLUGIN,
    plugin_distributions=PLUGIN_DISTRIBUTIONS,
    pairs=PAIRS,
    hardware_backend="cambricon",
    # int8 and fp8 KV are set by mlu_config.decoder_attn_dtype for a few models, not by the engine's option.
    kv_dtypes={},
    quantization=(
        QuantizationMethod(name="weightonly", weight_bits=8),
        QuantizationMethod(name="weightonly", weight_bits=4),
        QuantizationMethod(name="smoothquant", weight_bits=8, activation_bits=8),
        QuantizationMethod(name="awq_mlu", checkpoint="awq", weight_bits=4),
        QuantizationMethod(name="awq_mlu", checkpoint="awq", weight_bits=8),
        QuantizationMethod(name="gptq_mlu", checkpoint="gptq", weight_bits=4),
        QuantizationMethod(name="gptq_mlu", checkpoint="gptq", weight_bits=8),
        QuantizationMethod(name="fp8", weight_bits=8, activation_bits=8),
    ),
    precisions=("fp16", "bf16"),
    kv_connectors=("LMCacheConnectorV1",),
    visible_devices="MLU_VISIBLE_DEVICES",
    sources={
        "engine": "github.com/Cambricon/vllm-mlu: the newest source is for 0.13",
        "pairs": "github.com/Cambricon/vllm-mlu: its version is that of the vLLM it patches",
        "kv_dtypes": "vllm_mlu: mlu_config.decoder_attn_dtype",
        "plugin": "vllm-mlu setup.py",
        "quantization": "vllm_mlu/platforms/mlu.py: supported_quantization; bits and names in checkpoints: its classes "
        "in layers/quantization",
        "precisions": "vllm_mlu/model_executor/layers/quantization/weightonly.py: half and bfloat16",
        "kv_connectors": "vllm_mlu/engine/arg_utils.py: create_engine_config refuses all others",
        "visible_devices": "vllm_mlu/platforms/mlu.py: device_control_env_var",
    },
)

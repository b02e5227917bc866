"""Cambricon as a platform of vLLM: known facts, each with its source. Everything else is queried from vLLM."""

from __future__ import annotations

from sage_infer_vllm.vendor import Platform, QuantizationMethod

from sage_infer_cambricon.needs import ENGINE, PLUGIN, PLUGIN_DISTRIBUTIONS

__all__ = ["CAMBRICON"]

CAMBRICON = Platform(
    backend_name="cambricon",
    engine=ENGINE,
    plugin=PLUGIN,
    plugin_distributions=PLUGIN_DISTRIBUTIONS,
    hardware_backend="cambricon",
    quantization=(
        QuantizationMethod(name="weightonly", weight_bits=8),
        QuantizationMethod(name="weightonly", weight_bits=4),
        QuantizationMethod(name="smoothquant", weight_bits=8, activation_bits=8),
        QuantizationMethod(name="awq_mlu", weight_bits=4),
        QuantizationMethod(name="gptq_mlu", weight_bits=4),
        QuantizationMethod(name="fp8", weight_bits=8, activation_bits=8),
    ),
    precisions=("fp16", "bf16"),
    kv_connectors=("MLUSharedStorageConnector", "MLUNixlConnector"),
    visible_devices="MLU_VISIBLE_DEVICES",
    sources={
        "engine": "github.com/Cambricon/vllm-mlu: V1 by default since 0.9.1; the newest source is for 0.13",
        "plugin": "vllm-mlu setup.py",
        "quantization": "vllm_mlu/platforms/mlu.py: supported_quantization; bits: its classes in layers/quantization",
        "precisions": "vllm_mlu/model_executor/layers/quantization/weightonly.py: half and bfloat16",
        "kv_connectors": "vllm_mlu/distributed/kv_transfer/kv_connector/factory.py",
        "visible_devices": "vllm_mlu/platforms/mlu.py: device_control_env_var",
    },
)

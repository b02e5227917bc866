"""Ascend as a platform of vLLM: known facts, each with its source. Everything else is queried from vLLM."""

from __future__ import annotations

from sage_infer_vllm.vendor import Platform, QuantizationMethod

from sage_infer_ascend.needs import ENGINE, PAIRS, PLUGIN, PLUGIN_DISTRIBUTIONS

__all__ = ["ASCEND"]

_DOCS = "https://docs.vllm.ai/projects/ascend/en/v0.23.0"

ASCEND = Platform(
    backend_name="ascend",
    engine=ENGINE,
    plugin=PLUGIN,
    plugin_distributions=PLUGIN_DISTRIBUTIONS,
    pairs=PAIRS,
    hardware_backend="ascend",
    # int8 KV ("C8") requires a checkpoint quantized for it and is not an option of the engine.
    kv_dtypes={},
    block_sizes=(128,),
    quantization=(
        QuantizationMethod(name="ascend", weight_bits=8, activation_bits=8),
        QuantizationMethod(name="ascend", weight_bits=4, activation_bits=8),
        QuantizationMethod(name="ascend", weight_bits=8, activation_bits=16),
        QuantizationMethod(name="ascend", weight_bits=4, activation_bits=4),
        QuantizationMethod(name="ascend", weight_bits=4, activation_bits=16),
        QuantizationMethod(name="compressed-tensors", weight_bits=8, activation_bits=8),
        QuantizationMethod(name="compressed-tensors", weight_bits=4, activation_bits=8),
        QuantizationMethod(name="compressed-tensors", weight_bits=4, activation_bits=16),
    ),
    precisions=("fp16", "bf16"),
    kv_bytes_since=">=0.23",
    kv_connectors=(
        "MooncakeConnectorV1",
        "MooncakeLayerwiseConnector",
        "MooncakeHybridConnector",
        "MooncakeConnectorStoreV1",
        "AscendStoreConnector",
        "UCMConnector",
        "LMCacheAscendConnector",
        "SimpleCPUOffloadConnector",
        "RecomputeCPUOffloadConnector",
        "MultiConnector",
    ),
    visible_devices="ASCEND_RT_VISIBLE_DEVICES",
    memory_fraction=0.9,
    sources={
        "engine": f"{_DOCS}/community/versioning_policy.html: 0.13.0, 0.18.0, 0.23.0, and 0.26.0rc1",
        "plugin": "github.com/vllm-project/vllm-ascend setup.py",
        "pairs": f"{_DOCS}/community/versioning_policy.html: release compatibility matrix",
        "kv_dtypes": "vllm_ascend/quantization/methods/kv_c8.py: chosen by quant_model_description.json",
        "block_sizes": "vllm_ascend/platform.py: 128 where prefixes are cached",
        "quantization": "vllm_ascend/platform.py: ascend, compressed-tensors; W8A8, W4A8: notes of 0.22.1rc1; "
        "W8A16: pull request for issue 4267; W4A4, W4A16 and "
        "those of compressed-tensors: vllm_ascend/quantization",
        "precisions": "vllm_ascend documentation: float16 and bfloat16 checkpoints",
        "kv_bytes_since": "vllm_ascend/worker/worker.py: 0.18 does not read kv_cache_memory_bytes, 0.23 does",
        "kv_connectors": "vllm_ascend/distributed/kv_transfer/__init__.py; some of them only in 0.23",
        "visible_devices": "vllm_ascend/platform.py: device_control_env_var",
        "memory_fraction": f"{_DOCS}: --gpu-memory-utilization of the guides",
    },
)

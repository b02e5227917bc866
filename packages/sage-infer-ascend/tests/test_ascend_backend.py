"""Ascend as a platform of vLLM, up to the point where vLLM would be called, which is not here."""

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from sage_infer.errors import CapabilityMismatch
from sage_infer.schemas import ModelDescriptor
from sage_infer_testing import VLLMPlatformContract


def description(kind: str, **metadata: Any) -> dict[str, Any]:
    """``quant_model_description.json`` of a model with one layer."""
    layer = "model.layers.0.self_attn.q_proj"
    return {
        "model_quant_type": kind,
        **metadata,
        "model.embed_tokens.weight": "FLOAT",
        f"{layer}.weight": kind,
        f"{layer}.weight_scale": kind,
        f"{layer}.weight_offset": kind,
        "lm_head.weight": "FLOAT",
    }


class TestPlatform(VLLMPlatformContract):
    module = "sage_infer_ascend.plugin"
    stack: ClassVar[Mapping[str, str]] = {
        "vllm": "0.23.0",
        "vllm-ascend": "0.23.0.post1",
        "torch-npu": "2.10.0",
    }
    device = "npu"
    environment: ClassVar[Mapping[str, str]] = {"ASCEND_RT_VISIBLE_DEVICES": "2,3"}
    mismatched: ClassVar[Mapping[str, str]] = {"vllm": "0.26.0", "vllm-ascend": "0.18.0"}
    # msModelSlim describes each weight in a file of its own, and writes nothing into config.json.
    checkpoints: ClassVar[Mapping[str, tuple[Mapping[str, Any], int, int]]] = {
        "W8A8": ({"quant_model_description.json": description("W8A8")}, 8, 8),
        "W8A8 dynamic": (
            {"quant_model_description.json": description("W8A8_DYNAMIC", version="1.0.0")},
            8,
            8,
        ),
        "W4A8": ({"quant_model_description.json": description("W4A8_DYNAMIC", version="1.0.0")}, 4, 8),
        "W8A16": ({"quant_model_description.json": description("W8A16", group_size=64)}, 8, 16),
        "W4A4": ({"quant_model_description.json": description("W4A4_FLATQUANT_DYNAMIC")}, 4, 4),
        "llm-compressor": (
            {
                "config.json": {
                    "model_type": "llama",
                    "quantization_config": {
                        "quant_method": "compressed-tensors",
                        "format": "int-quantized",
                        "config_groups": {
                            "group_0": {
                                "weights": {"num_bits": 8, "type": "int", "strategy": "channel"},
                                "input_activations": {"num_bits": 8, "type": "int", "dynamic": True},
                            }
                        },
                    },
                }
            },
            8,
            8,
        ),
    }


def test_quantized_kv_comes_with_the_checkpoint_and_is_no_option() -> None:
    backend = pytest.importorskip("sage_infer_ascend.backend", reason="the backend is the extra [vllm]")
    model = ModelDescriptor(model_id="tiny", model_type="llm", model_path="/nowhere")
    with pytest.raises(CapabilityMismatch, match="ascend"):
        backend.AscendBackend(model, kv_schema={"preset": "int8"})

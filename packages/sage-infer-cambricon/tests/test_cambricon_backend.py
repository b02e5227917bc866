"""Cambricon as a platform of vLLM, up to the point where vLLM would be called, which is not here."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sage_infer.errors import UnsupportedFeature
from sage_infer.schemas import ModelDescriptor, QuantizationProfile
from sage_infer_testing import VLLMPlatformContract


class TestPlatform(VLLMPlatformContract):
    module = "sage_infer_cambricon.plugin"
    stack: ClassVar[Mapping[str, str]] = {
        "vllm": "0.13.0",
        "vllm-mlu": "0.13.0+mlu1.2.pt29",
        "torch-mlu": "1.28.0",
    }
    device = "mlu"
    environment: ClassVar[Mapping[str, str]] = {"MLU_VISIBLE_DEVICES": "2,3"}
    # The vendor's tools write quantize_config.json; awq and gptq come from the usual tools.
    checkpoints: ClassVar[Mapping[str, tuple[Mapping[str, Any], int, int]]] = {
        "weightonly": ({"quantize_config.json": {"bits": 4, "quant_mode": "WeightOnly"}}, 4, 16),
        "smoothquant": (
            {
                "quantize_config.json": {
                    "quant_mode": "SmoothQuant",
                    "input_quant_method": "per_token",
                    "group_size": 1,
                    "weight_precision": "int8",
                    "activation_precision": "int8",
                    "only_expert_per_group": False,
                }
            },
            8,
            8,
        ),
        "awq": (
            {
                "config.json": {
                    "model_type": "llama",
                    "quantization_config": {
                        "quant_method": "awq",
                        "bits": 4,
                        "group_size": 128,
                        "zero_point": True,
                        "version": "gemm",
                    },
                }
            },
            4,
            16,
        ),
        "gptq": (
            {
                "config.json": {
                    "model_type": "llama",
                    "quantization_config": {
                        "quant_method": "gptq",
                        "bits": 8,
                        "group_size": 128,
                        "desc_act": False,
                        "sym": True,
                    },
                }
            },
            8,
            16,
        ),
    }


def test_the_engine_gets_the_vendors_name_of_a_checkpoints_method(tmp_path: Path) -> None:
    quantization = pytest.importorskip(
        "sage_infer_vllm.models.quantization", reason="the backend is the extra [vllm]"
    )
    platform = pytest.importorskip("sage_infer_cambricon.platform").CAMBRICON
    config = TestPlatform.checkpoints["awq"][0]["config.json"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    profile = QuantizationProfile(profile_id="p", weight_bits=4)
    assert quantization.quantization_for(profile, tmp_path, platform, device="mlu").method == "awq_mlu"
    assert quantization.undetected_method(tmp_path, platform) is None  # vLLM detects it
    (tmp_path / "quantize_config.json").write_text('{"bits": 4, "quant_mode": "WeightOnly"}')
    assert quantization.undetected_method(tmp_path, platform) == "weightonly"


def test_connectors_that_the_vendors_build_refuses_are_refused_by_name() -> None:
    vendor = pytest.importorskip("sage_infer_vllm.vendor", reason="the backend is the extra [vllm]")
    platform = pytest.importorskip("sage_infer_cambricon.platform").CAMBRICON
    model = ModelDescriptor(model_id="tiny", model_type="llm", model_path="/nowhere")

    def arguments(connector: str) -> Any:
        settings = vendor.VLLMSettings(
            engine_options={"kv_transfer_config": {"kv_connector": connector, "kv_role": "kv_both"}}
        )
        return vendor.engine_arguments(settings, platform, model, "folder", device="mlu", runner="generate")

    assert "kv_transfer_config" in arguments("LMCacheConnectorV1")
    with pytest.raises(UnsupportedFeature, match="'NixlConnector'; supported: LMCacheConnectorV1"):
        arguments("NixlConnector")

"""Quantization profiles against platforms and checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sage_infer.errors import CapabilityMismatch
from sage_infer.schemas import QuantizationProfile
from sage_infer_vllm.models.quantization import checkpoint_method, quantization_for, undetected_method
from sage_infer_vllm.platform import UPSTREAM, Platform, QuantizationMethod

AWQ = {"quant_method": "awq", "bits": 4}
W8A8 = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"num_bits": 8}, "input_activations": {"num_bits": 8}}},
}
VENDOR = Platform(
    backend_name="vendor", engine={"vllm": ""},
    quantization=(QuantizationMethod(name="vendor-w8a8", weight_bits=8, activation_bits=8, online=True),),
)  # fmt: skip


def checkpoint(folder: Path, quantization: dict[str, Any] | None) -> Path:
    config = {"architectures": ["LlamaForCausalLM"]}
    if quantization is not None:
        config["quantization_config"] = quantization  # type: ignore[assignment]  # JSON
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def profile(**fields: Any) -> QuantizationProfile:
    return QuantizationProfile(profile_id="p", **fields)


@pytest.mark.parametrize(
    ("config", "fields", "device", "method", "kv"),
    [
        (None, {}, "cpu", None, None),
        (None, {"kv_bits_prefill": 8, "kv_bits_decode": 8}, "cpu", None, "fp8"),
        (None, {"weight_bits": 8, "activation_bits": 8}, "cuda", "fp8", None),
        (AWQ, {"weight_bits": 4}, "cpu", "awq", None),
        (AWQ, {"weight_bits": 4, "kernel_backend": "marlin"}, "cuda", "awq_marlin", None),
        (W8A8, {"weight_bits": 8, "activation_bits": 8}, "cpu", "compressed-tensors", None),
    ],
)
def test_profiles_that_fit(
    tmp_path: Path, config: Any, fields: dict[str, Any], device: str, method: str | None, kv: str | None
) -> None:
    found = quantization_for(profile(**fields), checkpoint(tmp_path, config), UPSTREAM, device=device)
    assert (found.method, found.kv_preset, found.profile_id) == (method, kv, "p")


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (
            None,
            {"weight_bits": 4},
            r"not quantized, and vLLM on cpu cannot quantize to 4-bit weights .*4/16 by awq",
        ),
        (AWQ, {"weight_bits": 8}, r"checkpoint has 4-bit weights with 16-bit activations \(awq\), not 8-bit"),
        ({"quant_method": "odd", "bits": 3}, {"weight_bits": 3}, "does not support odd checkpoints"),
        (
            AWQ,
            {"weight_bits": 4, "kernel_backend": "marlin"},
            "kernel_backend 'marlin' cannot be selected",
        ),
        (None, {"kernel_backend": "cutlass"}, "kernel_backend 'cutlass' cannot be selected"),
        (None, {"sparsity_ratio": 0.5, "sparsity_pattern": "2:4"}, "no sparse kernels.*2:4 sparsity of 0.5"),
        (None, {"kv_bits_prefill": 8}, "kv_bits_prefill is 8 but kv_bits_decode 16"),
        (
            None,
            {"kv_bits_prefill": 6, "kv_bits_decode": 6},
            "a KV cache of 6 bits is not supported; use 16, 8 or 4",
        ),
    ],
)
def test_missing_features_are_named(
    tmp_path: Path, config: Any, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(CapabilityMismatch, match=message):
        quantization_for(profile(**fields), checkpoint(tmp_path, config), UPSTREAM, device="cpu")


def test_all_missing_features_are_named_together(tmp_path: Path) -> None:
    with pytest.raises(CapabilityMismatch) as caught:
        quantization_for(
            profile(weight_bits=4, kv_bits_prefill=8, sparsity_ratio=0.5, sparsity_pattern="2:4"),
            checkpoint(tmp_path, None), UPSTREAM, device="cpu",
        )  # fmt: skip
    assert str(caught.value).count(";") >= 3


def test_a_vendors_methods_replace_vllms(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, None)
    found = quantization_for(profile(weight_bits=8, activation_bits=8), folder, VENDOR, device="")
    assert found.method == "vendor-w8a8"
    with pytest.raises(
        CapabilityMismatch, match=r"vendor cannot quantize to 4-bit weights.*8/8 by vendor-w8a8"
    ):
        quantization_for(profile(weight_bits=4), folder, VENDOR, device="")


@pytest.mark.parametrize("content", ["", "[]", '{"quantization_config": 5}', "{"])
def test_a_config_that_says_nothing_is_a_float_checkpoint(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert checkpoint_method(tmp_path) is None
    assert checkpoint_method(tmp_path / "model.gguf") is None


def test_bits_of_checkpoints(tmp_path: Path) -> None:
    for config, bits in (
        (AWQ, (4, 16)),
        (W8A8, (8, 8)),
        ({"quant_method": "fp8"}, (8, 8)),
        ({"bits": "x"}, (16, 16)),
    ):
        found = checkpoint_method(checkpoint(tmp_path, config))
        assert found is not None
        assert (found.weight_bits, found.activation_bits) == bits


# --- described by a file of a vendor's tool

SLIM = Platform(
    backend_name="vendor", engine={"vllm": ""},
    quantization=(QuantizationMethod(name="own-slim", checkpoint="ascend", weight_bits=8, activation_bits=8),),
)  # fmt: skip


@pytest.mark.parametrize(
    ("file", "content", "found"),
    [
        ("quant_model_description.json", {"model_quant_type": "W8A8"}, ("ascend", 8, 8)),
        ("quant_model_description.json", {"model_quant_type": "W4A8_DYNAMIC"}, ("ascend", 4, 8)),
        ("quant_model_description.json", {"model_quant_type": "FLOAT"}, None),
        ("quant_model_description.json", [], None),
        ("quantize_config.json", {"bits": 8, "quant_mode": "WeightOnly"}, ("weightonly", 8, 16)),
        ("quantize_config.json", {"bits": "8", "quant_mode": "WeightOnly"}, None),
        ("quantize_config.json", {"quant_mode": "SmoothQuant"}, ("smoothquant", 8, 8)),
        (
            "quantize_config.json",
            {
                "quant_mode": "SmoothQuant",
                "weight_precision": "int4",
                "activation_precision": "float8_e4m3fn",
            },
            ("smoothquant", 4, 8),
        ),
        (
            "quantize_config.json",
            {"quant_mode": "SmoothQuant", "weight_precision": None},
            ("smoothquant", 16, 8),
        ),
        ("quantize_config.json", {"bits": 4, "group_size": 128, "desc_act": False}, None),  # AutoGPTQ's
    ],
)
def test_files_of_vendors_tools(tmp_path: Path, file: str, content: object, found: object) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / file).write_text(json.dumps(content))
    method = checkpoint_method(tmp_path)
    assert (method and (method.name, method.weight_bits, method.activation_bits)) == found


def test_the_engine_is_told_what_it_does_not_detect(tmp_path: Path) -> None:
    assert undetected_method(tmp_path, SLIM) is None
    (tmp_path / "quant_model_description.json").write_text('{"model_quant_type": "W8A8_DYNAMIC"}')
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "awq", "bits": 4}}')
    method = checkpoint_method(tmp_path)
    assert method is not None
    assert method.name == "ascend"  # as in vllm-ascend, its own file counts
    assert undetected_method(tmp_path, SLIM) == "own-slim"
    assert undetected_method(tmp_path, UPSTREAM) is None

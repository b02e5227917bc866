"""Hugging Face folders: the same weights as the GGUF they are written from, and a named file for every
fault.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sage_infer.errors import ModelFileError, SageInferError, UnsupportedFeature
from sage_infer_openvino.models.gguf.model import GgufModel
from sage_infer_openvino.models.hf_model import HfModel, hf_name

NAMES = ["embed", "final_norm", "lm_head"] + [
    f"layers.{layer}.{kind}"
    for layer in range(2)
    for kind in ("attn_norm", "q", "k", "v", "o", "mlp_norm", "gate", "up", "down")
]
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "eos_token_id": [259, 2],
}


def safetensors(path: Path, arrays: dict[str, np.ndarray], dtype: str) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at, body = 0, b""
    for name, array in arrays.items():
        data = array.tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + len(data)]}
        at, body = at + len(data), body + data
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


@pytest.fixture
def weights(tiny_gguf: Callable[..., Path]) -> dict[str, np.ndarray]:
    head = np.random.default_rng(5).normal(0, 0.2, (261, 64))
    model = GgufModel(tiny_gguf(tensors={"output.weight": head}))
    return {hf_name(name): model.weight(name).dense() for name in NAMES}


@pytest.fixture
def folder(tmp_path: Path, weights: dict[str, np.ndarray]) -> Path:
    """Three shards in float32, with an index."""
    path = tmp_path / "hf"
    path.mkdir()
    names = list(weights)
    shards = {f"model-{i + 1:05}-of-00003.safetensors": names[i::3] for i in range(3)}
    for file, held in shards.items():
        safetensors(path / file, {name: weights[name] for name in held}, "F32")
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


def test_shards(folder: Path, weights: dict[str, np.ndarray]) -> None:
    model = HfModel(folder)
    for name in NAMES:
        assert np.array_equal(model.weight(name).dense(), weights[hf_name(name)])
    config = model.config
    assert (config.num_layers, config.head_dim, config.vocab_size, config.tied_embeddings) == (
        2,
        32,
        261,
        False,
    )
    assert config.eos_token_ids == (259, 2)


def test_one_file_of_bf16(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    rounded = {name: (array.view(np.uint32) >> 16).astype(np.uint16) for name, array in weights.items()}
    del rounded["lm_head.weight"]
    safetensors(tmp_path / "model.safetensors", rounded, "BF16")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    model = HfModel(tmp_path)
    assert model.config.tied_embeddings
    expected = (rounded[hf_name("layers.1.up")].astype(np.uint32) << 16).view(np.float32)
    weight = model.weight("layers.1.up")
    assert weight.type == "bf16"
    assert np.array_equal(weight.dense(), expected)


def test_llama3_rope_equals_transformers(folder: Path) -> None:
    """Divisors for Llama 3.1's published parameters, from transformers' _compute_llama3_parameters."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    changed = {
        **CONFIG,
        "head_dim": 128,
        "rope_parameters": {**rope, "original_max_position_embeddings": 8192},
    }
    (folder / "config.json").write_text(json.dumps(changed))
    factors = HfModel(folder).config.rope_factors
    assert factors is not None
    assert factors[0] == factors[28] == 1.0
    assert factors[35] == factors[63] == 8.0
    ramp = [1.2075, 1.5534, 2.0263, 2.6945, 3.6843, 5.2573]
    assert factors[29:35] == pytest.approx(ramp, abs=1e-4)


@pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1])
def test_cut_shard_is_named(folder: Path, keep: int) -> None:
    shard = folder / "model-00002-of-00003.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:keep])
    with pytest.raises(ModelFileError, match="model-00002-of-00003") as caught:
        HfModel(folder)
    assert "\n" not in str(caught.value)


def test_missing_shard_and_missing_files_are_named(folder: Path) -> None:
    (folder / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"model-00003-of-00003.safetensors: cannot be read"):
        HfModel(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelFileError, match=r"hf/model\.safetensors: cannot be read"):
        HfModel(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelFileError, match=r"config\.json"):
        HfModel(folder)


def test_shards_outside_the_folder_are_refused(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/x"}}))
    with pytest.raises(ModelFileError, match="outside of the folder"):
        HfModel(folder)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"},
            UnsupportedFeature,
            "GPT2LMHeadModel.*LlamaForCausalLM",
        ),
        ({"hidden_act": "gelu"}, UnsupportedFeature, "'gelu'"),
        ({"quantization_config": {"bits": 4}}, UnsupportedFeature, "quantized"),
        ({"rope_scaling": {"type": "dynamic"}}, UnsupportedFeature, "'dynamic'"),
        ({"num_hidden_layers": "2"}, ModelFileError, "num_hidden_layers is '2'"),
        ({"rope_theta": 1e300}, ModelFileError, r"rope_theta is 1e\+300, which is not a number of 32 bits"),
        ({"rope_scaling": {"type": "linear", "factor": 1e300}}, ModelFileError, "rotary factors must be"),
    ],
)
def test_configs_that_are_refused(folder: Path, change: dict, error: type[SageInferError], says: str) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(error, match=says):
        HfModel(folder)

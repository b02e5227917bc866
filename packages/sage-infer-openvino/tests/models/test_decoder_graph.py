"""The graph computes the definition of a Llama, in every variant of weights and shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gguf.constants import GGMLQuantizationType as GgmlType
from sage_infer.errors import InvalidRequest, ModelFileError
from sage_infer_openvino.device import compute_precisions
from sage_infer_openvino.engine.kv_schema import kv_schema_of
from sage_infer_openvino.engine.paged_runner import PagedRunner, SequenceSlice
from sage_infer_openvino.models.decoder_graph import build_decoder, to_paged_attention
from sage_infer_openvino.models.decoder_weights import DecoderSource
from sage_infer_openvino.models.gguf.model import GgufModel
from sage_infer_openvino.ov_runtime import ov

Array = npt.NDArray[Any]
TOKENS = [3, 200, 17, 17, 90, 260, 4, 8, 33, 120, 7]
HERE = compute_precisions(ov.Core(), "CPU")
F32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


def llama(source: DecoderSource, tokens: list[int], kv: list[Array] | None = None) -> Array:
    """Logits of every position, ``[tokens, vocab]``, written from the model's definition in NumPy
    (float64).

    ``kv`` takes each layer's keys and values, ``[2, kv heads, tokens, head_dim]``.
    """
    config = source.config

    def get(name: str) -> Array:
        return source.weight(name).dense().astype(np.float64)

    def linear(x: Array, name: str, bias: bool) -> Array:
        return x @ get(name).T + (get(name + ".bias") if bias else 0)

    def norm(x: Array, name: str) -> Array:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_eps) * get(name)

    count, head_dim = len(tokens), config.head_dim
    factors = np.asarray(config.rope_factors or 1.0)
    angles = np.arange(count)[:, None] * (
        config.rope_theta ** (-np.arange(0, head_dim, 2) / head_dim) / factors
    )
    turn = np.exp(1j * angles)

    def heads(x: Array, number: int, rotate: bool) -> Array:
        x = x.reshape(count, number, head_dim).swapaxes(0, 1)
        if rotate:
            pairs = (x[..., : head_dim // 2] + 1j * x[..., head_dim // 2 :]) * turn
            x = np.concatenate([pairs.real, pairs.imag], -1)
        return np.repeat(x, config.num_heads // number, 0)

    x = get("embed")[tokens]
    for layer in range(config.num_layers):
        p = f"layers.{layer}."
        h = norm(x, p + "attn_norm")
        q = heads(linear(h, p + "q", config.attention_bias), config.num_heads, True)
        k = heads(linear(h, p + "k", config.attention_bias), config.num_kv_heads, True)
        v = heads(linear(h, p + "v", config.attention_bias), config.num_kv_heads, False)
        if kv is not None:
            kv.append(np.stack([k, v])[:, :: config.num_heads // config.num_kv_heads])
        scores = np.where(np.tri(count, dtype=bool), q @ k.swapaxes(1, 2) / np.sqrt(head_dim), -np.inf)
        share = np.exp(scores - scores.max(-1, keepdims=True))
        attended = (share / share.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(count, -1)
        x = x + linear(attended, p + "o", config.output_bias)
        h = norm(x, p + "mlp_norm")
        gate = linear(h, p + "gate", config.mlp_bias)
        x = x + linear(
            gate / (1 + np.exp(-gate)) * linear(h, p + "up", config.mlp_bias), p + "down", config.mlp_bias
        )
    head = get("embed" if config.tied_embeddings else "lm_head")
    return norm(x, "final_norm") @ head.T


def biases(layers: int, hidden: int, kv: int) -> dict[str, Array]:
    rng = np.random.default_rng(3)
    sizes = {"attn_q": hidden, "attn_k": kv, "attn_v": kv, "attn_output": hidden}
    sizes |= {"ffn_gate": 2 * hidden, "ffn_up": 2 * hidden, "ffn_down": hidden}
    return {f"blk.{i}.{name}.bias": rng.normal(0, 0.3, n) for i in range(layers) for name, n in sizes.items()}


CASES: dict[str, dict[str, Any]] = {
    "f32": {},
    "f16": {"matrices": GgmlType.F16},
    "bf16": {"matrices": GgmlType.BF16},
    "q8_0": {"matrices": GgmlType.Q8_0},
    "q4_0": {"matrices": GgmlType.Q4_0},
    "q4_1": {"matrices": GgmlType.Q4_1},
    "q5_1": {"matrices": GgmlType.Q5_1},
    "no grouped heads": {"kv_heads": 2},
    "four heads a group": {"hidden": 128, "heads": 4, "kv_heads": 1},
    "own head": {"tensors": {"output.weight": np.random.default_rng(5).normal(0, 0.2, (261, 64))}},
    "biases": {"tensors": biases(2, 64, 32)},
    "llama 3 rope": {
        "tensors": {"rope_freqs.weight": np.linspace(1, 8, 16)},
        "metadata": {"llama.rope.freq_base": 5e5},
    },
}


@pytest.mark.parametrize("weight_format", ["exact", "f32"])
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_definition(tiny_gguf: Callable[..., Path], case: str, weight_format: Any) -> None:
    source = GgufModel(tiny_gguf(**CASES[case]))
    runner = PagedRunner(build_decoder(source, weight_format), 2)
    expected = llama(source, TOKENS)
    for count in (1, len(TOKENS)):
        logits = runner.step([SequenceSlice(TOKENS[:count], 0, [1])])
        assert np.abs(logits[0] - expected[count - 1]).max() < 1e-4


def test_the_stateful_form_runs_too(tiny_gguf: Callable[..., Path]) -> None:
    """What is saved is an ordinary stateful model: a prompt, then one token more."""
    source = GgufModel(tiny_gguf(GgmlType.Q4_1))
    request = ov.Core().compile_model(build_decoder(source, "exact"), "CPU", F32).create_infer_request()
    expected = llama(source, TOKENS)
    past = 0
    for part in (TOKENS[:-1], TOKENS[-1:]):
        inputs = {
            "input_ids": np.array([part], np.int64),
            "attention_mask": np.ones((1, past + len(part)), np.int64),
            "position_ids": np.arange(past, past + len(part), dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        request.infer(inputs)
        logits = request.get_tensor("logits").data[0]
        assert np.abs(logits - expected[past : past + len(part)]).max() < 1e-4
        past += len(part)


@pytest.mark.parametrize("kv_precision", ["f32", "f16"])
def test_pages_of_floats_are_plain(tiny_gguf: Callable[..., Path], kv_precision: str) -> None:
    """The bytes of a block are ``(layer, kv, head, token, dim)``, as the schema without a ``format_id`` says."""
    source = GgufModel(tiny_gguf(hidden=128, heads=4, kv_heads=2, layers=3))
    runner = PagedRunner(build_decoder(source, "f32"), 4, kv_precision=kv_precision)
    schema = kv_schema_of(runner.kv_layout, runner.num_layers, runner.block_nbytes)
    assert schema.format_id == ""
    assert schema.axis_order == schema.key_order == ("layer", "kv", "head", "token", "dim")
    tokens = [index * 7 % 250 for index in range(schema.page_size + 5)]
    runner.step([SequenceSlice(tokens, 0, [3, 1])])
    expected: list[Array] = []
    llama(source, tokens, expected)
    dtype = {"fp32": np.float32, "fp16": np.float16}[schema.dtype]
    shape = (schema.num_layers, 2, schema.num_heads, schema.page_size, schema.head_dim)
    for start, block in ((0, 3), (schema.page_size, 1)):
        page = runner.read_block(block).view(dtype).reshape(shape)
        part = np.stack(expected)[:, :, :, start : start + schema.page_size]
        assert np.abs(page[:, :, :, : part.shape[3]] - part).max() < (1e-4 if dtype is np.float32 else 5e-2)


@pytest.mark.parametrize("precision", HERE)
def test_openvino_recognizes_the_parts(tiny_gguf: Callable[..., Path], precision: str) -> None:
    """Rotary embedding, norm and attention become one operation each, and quantized weights are not unpacked
    in memory where it computes in f32 or bf16.

    Where the rotary embedding is not recognized, bf16 rounds its angles, and answers decay with the length of
    the text.
    """
    model = build_decoder(GgufModel(tiny_gguf(GgmlType.Q4_1)), "exact")
    to_paged_attention(model)
    properties = {**F32, "INFERENCE_PRECISION_HINT": precision, "KV_CACHE_PRECISION": precision}
    compiled = ov.Core().compile_model(model, "CPU", properties)
    kinds = [node.get_rt_info()["layerType"].astype(str) for node in compiled.get_runtime_model().get_ops()]
    counts = {kind: kinds.count(kind) for kind in ("RoPE", "RMS", "PagedAttention")}
    assert counts == {"RoPE": 4, "RMS": 5, "PagedAttention": 2}
    weights = [
        node.get_rt_info()["runtimePrecision"].astype(str)
        for node, kind in zip(compiled.get_runtime_model().get_ops(), kinds, strict=True)
        if kind == "FullyConnected"
    ]
    assert set(weights) == {"f16" if precision == "f16" else "u4"}  # in f16 it does unpack them


def test_wrong_shapes_and_formats_are_refused(tiny_gguf: Callable[..., Path]) -> None:
    source = GgufModel(tiny_gguf(metadata={"llama.feed_forward_length": 96}))
    with pytest.raises(ModelFileError, match=r"layers.0.gate has shape \(128, 64\), expected \(96, 64\)"):
        build_decoder(source, "exact")
    with pytest.raises(InvalidRequest, match="'int3'"):
        build_decoder(source, "int3")  # type: ignore[arg-type]

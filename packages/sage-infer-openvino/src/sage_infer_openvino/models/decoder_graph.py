"""Builds the OpenVINO graph of a decoder, and converts it to paged attention.

:func:`build_decoder` builds the same stateful form as OpenVINO's exporters (one key state and one value state per
layer, each read, reordered by ``beam_idx``, appended to, and assigned), because OpenVINO's transformation to paged
attention recognizes this form. The same file therefore also runs as a plain stateful model.

Inputs of the stateful form: ``input_ids``, ``attention_mask``, ``position_ids`` i64 ``[batch, tokens]`` (the
mask covers past and present), ``beam_idx`` i32 ``[batch]``. Output: ``logits`` f32 ``[batch, tokens,
vocab]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sage_infer.errors import ModelFileError

from sage_infer_openvino.models.decoder_inputs import DecoderInputs
from sage_infer_openvino.models.decoder_weights import (
    DecoderConfig,
    DecoderSource,
    Weight,
    stacked,
)
from sage_infer_openvino.models.graph_nodes import f32, i64, matrix_node, owned, scaled, split_heads
from sage_infer_openvino.models.weight_format import WeightFormat, check_weight_format, in_format
from sage_infer_openvino.ov_runtime import ops, ov, paged_attention_transformation

__all__ = ["SAMPLED_INPUT", "build_decoder", "to_paged_attention"]

SAMPLED_INPUT = "sampled_tokens_indices"
_EMBEDDING, _LM_HEAD = "embed", "lm_head"
_LAST_OUTPUT, _LAST_RESIDUAL = "last_layer.attention.output", "last_layer.attention.residual"
_WINDOWS = ["sage_infer", "windows"]
_WINDOW_INPUT = 10
"""Index of the input ``sliding_window`` of paged attention (OpenVINO's ``paged_attention.hpp``)."""


def build_decoder(
    source: DecoderSource,
    weight_format: WeightFormat,
    progress: Callable[[float], None] | None = None,
) -> Any:
    """Build the stateful ``openvino.Model`` of ``source``. Weights are dequantized one at a time; the model owns its
    constants.

    ``progress`` is called with the fraction of completed layers, 0 to 1. Raises :class:`InvalidRequest` for an unknown
    ``weight_format``, and :class:`ModelFileError` if a weight is missing or its shape does not match the config.
    """
    check_weight_format(weight_format)
    return _DecoderBuilder(source, weight_format).build(progress or (lambda done: None))


def to_paged_attention(model: Any) -> None:
    """Convert the stateful model, in place, to paged attention over caller-owned blocks.

    Its inputs become ``input_ids`` and ``position_ids`` i64 ``[tokens]``; ``past_lens``,
    ``subsequence_begins``, ``block_indices``, ``block_indices_begins`` i32; ``max_context_len`` i32 scalar;
    ``key_cache.N`` and ``value_cache.N``; and ``sampled_tokens_indices`` i64 ``[n]``: the tokens whose logits
    are computed. After the attention of the last layer, only these tokens are computed further; this matters most for
    the projection to the vocabulary, the largest product of a small model. ``logits`` becomes ``[n, 1, vocab]``.
    """
    windows = _windows_of(model)
    paged_attention_transformation(model)
    _set_windows(model, windows)
    index = ops.parameter([-1], ov.Type.i64, name=SAMPLED_INPUT)
    index.output(0).set_names({SAMPLED_INPUT})
    for node in [op for op in model.get_ops() if op.get_friendly_name() in (_LAST_OUTPUT, _LAST_RESIDUAL)]:
        sampled = ops.gather(node.input_value(0), index, i64(0))
        node.input(0).replace_source_output(sampled.output(0))
    model.add_parameters([index])
    model.validate_nodes_and_infer_types()


def _windows_of(model: Any) -> list[int]:
    """Windows per layer, stored in the model's metadata by :func:`build_decoder`."""
    noted = str(model.get_rt_info(_WINDOWS).value).split(",") if model.has_rt_info(_WINDOWS) else []
    return [int(window) for window in noted]


def _set_windows(model: Any, windows: list[int]) -> None:
    """Set the window of each layer's paged attention, because the transformation drops the masks."""
    for node in model.get_ops():
        if windows and node.get_type_name() == "PagedAttentionExtension":
            layer = int(node.input_value(3).get_node().get_friendly_name().removeprefix("key_cache."))
            window = ops.constant(np.int32(windows[layer]))
            node.input(_WINDOW_INPUT).replace_source_output(window.output(0))


class _DecoderBuilder:
    """Builds layers from the config, the weights and the inputs."""

    def __init__(self, source: DecoderSource, weight_format: WeightFormat) -> None:
        self.source = source
        self.config: DecoderConfig = source.config
        self.weight_format = weight_format
        self.inputs = DecoderInputs(source.config)
        self.assigns: list[Any] = []

    def build(self, progress: Callable[[float], None]) -> Any:
        config = self.config
        embed = self._matrix(_EMBEDDING, (config.vocab_size, config.hidden_size))
        x = scaled(ops.gather(embed, self.inputs.ids, i64(0)), config.embedding_scale)
        for layer in range(config.num_layers):
            prefix = f"layers.{layer}."
            attended = self._attention(self._input(x, prefix + "attn_norm"), layer)
            x = ops.add(x, self._output(attended, prefix + "attn_post_norm"))
            if layer == config.num_layers - 1:
                x.set_friendly_name(_LAST_RESIDUAL)
            mixed = self._mlp(self._input(x, prefix + "mlp_norm"), prefix)
            x = ops.add(x, self._output(mixed, prefix + "mlp_post_norm"))
            progress((layer + 1) / config.num_layers)
        x = self._norm(x, "final_norm", config.hidden_size)
        head = (
            embed
            if config.tied_embeddings
            else self._matrix(_LM_HEAD, (config.vocab_size, config.hidden_size))
        )
        logits = ops.matmul(x, head, False, True)
        result = ops.result(self._logits(logits))
        result.output(0).set_names({"logits"})
        model = ov.Model([result], self.assigns, self.inputs.parameters, config.name)
        if config.windows:
            model.set_rt_info(",".join(map(str, config.windows)), _WINDOWS)
        model.validate_nodes_and_infer_types()
        return model

    def _attention(self, x: Any, layer: int) -> Any:
        config, prefix = self.config, f"layers.{layer}."
        width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        projected = self._linears(
            x, prefix, {"q": width, "k": kv_width, "v": kv_width}, config.attention_bias
        )
        q = self.inputs.rotate(self._heads(projected[0], config.num_heads, prefix + "q_norm"), layer)
        k = self.inputs.rotate(self._heads(projected[1], config.num_kv_heads, prefix + "k_norm"), layer)
        v = split_heads(projected[2], config.num_kv_heads)
        k = self._repeat_heads(self._remember(k, f"past_key_values.{layer}.key"))
        v = self._repeat_heads(self._remember(v, f"past_key_values.{layer}.value"))
        # Without a scale input the operation's default applies, 1 / sqrt(head_dim).
        scale = () if config.attention_scale is None else (f32(config.attention_scale),)
        mask = self.inputs.masks[config.window(layer)]
        attended = ops.scaled_dot_product_attention(q, k, v, mask, *scale, causal=False)
        merged = ops.reshape(ops.transpose(attended, i64([0, 2, 1, 3])), i64([0, 0, width]), True)
        output = ops.matmul(merged, self._matrix(prefix + "o", (config.hidden_size, width)), False, True)
        if layer == config.num_layers - 1:
            output.set_friendly_name(_LAST_OUTPUT)
        return (
            ops.add(output, self._vector(prefix + "o.bias", config.hidden_size))
            if config.output_bias
            else output
        )

    def _mlp(self, x: Any, prefix: str) -> Any:
        config = self.config
        up_shape = (config.intermediate_size, config.hidden_size)
        gate = self._linear(x, prefix + "gate", up_shape, config.mlp_bias)
        gate = ops.swish(gate) if config.activation == "silu" else ops.gelu(gate, "tanh")
        up = self._linear(x, prefix + "up", up_shape, config.mlp_bias)
        down_shape = (config.hidden_size, config.intermediate_size)
        return self._linear(ops.multiply(gate, up), prefix + "down", down_shape, config.mlp_bias)

    def _input(self, x: Any, name: str) -> Any:
        return self._norm(x, name, self.config.hidden_size) if self.config.input_norms else x

    def _output(self, x: Any, name: str) -> Any:
        x = self._norm(x, name, self.config.hidden_size) if self.config.output_norms else x
        return scaled(x, self.config.residual_scale)

    def _norm(self, x: Any, name: str, size: int) -> Any:
        variance = ops.reduce_mean(ops.power(x, f32(2)), i64([-1]), True)
        inverse = ops.divide(f32(1), ops.sqrt(ops.add(variance, f32(self.config.rms_eps))))
        return ops.multiply(ops.multiply(x, inverse), self._vector(name, size))

    def _heads(self, x: Any, heads: int, norm: str) -> Any:
        """``[batch, tokens, heads * d]`` → ``[batch, heads, tokens, d]``, normalized according to the config."""
        match self.config.qk_norm:
            case "head":
                return self._norm(split_heads(x, heads), norm, self.config.head_dim)
            case "width":
                return split_heads(self._norm(x, norm, heads * self.config.head_dim), heads)
            case "none":
                return split_heads(x, heads)

    def _logits(self, x: Any) -> Any:
        x, cap = scaled(x, self.config.logit_scale), self.config.logit_cap
        return x if cap is None else ops.multiply(ops.tanh(ops.divide(x, f32(cap))), f32(cap))

    def _linear(self, x: Any, name: str, shape: tuple[int, int], has_bias: bool) -> Any:
        y = ops.matmul(x, self._matrix(name, shape), False, True)
        return ops.add(y, self._vector(name + ".bias", shape[0])) if has_bias else y

    def _linears(self, x: Any, prefix: str, rows: dict[str, int], has_bias: bool) -> Sequence[Any]:
        """Several projections of one input, as one product if their matrices share a format: for few tokens, the
        overhead per product dominates.
        """
        shapes = {name: (count, self.config.hidden_size) for name, count in rows.items()}
        matrix = stacked([self._formed(prefix + name, shape) for name, shape in shapes.items()])
        if matrix is None:
            return [self._linear(x, prefix + name, shape, has_bias) for name, shape in shapes.items()]
        y = ops.matmul(x, matrix_node(matrix), False, True)
        if has_bias:
            biases = [self._weight(f"{prefix}{name}.bias", (count,)).dense() for name, count in rows.items()]
            y = ops.add(y, ops.constant(owned(np.concatenate(biases))))
        parts: Sequence[Any] = ops.variadic_split(y, i64(-1), i64(list(rows.values()))).outputs()
        return parts

    def _remember(self, current: Any, name: str) -> Any:
        """Append ``current`` ``[batch, kv_heads, tokens, head_dim]`` to the state ``name``; returns the whole state."""
        heads, head_dim = self.config.num_kv_heads, self.config.head_dim
        empty_shape = ops.concat([self.inputs.batch, i64([heads]), i64([0]), i64([head_dim])], 0)
        shape = ov.PartialShape([-1, heads, -1, head_dim])
        past = ops.read_value(ops.broadcast(f32(0), empty_shape), name, ov.Type.f32, shape)
        whole = ops.concat([ops.gather(past, self.inputs.beam, i64(0)), current], 2)
        self.assigns.append(ops.assign(whole, name))
        return whole

    def _repeat_heads(self, x: Any) -> Any:
        heads, kv_heads, head_dim = self.config.num_heads, self.config.num_kv_heads, self.config.head_dim
        if heads == kv_heads:
            return x
        # Unsqueeze, Broadcast, Reshape: the form from which the transformation reads the number of KV heads.
        copies = i64([1, 1, heads // kv_heads, 1, 1])
        repeated = ops.broadcast(ops.unsqueeze(x, i64(2)), copies, broadcast_spec="BIDIRECTIONAL")
        return ops.reshape(repeated, i64([0, heads, -1, head_dim]), True)

    def _vector(self, name: str, size: int) -> Any:
        return ops.constant(owned(self._weight(name, (size,)).dense()))

    def _matrix(self, name: str, shape: tuple[int, int]) -> Any:
        return matrix_node(self._formed(name, shape))

    def _formed(self, name: str, shape: tuple[int, int]) -> Weight:
        """A matrix in the requested weight format."""
        is_table = name in (_EMBEDDING, _LM_HEAD)
        return in_format(self._weight(name, shape), self.weight_format, is_table=is_table)

    def _weight(self, name: str, shape: tuple[int, ...]) -> Weight:
        weight = self.source.weight(name)
        if weight.shape != shape:
            raise ModelFileError(
                f"weight {name} has shape {weight.shape}, expected {shape}; the file is inconsistent"
            )
        return weight

"""Builds the OpenVINO graph of a Llama-family decoder, and turns it into its paged-attention form.

:func:`build_decoder` makes the stateful form that OpenVINO's exporters make too (a key and a value state a
layer, read, reordered by ``beam_idx``, appended to, and assigned), because that is what OpenVINO's own
transformation to paged attention recognizes. The same file therefore also runs as a plain stateful model.

Inputs of the stateful form: ``input_ids``, ``attention_mask``, ``position_ids`` i64 ``[batch, tokens]`` (the
mask covers past and present), ``beam_idx`` i32 ``[batch]``. Output: ``logits`` f32 ``[batch, tokens,
vocab]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sage_infer.errors import ModelFileError

from sage_infer_openvino.decoder_weights import (
    DecoderConfig,
    DecoderSource,
    DenseWeight,
    GroupedWeight,
    Weight,
    stacked,
)
from sage_infer_openvino.ov_runtime import ops, ov, paged_attention_transformation
from sage_infer_openvino.weight_format import WeightFormat, check_weight_format, in_format

__all__ = ["SAMPLED_INPUT", "build_decoder", "to_paged_attention"]

SAMPLED_INPUT = "sampled_tokens_indices"
_EMBEDDING, _LM_HEAD = "embed", "lm_head"
_LAST_OUTPUT, _LAST_RESIDUAL = "last_layer.attention.output", "last_layer.attention.residual"


def build_decoder(
    source: DecoderSource,
    weight_format: WeightFormat,
    progress: Callable[[float], None] | None = None,
) -> Any:
    """The stateful ``openvino.Model`` of ``source``. One weight at a time is dequantized; the model owns its
    constants.

    ``progress`` is called with the part of the layers that is done, 0 to 1. Raises :class:`InvalidRequest`
    for another ``weight_format``, and :class:`ModelFileError` when a weight is missing or does not have the
    shape that the config says.
    """
    check_weight_format(weight_format)
    return _DecoderBuilder(source, weight_format).build(progress or (lambda done: None))


def to_paged_attention(model: Any) -> None:
    """Rewrites the stateful model, in place, to paged attention over caller-owned blocks.

    Its inputs become ``input_ids`` and ``position_ids`` i64 ``[tokens]``; ``past_lens``,
    ``subsequence_begins``, ``block_indices``, ``block_indices_begins`` i32; ``max_context_len`` i32 scalar;
    ``key_cache.N`` and ``value_cache.N``; and ``sampled_tokens_indices`` i64 ``[n]``: the tokens whose logits
    are computed. Once the last layer has attended, the others are of no use: what follows (the vocabulary's
    projection above all, the largest product of a small model) runs for these only. ``logits`` becomes
    ``[n, 1, vocab]``.
    """
    paged_attention_transformation(model)
    index = ops.parameter([-1], ov.Type.i64, name=SAMPLED_INPUT)
    index.output(0).set_names({SAMPLED_INPUT})
    for node in [op for op in model.get_ops() if op.get_friendly_name() in (_LAST_OUTPUT, _LAST_RESIDUAL)]:
        sampled = ops.gather(node.input_value(0), index, _i64(0))
        node.input(0).replace_source_output(sampled.output(0))
    model.add_parameters([index])
    model.validate_nodes_and_infer_types()


class _DecoderBuilder:
    """Holds what every layer needs: the config, the inputs, the rotary tables and the mask."""

    def __init__(self, source: DecoderSource, weight_format: WeightFormat) -> None:
        self.source = source
        self.config: DecoderConfig = source.config
        self.weight_format = weight_format
        self.ids = _parameter("input_ids", [-1, -1], ov.Type.i64)
        self.mask = _parameter("attention_mask", [-1, -1], ov.Type.i64)
        self.positions = _parameter("position_ids", [-1, -1], ov.Type.i64)
        self.beam = _parameter("beam_idx", [-1], ov.Type.i32)
        self.batch = _dimension(self.ids, 0)
        self.cos, self.sin = self._rotary_tables()
        self.allowed = self._causal_mask()
        self.assigns: list[Any] = []

    def build(self, progress: Callable[[float], None]) -> Any:
        config = self.config
        embed = self._matrix(_EMBEDDING, (config.vocab_size, config.hidden_size))
        x = ops.gather(embed, self.ids, _i64(0))
        for layer in range(config.num_layers):
            prefix = f"layers.{layer}."
            x = ops.add(x, self._attention(self._norm(x, prefix + "attn_norm"), layer))
            if layer == config.num_layers - 1:
                x.set_friendly_name(_LAST_RESIDUAL)
            x = ops.add(x, self._mlp(self._norm(x, prefix + "mlp_norm"), prefix))
            progress((layer + 1) / config.num_layers)
        x = self._norm(x, "final_norm")
        head = (
            embed
            if config.tied_embeddings
            else self._matrix(_LM_HEAD, (config.vocab_size, config.hidden_size))
        )
        logits = ops.matmul(x, head, False, True)
        result = ops.result(logits)
        result.output(0).set_names({"logits"})
        parameters = [self.ids, self.mask, self.positions, self.beam]
        model = ov.Model([result], self.assigns, parameters, config.name)
        model.validate_nodes_and_infer_types()
        return model

    def _attention(self, x: Any, layer: int) -> Any:
        config, prefix = self.config, f"layers.{layer}."
        width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        projected = self._linears(
            x, prefix, {"q": width, "k": kv_width, "v": kv_width}, config.attention_bias
        )
        heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        q, k, v = map(_split_heads, projected, heads)
        k = self._repeat_heads(self._remember(self._rotate(k), f"past_key_values.{layer}.key"))
        v = self._repeat_heads(self._remember(v, f"past_key_values.{layer}.value"))
        # Without a scale input the operation's default applies, 1 / sqrt(head_dim).
        attended = ops.scaled_dot_product_attention(self._rotate(q), k, v, self.allowed, causal=False)
        merged = ops.reshape(ops.transpose(attended, _i64([0, 2, 1, 3])), _i64([0, 0, width]), True)
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
        gate = ops.swish(self._linear(x, prefix + "gate", up_shape, config.mlp_bias))
        up = self._linear(x, prefix + "up", up_shape, config.mlp_bias)
        down_shape = (config.hidden_size, config.intermediate_size)
        return self._linear(ops.multiply(gate, up), prefix + "down", down_shape, config.mlp_bias)

    def _norm(self, x: Any, name: str) -> Any:
        gamma = self._vector(name, self.config.hidden_size)
        variance = ops.reduce_mean(ops.power(x, _f32(2)), _i64([-1]), True)
        inverse = ops.divide(_f32(1), ops.sqrt(ops.add(variance, _f32(self.config.rms_eps))))
        return ops.multiply(ops.multiply(x, inverse), gamma)

    def _linear(self, x: Any, name: str, shape: tuple[int, int], has_bias: bool) -> Any:
        y = ops.matmul(x, self._matrix(name, shape), False, True)
        return ops.add(y, self._vector(name + ".bias", shape[0])) if has_bias else y

    def _linears(self, x: Any, prefix: str, rows: dict[str, int], has_bias: bool) -> Sequence[Any]:
        """Several projections of one input: as one product where their matrices share a form, since for a few
        tokens every product costs its start, not its size.
        """
        shapes = {name: (count, self.config.hidden_size) for name, count in rows.items()}
        matrix = stacked([self._formed(prefix + name, shape) for name, shape in shapes.items()])
        if matrix is None:
            return [self._linear(x, prefix + name, shape, has_bias) for name, shape in shapes.items()]
        y = ops.matmul(x, _matrix_node(matrix), False, True)
        if has_bias:
            biases = [self._weight(f"{prefix}{name}.bias", (count,)).dense() for name, count in rows.items()]
            y = ops.add(y, ops.constant(_owned(np.concatenate(biases))))
        parts: Sequence[Any] = ops.variadic_split(y, _i64(-1), _i64(list(rows.values()))).outputs()
        return parts

    def _remember(self, current: Any, name: str) -> Any:
        """Appends ``current`` ``[batch, kv_heads, tokens, head_dim]`` to the state ``name``; the whole state
        is returned.
        """
        heads, head_dim = self.config.num_kv_heads, self.config.head_dim
        empty_shape = ops.concat([self.batch, _i64([heads]), _i64([0]), _i64([head_dim])], 0)
        shape = ov.PartialShape([-1, heads, -1, head_dim])
        past = ops.read_value(ops.broadcast(_f32(0), empty_shape), name, ov.Type.f32, shape)
        whole = ops.concat([ops.gather(past, self.beam, _i64(0)), current], 2)
        self.assigns.append(ops.assign(whole, name))
        return whole

    def _repeat_heads(self, x: Any) -> Any:
        heads, kv_heads, head_dim = self.config.num_heads, self.config.num_kv_heads, self.config.head_dim
        if heads == kv_heads:
            return x
        # Unsqueeze, Broadcast, Reshape: the form from which the transformation reads the number of KV heads.
        copies = _i64([1, 1, heads // kv_heads, 1, 1])
        repeated = ops.broadcast(ops.unsqueeze(x, _i64(2)), copies, broadcast_spec="BIDIRECTIONAL")
        return ops.reshape(repeated, _i64([0, heads, -1, head_dim]), True)

    def _rotate(self, x: Any) -> Any:
        """Rotary embedding of ``[batch, heads, tokens, head_dim]``, halves against each other (Hugging Face's
        order).
        """
        half = self.config.head_dim // 2
        first, second = ops.variadic_split(x, _i64(3), _i64([half, half])).outputs()
        turned = ops.concat([ops.multiply(second, _f32(-1)), first], -1)
        return ops.add(ops.multiply(x, self.cos), ops.multiply(turned, self.sin))

    def _rotary_tables(self) -> tuple[Any, Any]:
        """Cosine and sine of every token's angles, ``[batch, 1, tokens, head_dim]``."""
        frequencies = ops.constant(self.config.inverse_frequencies().reshape(1, 1, -1))
        position = ops.convert(ops.unsqueeze(self.positions, _i64(2)), "f32")
        angles = ops.multiply(position, frequencies)
        both = ops.concat([angles, angles], -1)
        return ops.unsqueeze(ops.cos(both), _i64(1)), ops.unsqueeze(ops.sin(both), _i64(1))

    def _causal_mask(self) -> Any:
        """Which keys a query may see, boolean ``[batch, 1, tokens, past + tokens]``. Paged attention drops
        it.
        """
        total, current = _dimension(self.mask, 1), _dimension(self.ids, 1)
        scalar = _i64(np.zeros(0, np.int64))
        end, count = ops.reshape(total, scalar, False), ops.reshape(current, scalar, False)
        keys = ops.range(_i64(0), end, _i64(1), "i64")
        queries = ops.range(ops.subtract(end, count), end, _i64(1), "i64")
        causal = ops.less_equal(ops.unsqueeze(keys, _i64(0)), ops.unsqueeze(queries, _i64(1)))
        present = ops.unsqueeze(ops.convert(self.mask, "boolean"), _i64([1, 2]))
        return ops.logical_and(ops.unsqueeze(causal, _i64([0, 1])), present)

    def _vector(self, name: str, size: int) -> Any:
        return ops.constant(_owned(self._weight(name, (size,)).dense()))

    def _matrix(self, name: str, shape: tuple[int, int]) -> Any:
        return _matrix_node(self._formed(name, shape))

    def _formed(self, name: str, shape: tuple[int, int]) -> Weight:
        """A matrix in the weight format that was asked for."""
        is_table = name in (_EMBEDDING, _LM_HEAD)
        return in_format(self._weight(name, shape), self.weight_format, is_table=is_table)

    def _weight(self, name: str, shape: tuple[int, ...]) -> Weight:
        weight = self.source.weight(name)
        if weight.shape != shape:
            raise ModelFileError(
                f"weight {name} has shape {weight.shape}, expected {shape}; the file is inconsistent"
            )
        return weight


def _matrix_node(weight: Weight) -> Any:
    return _grouped_node(weight) if isinstance(weight, GroupedWeight) else _dense_node(weight)


def _dense_node(weight: DenseWeight) -> Any:
    types = {"f32": ov.Type.f32, "f16": ov.Type.f16, "bf16": ov.Type.bf16}
    node = _constant(weight.values, weight.shape, types[weight.type])
    return node if weight.type == "f32" else ops.convert(node, "f32")


def _grouped_node(weight: GroupedWeight) -> Any:
    """``(convert(quants) - zero_point) * scale``: what the plug-ins recognize as a compressed weight and keep
    so.
    """
    quants, scale, zero_point = weight.affine()
    if weight.bits == 4:
        # OpenVINO packs the earlier value into the low nibble.
        packed = quants[..., 0::2] | (quants[..., 1::2] << 4)
        node = _constant(packed, quants.shape, ov.Type.u4)
    else:
        node = _constant(quants, quants.shape, ov.Type.i8)
    node = ops.convert(node, "f32")
    if zero_point is not None:
        node = ops.subtract(node, ops.constant(_owned(zero_point[..., None])))
    node = ops.multiply(node, ops.constant(_owned(scale[..., None])))
    return ops.reshape(node, _i64(list(weight.shape)), False)


def _constant(values: npt.NDArray[Any], shape: tuple[int, ...], element: Any) -> Any:
    # The tensor borrows NumPy's memory, so the constant must copy it: nothing would keep the array alive.
    return ops.constant(ov.Tensor(_owned(values), ov.Shape(list(shape)), element), shared_memory=False)


def _owned(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A plain aligned array: OpenVINO converts views of a memory map element by element, in minutes."""
    return np.array(values, order="C", copy=True, subok=False)


def _parameter(name: str, shape: list[int], element: Any) -> Any:
    node = ops.parameter(shape, element, name=name)
    node.output(0).set_names({name})
    return node


def _dimension(node: Any, axis: int) -> Any:
    """The size of one axis, as i64 ``[1]``."""
    return ops.gather(ops.shape_of(node), _i64([axis]), _i64(0))


def _split_heads(x: Any, heads: int) -> Any:
    """``[batch, tokens, heads * d]`` → ``[batch, heads, tokens, d]``."""
    return ops.transpose(ops.reshape(x, _i64([0, 0, heads, -1]), True), _i64([0, 2, 1, 3]))


def _i64(value: Any) -> Any:
    return ops.constant(np.asarray(value, dtype=np.int64))


def _f32(value: float) -> Any:
    return ops.constant(np.float32(value))

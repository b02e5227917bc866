"""Builds the OpenVINO graph of a decoder, and turns it into its paged-attention form.

:func:`build_decoder` makes the stateful form that OpenVINO's exporters make too (a key and a value state a
layer, read, reordered by ``beam_idx``, appended to, and assigned), because that is what OpenVINO's own
transformation to paged attention recognizes. The same file therefore also runs as a plain stateful model.

Inputs of the stateful form: ``input_ids``, ``attention_mask``, ``position_ids`` i64 ``[batch, tokens]`` (the
mask covers past and present), ``beam_idx`` i32 ``[batch]``. Output: ``logits`` f32 ``[batch, tokens,
vocab]``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sage_infer.errors import InvalidRequest, ModelFileError

from sage_infer_openvino.decoder_weights import (
    DecoderConfig,
    DecoderSource,
    DenseWeight,
    GroupedWeight,
    Weight,
)
from sage_infer_openvino.ov_runtime import ops, ov, paged_attention_transformation

__all__ = ["SAMPLED_INPUT", "WeightFormat", "build_decoder", "to_paged_attention"]

WeightFormat = Literal["exact", "f32"]
"""``exact``: weights stay in the file's type, at its size; ``f32``: all dequantized. The values are the
same.
"""

SAMPLED_INPUT = "sampled_tokens_indices"
_LM_HEAD = "lm_head"
_WINDOWS = ["sage_infer", "windows"]
_WINDOW_INPUT = 10
"""Place of ``sliding_window`` among paged attention's inputs (OpenVINO's ``paged_attention.hpp``)."""


def build_decoder(
    source: DecoderSource,
    weight_format: WeightFormat = "exact",
    progress: Callable[[float], None] | None = None,
) -> Any:
    """The stateful ``openvino.Model`` of ``source``. One weight at a time is dequantized; the model owns its
    constants.

    ``progress`` is called with the part of the layers that is done, 0 to 1. Raises :class:`InvalidRequest`
    for another ``weight_format``, and :class:`ModelFileError` when a weight is missing or does not have the
    shape that the config says.
    """
    if weight_format not in ("exact", "f32"):
        raise InvalidRequest(f"weight_format is {weight_format!r}, expected 'exact' or 'f32'")
    return _DecoderBuilder(source, weight_format).build(progress or (lambda done: None))


def to_paged_attention(model: Any) -> None:
    """Rewrites the stateful model, in place, to paged attention over caller-owned blocks.

    Its inputs become ``input_ids`` and ``position_ids`` i64 ``[tokens]``; ``past_lens``,
    ``subsequence_begins``, ``block_indices``, ``block_indices_begins`` i32; ``max_context_len`` i32 scalar;
    ``key_cache.N`` and ``value_cache.N``; and ``sampled_tokens_indices`` i64 ``[n]``: the tokens whose logits
    are computed. The vocabulary's projection is the largest product of a small model, so it must not run for
    every token of a prompt. ``logits`` becomes ``[n, 1, vocab]``.
    """
    windows = _windows_of(model)
    paged_attention_transformation(model)
    _set_windows(model, windows)
    lm_head = next(node for node in model.get_ops() if node.get_friendly_name() == _LM_HEAD)
    index = ops.parameter([-1], ov.Type.i64, name=SAMPLED_INPUT)
    index.output(0).set_names({SAMPLED_INPUT})
    hidden = lm_head.input_value(0)
    lm_head.input(0).replace_source_output(ops.gather(hidden, index, _i64(0)).output(0))
    model.add_parameters([index])
    model.validate_nodes_and_infer_types()


def _windows_of(model: Any) -> list[int]:
    """What :func:`build_decoder` noted in the model, which its file keeps."""
    return (
        [int(text) for text in str(model.get_rt_info(_WINDOWS).value).split(",")]
        if _has_windows(model)
        else []
    )


def _has_windows(model: Any) -> bool:
    return bool(model.has_rt_info(_WINDOWS))


def _set_windows(model: Any, windows: list[int]) -> None:
    """Tells each layer's paged attention its window: the transformation drops the masks that say so."""
    for node in model.get_ops():
        if windows and node.get_type_name() == "PagedAttentionExtension":
            layer = int(node.input_value(3).get_node().get_friendly_name().removeprefix("key_cache."))
            window = ops.constant(np.int32(windows[layer]))
            node.input(_WINDOW_INPUT).replace_source_output(window.output(0))


class _DecoderBuilder:
    """Holds what every layer needs: the config, the inputs, the rotary tables and the masks."""

    def __init__(self, source: DecoderSource, weight_format: WeightFormat) -> None:
        self.source = source
        self.config: DecoderConfig = source.config
        self.weight_format = weight_format
        self.ids = _parameter("input_ids", [-1, -1], ov.Type.i64)
        self.mask = _parameter("attention_mask", [-1, -1], ov.Type.i64)
        self.positions = _parameter("position_ids", [-1, -1], ov.Type.i64)
        self.beam = _parameter("beam_idx", [-1], ov.Type.i32)
        self.batch = _dimension(self.ids, 0)
        self.rotary = {local: self._rotary_tables(local) for local in self._rotary_kinds()}
        self.masks = {window: self._causal_mask(window) for window in set(self.config.windows or (0,))}
        self.assigns: list[Any] = []

    def build(self, progress: Callable[[float], None]) -> Any:
        config = self.config
        embed = self._matrix("embed", (config.vocab_size, config.hidden_size))
        x = _scaled(ops.gather(embed, self.ids, _i64(0)), config.embedding_scale)
        for layer in range(config.num_layers):
            prefix = f"layers.{layer}."
            attended = self._attention(self._input(x, prefix + "attn_norm"), layer)
            x = ops.add(x, self._output(attended, prefix + "attn_post_norm"))
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
        logits.set_friendly_name(_LM_HEAD)
        result = ops.result(self._logits(logits))
        result.output(0).set_names({"logits"})
        parameters = [self.ids, self.mask, self.positions, self.beam]
        model = ov.Model([result], self.assigns, parameters, config.name)
        if config.windows:
            model.set_rt_info(",".join(map(str, config.windows)), _WINDOWS)
        model.validate_nodes_and_infer_types()
        return model

    def _attention(self, x: Any, layer: int) -> Any:
        config, prefix = self.config, f"layers.{layer}."
        width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        bias = config.attention_bias
        q = self._linear(x, prefix + "q", (width, config.hidden_size), bias)
        k = self._linear(x, prefix + "k", (kv_width, config.hidden_size), bias)
        v = self._linear(x, prefix + "v", (kv_width, config.hidden_size), bias)
        q = self._rotate(self._heads(q, config.num_heads, prefix + "q_norm"), layer)
        k = self._rotate(self._heads(k, config.num_kv_heads, prefix + "k_norm"), layer)
        v = _split_heads(v, config.num_kv_heads)
        k = self._repeat_heads(self._remember(k, f"past_key_values.{layer}.key"))
        v = self._repeat_heads(self._remember(v, f"past_key_values.{layer}.value"))
        # Without a scale input the operation's default applies, 1 / sqrt(head_dim).
        scale = () if config.attention_scale is None else (_f32(config.attention_scale),)
        mask = self.masks[config.window(layer)]
        attended = ops.scaled_dot_product_attention(q, k, v, mask, *scale, causal=False)
        merged = ops.reshape(ops.transpose(attended, _i64([0, 2, 1, 3])), _i64([0, 0, width]), True)
        return self._linear(merged, prefix + "o", (config.hidden_size, width), config.output_bias)

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
        return _scaled(x, self.config.residual_scale)

    def _norm(self, x: Any, name: str, size: int) -> Any:
        variance = ops.reduce_mean(ops.power(x, _f32(2)), _i64([-1]), True)
        inverse = ops.divide(_f32(1), ops.sqrt(ops.add(variance, _f32(self.config.rms_eps))))
        return ops.multiply(ops.multiply(x, inverse), self._vector(name, size))

    def _heads(self, x: Any, heads: int, norm: str) -> Any:
        """``[batch, tokens, heads * d]`` → ``[batch, heads, tokens, d]``, normalized as the model has it."""
        match self.config.qk_norm:
            case "head":
                return self._norm(_split_heads(x, heads), norm, self.config.head_dim)
            case "width":
                return _split_heads(self._norm(x, norm, heads * self.config.head_dim), heads)
            case "none":
                return _split_heads(x, heads)

    def _logits(self, x: Any) -> Any:
        x, cap = _scaled(x, self.config.logit_scale), self.config.logit_cap
        return x if cap is None else ops.multiply(ops.tanh(ops.divide(x, _f32(cap))), _f32(cap))

    def _linear(self, x: Any, name: str, shape: tuple[int, int], has_bias: bool) -> Any:
        y = ops.matmul(x, self._matrix(name, shape), False, True)
        return ops.add(y, self._vector(name + ".bias", shape[0])) if has_bias else y

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

    def _rotate(self, x: Any, layer: int) -> Any:
        """Rotary embedding of ``[batch, heads, tokens, head_dim]``, halves against each other (Hugging Face's
        order).
        """
        config = self.config
        if layer in config.unrotated_layers:
            return x
        cos, sin = self.rotary[self._is_local(layer)]
        width = config.rotary_dim or config.head_dim
        rest: list[Any] = []
        if width < config.head_dim:
            x, *rest = ops.variadic_split(x, _i64(3), _i64([width, config.head_dim - width])).outputs()
        first, second = ops.variadic_split(x, _i64(3), _i64([width // 2, width // 2])).outputs()
        turned = ops.concat([ops.multiply(second, _f32(-1)), first], -1)
        rotated = ops.add(ops.multiply(x, cos), ops.multiply(turned, sin))
        return ops.concat([rotated, *rest], -1) if rest else rotated

    def _is_local(self, layer: int) -> bool:
        return self.config.local_rope_theta is not None and self.config.window(layer) > 0

    def _rotary_kinds(self) -> set[bool]:
        return {self._is_local(layer) for layer in range(self.config.num_layers)}

    def _rotary_tables(self, local: bool) -> tuple[Any, Any]:
        """Cosine and sine of every token's angles, ``[batch, 1, tokens, rotary_dim]``."""
        frequencies = ops.constant(self.config.inverse_frequencies(local).reshape(1, 1, -1))
        position = ops.convert(ops.unsqueeze(self.positions, _i64(2)), "f32")
        angles = ops.multiply(position, frequencies)
        both = ops.concat([angles, angles], -1)
        scale = 1.0 if local else self.config.rope_scale
        cos, sin = (_scaled(table, scale) for table in (ops.cos(both), ops.sin(both)))
        return ops.unsqueeze(cos, _i64(1)), ops.unsqueeze(sin, _i64(1))

    def _causal_mask(self, window: int) -> Any:
        """Which keys a query may see, boolean ``[batch, 1, tokens, past + tokens]``. Paged attention drops
        it.
        """
        total, current = _dimension(self.mask, 1), _dimension(self.ids, 1)
        scalar = _i64(np.zeros(0, np.int64))
        end, count = ops.reshape(total, scalar, False), ops.reshape(current, scalar, False)
        keys = ops.unsqueeze(ops.range(_i64(0), end, _i64(1), "i64"), _i64(0))
        queries = ops.unsqueeze(ops.range(ops.subtract(end, count), end, _i64(1), "i64"), _i64(1))
        seen = ops.less_equal(keys, queries)
        if window:
            seen = ops.logical_and(seen, ops.greater(keys, ops.subtract(queries, _i64(window))))
        present = ops.unsqueeze(ops.convert(self.mask, "boolean"), _i64([1, 2]))
        return ops.logical_and(ops.unsqueeze(seen, _i64([0, 1])), present)

    def _vector(self, name: str, size: int) -> Any:
        return ops.constant(_owned(self._weight(name, (size,)).dense()))

    def _matrix(self, name: str, shape: tuple[int, int]) -> Any:
        weight = self._weight(name, shape)
        if self.weight_format == "f32":
            return _constant(weight.dense(), shape, ov.Type.f32)
        return _grouped_node(weight) if isinstance(weight, GroupedWeight) else _dense_node(weight)

    def _weight(self, name: str, shape: tuple[int, ...]) -> Weight:
        weight = self.source.weight(name)
        if weight.shape != shape:
            raise ModelFileError(
                f"weight {name} has shape {weight.shape}, expected {shape}; the file is inconsistent"
            )
        return weight


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


def _scaled(x: Any, factor: float) -> Any:
    return x if factor == 1.0 else ops.multiply(x, _f32(factor))


def _split_heads(x: Any, heads: int) -> Any:
    """``[batch, tokens, heads * d]`` → ``[batch, heads, tokens, d]``."""
    return ops.transpose(ops.reshape(x, _i64([0, 0, heads, -1]), True), _i64([0, 2, 1, 3]))


def _i64(value: Any) -> Any:
    return ops.constant(np.asarray(value, dtype=np.int64))


def _f32(value: float) -> Any:
    return ops.constant(np.float32(value))

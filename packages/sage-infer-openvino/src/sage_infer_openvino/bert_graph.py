"""Builds the OpenVINO graph of a BERT sentence encoder: token ids in, one vector a text out.

The graph follows transformers' ``BertModel`` and, for what comes after it, sentence-transformers' ``Pooling``
and ``Normalize``. Inputs: ``input_ids`` and ``attention_mask`` i64 ``[batch, tokens]`` (the mask is 1 for
tokens, 0 for padding). Output: ``embeddings`` f32 ``[batch, hidden]``.
"""

from __future__ import annotations

from typing import Any, Literal

import attrs
import numpy as np

from sage_infer_openvino.ov_runtime import ops, ov
from sage_infer_openvino.safetensors_file import SafetensorsFolder

__all__ = ["Activation", "BertConfig", "Pooling", "build_bert"]

Pooling = Literal["mean", "cls"]
Activation = Literal["gelu", "gelu_tanh", "relu"]


@attrs.frozen(kw_only=True)
class BertConfig:
    """Dimensions of a BERT encoder, and what becomes of its last hidden states."""

    num_layers: int
    hidden_size: int
    num_heads: int
    max_positions: int
    """Rows of the position table: no text may have more tokens."""
    vocab_size: int
    layer_norm_eps: float
    activation: Activation
    pooling: Pooling
    normalize: bool


def build_bert(config: BertConfig, tensors: SafetensorsFolder) -> Any:
    """The ``openvino.Model`` of one encoder. Raises ``ModelFileError`` when a tensor is missing."""
    return _BertBuilder(config, tensors).build()


class _BertBuilder:
    def __init__(self, config: BertConfig, tensors: SafetensorsFolder) -> None:
        self.config = config
        self.tensors = tensors
        # Checkpoints of a task model (BertForMaskedLM) have the encoder under "bert.".
        self.prefix = "bert." if "bert.embeddings.word_embeddings.weight" in tensors else ""

    def build(self) -> Any:
        config = self.config
        ids = ops.parameter([-1, -1], ov.Type.i64, name="input_ids")
        mask = ops.parameter([-1, -1], ov.Type.i64, name="attention_mask")
        for parameter in (ids, mask):
            parameter.output(0).set_names({parameter.get_friendly_name()})
        present = ops.convert(mask, "f32")
        penalty = ops.multiply(ops.subtract(_f32(1), ops.unsqueeze(present, _i64([1, 2]))), _f32(-1e9))
        x = self._embed(ids)
        for layer in range(config.num_layers):
            x = self._layer(x, penalty, f"encoder.layer.{layer}.")
        if config.pooling == "mean":
            weights = ops.unsqueeze(present, _i64(2))
            total = ops.reduce_sum(ops.multiply(x, weights), _i64([1]))
            x = ops.divide(total, ops.maximum(ops.reduce_sum(weights, _i64([1])), _f32(1e-9)))
        else:
            x = ops.gather(x, _i64(0), _i64(1))
        if config.normalize:
            x = ops.normalize_l2(x, _i64([1]), 1e-12, "max")
        result = ops.result(x)
        result.output(0).set_names({"embeddings"})
        return ov.Model([result], [ids, mask], "bert")

    def _embed(self, ids: Any) -> Any:
        words, positions = (
            self._weight("embeddings.word_embeddings"),
            self._weight("embeddings.position_embeddings"),
        )
        # One text is one segment, whose type is 0.
        first_type = ops.constant(
            self.tensors.weight(self.prefix + "embeddings.token_type_embeddings.weight").dense()[0].copy()
        )
        length = ops.gather(ops.shape_of(ids), _i64(1), _i64(0))
        position = ops.range(_i64(0), length, _i64(1), "i64")
        placed = ops.unsqueeze(ops.gather(positions, position, _i64(0)), _i64(0))
        x = ops.add(ops.add(ops.gather(words, ids, _i64(0)), placed), first_type)
        return self._layer_norm(x, "embeddings.LayerNorm")

    def _layer(self, x: Any, penalty: Any, prefix: str) -> Any:
        config = self.config
        q, k, v = (
            self._heads(self._linear(x, f"{prefix}attention.self.{part}"))
            for part in ("query", "key", "value")
        )
        attended = ops.scaled_dot_product_attention(q, k, v, penalty)
        merged = ops.reshape(
            ops.transpose(attended, _i64([0, 2, 1, 3])), _i64([0, 0, config.hidden_size]), True
        )
        x = ops.add(self._linear(merged, prefix + "attention.output.dense"), x)
        x = self._layer_norm(x, prefix + "attention.output.LayerNorm")
        inner = self._linear(x, prefix + "intermediate.dense")
        if config.activation == "relu":
            inner = ops.relu(inner)
        else:
            inner = ops.gelu(inner, "erf" if config.activation == "gelu" else "tanh")
        return self._layer_norm(
            ops.add(self._linear(inner, prefix + "output.dense"), x), prefix + "output.LayerNorm"
        )

    def _heads(self, x: Any) -> Any:
        """``[batch, tokens, hidden]`` → ``[batch, heads, tokens, head_dim]``."""
        return ops.transpose(
            ops.reshape(x, _i64([0, 0, self.config.num_heads, -1]), True), _i64([0, 2, 1, 3])
        )

    def _linear(self, x: Any, name: str) -> Any:
        return ops.add(ops.matmul(x, self._weight(name), False, True), self._weight(name, "bias"))

    def _layer_norm(self, x: Any, name: str) -> Any:
        centered = ops.mvn(x, _i64([-1]), True, self.config.layer_norm_eps, "inside_sqrt")
        return ops.add(ops.multiply(centered, self._weight(name)), self._weight(name, "bias"))

    def _weight(self, name: str, kind: str = "weight") -> Any:
        # dense() copies: OpenVINO converts views of a memory map element by element, in minutes.
        return ops.constant(self.tensors.weight(f"{self.prefix}{name}.{kind}").dense())


def _i64(value: Any) -> Any:
    return ops.constant(np.asarray(value, dtype=np.int64))


def _f32(value: float) -> Any:
    return ops.constant(np.float32(value))

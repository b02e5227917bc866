"""Builds the OpenVINO graph of a BERT encoder with its head, from token ids to a vector or a score.

The graph follows transformers' ``BertModel``, ``RobertaModel``, ``XLMRobertaModel``, ``DistilBertModel`` and their
``…ForSequenceClassification``, and sentence-transformers' ``Pooling``, ``Dense`` and ``Normalize``. Inputs:
``input_ids`` and ``attention_mask`` i64 ``[batch, tokens]`` (the mask is 1 for tokens and 0 for padding at the end),
and for scores of pairs also ``token_type_ids``. Output: ``rows`` f32 ``[batch, dimension]``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sage_infer.errors import ModelFileError, UnsupportedFeature

from sage_infer_openvino.encoder.config import BertConfig, DenseStep, EncoderConfig, Pooling, ScoreHead
from sage_infer_openvino.models.safetensors_file import SafetensorsFolder
from sage_infer_openvino.ov_runtime import ops, ov

__all__ = ["build_bert"]

_PREFIXES = ("", "bert.", "roberta.", "distilbert.")
"""Prefix of a checkpoint's tensor names: empty for the bare encoder, the family name with a task head."""

_LAYER = {
    "prefix": "encoder.layer.",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "merge": "attention.output.dense",
    "merge_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "down_norm": "output.LayerNorm",
}
_DISTILBERT_LAYER = {
    "prefix": "transformer.layer.",
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "merge": "attention.out_lin",
    "merge_norm": "sa_layer_norm",
    "up": "ffn.lin1",
    "down": "ffn.lin2",
    "down_norm": "output_layer_norm",
}

_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": lambda x: ops.gelu(x, "erf"),
    "gelu_tanh": lambda x: ops.gelu(x, "tanh"),
    "identity": lambda x: x,
    "relu": ops.relu,
    "sigmoid": ops.sigmoid,
    "tanh": ops.tanh,
}


def build_bert(config: EncoderConfig, tensors: SafetensorsFolder) -> Any:
    """The ``openvino.Model`` of one encoder.

    Raises :class:`ModelFileError` when a tensor is missing, and :class:`UnsupportedFeature` when a classifier has
    more than one label.
    """
    return _BertBuilder(config, tensors).build()


class _BertBuilder:
    def __init__(self, config: EncoderConfig, tensors: SafetensorsFolder) -> None:
        self.config: BertConfig = config.bert
        self.head = config.head
        self.tensors = tensors
        self.names = _DISTILBERT_LAYER if config.bert.family == "distilbert" else _LAYER
        words = "embeddings.word_embeddings.weight"
        self.prefix = next((prefix for prefix in _PREFIXES if prefix + words in tensors), "")

    def build(self) -> Any:
        ids, mask = self._parameter("input_ids"), self._parameter("attention_mask")
        inputs = [ids, mask]
        if self.config.pair_types:
            inputs.append(self._parameter("token_type_ids"))
        present = ops.convert(mask, "f32")
        penalty = ops.multiply(ops.subtract(_f32(1), ops.unsqueeze(present, _i64([1, 2]))), _f32(-1e9))
        x = self._embed(ids, inputs[2] if self.config.pair_types else None)
        for layer in range(self.config.num_layers):
            x = self._layer(x, penalty, f"{self.prefix}{self.names['prefix']}{layer}.")
        x = self._score(x, self.head) if isinstance(self.head, ScoreHead) else self._vector(x, present)
        result = ops.result(x)
        result.output(0).set_names({"rows"})
        return ov.Model([result], inputs, "bert")

    def _parameter(self, name: str) -> Any:
        parameter = ops.parameter([-1, -1], ov.Type.i64, name=name)
        parameter.output(0).set_names({name})
        return parameter

    # --- the encoder

    def _embed(self, ids: Any, types: Any | None) -> Any:
        words, places = (
            self._weight(f"{self.prefix}embeddings.{kind}_embeddings.weight") for kind in ("word", "position")
        )
        x = ops.add(ops.gather(words, ids, _i64(0)), ops.gather(places, self._positions(ids), _i64(0)))
        if self.config.family != "distilbert":
            table = self._weight(f"{self.prefix}embeddings.token_type_embeddings.weight")
            x = ops.add(x, ops.gather(table, _i64(0) if types is None else types, _i64(0)))
        return self._layer_norm(x, f"{self.prefix}embeddings.LayerNorm")

    def _positions(self, ids: Any) -> Any:
        padding = self.config.padding_position
        if padding is None:
            length = ops.gather(ops.shape_of(ids), _i64(1), _i64(0))
            return ops.unsqueeze(ops.range(_i64(0), length, _i64(1), "i64"), _i64(0))
        # RoBERTa counts tokens without padding, starting after the padding position.
        token = ops.convert(ops.not_equal(ids, _i64(padding)), "i64")
        return ops.add(ops.multiply(ops.cum_sum(token, _i64(1)), token), _i64(padding))

    def _layer(self, x: Any, penalty: Any, prefix: str) -> Any:
        name = {part: prefix + own for part, own in self.names.items()}
        q, k, v = (self._heads(self._linear(x, name[part])) for part in ("query", "key", "value"))
        attended = ops.scaled_dot_product_attention(q, k, v, penalty)
        merged = ops.reshape(
            ops.transpose(attended, _i64([0, 2, 1, 3])), _i64([0, 0, self.config.hidden_size]), True
        )
        x = self._layer_norm(ops.add(self._linear(merged, name["merge"]), x), name["merge_norm"])
        inner = _ACTIVATIONS[self.config.activation](self._linear(x, name["up"]))
        return self._layer_norm(ops.add(self._linear(inner, name["down"]), x), name["down_norm"])

    def _heads(self, x: Any) -> Any:
        """``[batch, tokens, hidden]`` → ``[batch, heads, tokens, head_dim]``."""
        return ops.transpose(
            ops.reshape(x, _i64([0, 0, self.config.num_heads, -1]), True), _i64([0, 2, 1, 3])
        )

    # --- head

    def _vector(self, x: Any, present: Any) -> Any:
        assert not isinstance(self.head, ScoreHead)
        pooled = [_pool(x, present, pooling) for pooling in self.head.pooling]
        x = pooled[0] if len(pooled) == 1 else ops.concat(pooled, 1)
        for step in self.head.steps:
            x = self._dense(x, step) if isinstance(step, DenseStep) else _normalize(x)
        return x

    def _dense(self, x: Any, step: DenseStep) -> Any:
        tensors = SafetensorsFolder(step.folder)
        weight = tensors.weight("linear.weight").dense()
        if weight.shape != (step.out_features, x.get_output_partial_shape(0)[1].get_length()):
            raise ModelFileError(
                f"{step.folder}: linear.weight has the shape {list(weight.shape)}, which does not match its input "
                f"or its {step.out_features} outputs"
            )
        x = ops.matmul(x, ops.constant(weight), False, True)
        if step.bias:
            x = ops.add(x, ops.constant(tensors.weight("linear.bias").dense()))
        return _ACTIVATIONS[step.activation](x)

    def _score(self, x: Any, head: ScoreHead) -> Any:
        """The classifier of the family, on the first token: ``[batch, 1]``."""
        hidden, activation, classifier = {
            "bert": (self.prefix + "pooler.dense", "tanh", "classifier"),
            "roberta": ("classifier.dense", "tanh", "classifier.out_proj"),
            "distilbert": ("pre_classifier", "relu", "classifier"),
        }[self.config.family]
        labels = self.tensors.shape(classifier + ".weight")[0]
        if labels != 1:
            raise UnsupportedFeature(
                f"{self.tensors.folder}: the classifier has {labels} labels, expected one for a reranker"
            )
        x = _ACTIVATIONS[activation](self._linear(_pool(x, None, "cls"), hidden))
        return _ACTIVATIONS[head.activation](self._linear(x, classifier))

    # --- parts

    def _linear(self, x: Any, name: str) -> Any:
        product = ops.matmul(x, self._weight(name + ".weight"), False, True)
        return ops.add(product, self._weight(name + ".bias"))

    def _layer_norm(self, x: Any, name: str) -> Any:
        centered = ops.mvn(x, _i64([-1]), True, self.config.layer_norm_eps, "inside_sqrt")
        return ops.add(ops.multiply(centered, self._weight(name + ".weight")), self._weight(name + ".bias"))

    def _weight(self, name: str) -> Any:
        # dense() copies: OpenVINO converts views of a memory map element by element, in minutes.
        return ops.constant(self.tensors.weight(name).dense())


def _pool(x: Any, present: Any, pooling: Pooling) -> Any:
    """``[batch, tokens, hidden]`` → ``[batch, hidden]``; ``present`` is 1 for tokens and 0 for padding."""
    if pooling == "cls":
        return ops.gather(x, _i64(0), _i64(1))
    if pooling == "lasttoken":
        last = ops.subtract(ops.convert(ops.reduce_sum(present, _i64([1])), "i64"), _i64(1))
        return ops.gather(x, last, _i64(1), 1)
    weights = ops.unsqueeze(present, _i64(2))
    if pooling == "max":
        return ops.reduce_max(ops.select(ops.greater(weights, _f32(0)), x, _f32(-np.inf)), _i64([1]))
    if pooling == "weightedmean":
        weights = ops.multiply(weights, ops.cum_sum(weights, _i64(1)))
    total = ops.reduce_sum(ops.multiply(x, weights), _i64([1]))
    count = ops.maximum(ops.reduce_sum(weights, _i64([1])), _f32(1e-9))
    return ops.divide(total, ops.sqrt(count) if pooling == "mean_sqrt_len_tokens" else count)


def _normalize(x: Any) -> Any:
    return ops.normalize_l2(x, _i64([1]), 1e-12, "max")


def _i64(value: Any) -> Any:
    return ops.constant(np.asarray(value, dtype=np.int64))


def _f32(value: float) -> Any:
    return ops.constant(np.float32(value))

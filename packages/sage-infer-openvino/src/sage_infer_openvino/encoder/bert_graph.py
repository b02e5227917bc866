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
from sage_infer_openvino.models.file_checks import check_finite
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

    Raises :class:`ModelFileError` when a tensor is missing, has another shape than ``config.json`` says or values that
    are not finite, and :class:`UnsupportedFeature` when a classifier has more than one label.
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
        config = self.config
        first = 0 if config.padding_position is None else config.padding_position + 1
        words = self._table("word", config.vocab_size)
        places = self._table("position", config.max_positions + first)
        x = ops.add(ops.gather(words, ids, _i64(0)), ops.gather(places, self._positions(ids), _i64(0)))
        if self.config.family != "distilbert":
            table = self._table("token_type", None)
            if types is not None and _rows(table) < 2:
                raise ModelFileError(
                    f"{self.tensors.folder}: the model has one token type, and its tokenizer two; the files do not "
                    "belong together"
                )
            x = ops.add(x, ops.gather(table, _i64(0) if types is None else types, _i64(0)))
        return self._layer_norm(x, f"{self.prefix}embeddings.LayerNorm")

    def _table(self, kind: str, rows: int | None) -> Any:
        return self._weight(
            f"{self.prefix}embeddings.{kind}_embeddings.weight", rows, self.config.hidden_size
        )

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
        size = self.config.hidden_size
        q, k, v = (self._heads(self._linear(x, name[part], size)) for part in ("query", "key", "value"))
        attended = ops.scaled_dot_product_attention(q, k, v, penalty)
        merged = ops.reshape(ops.transpose(attended, _i64([0, 2, 1, 3])), _i64([0, 0, size]), True)
        x = self._layer_norm(ops.add(self._linear(merged, name["merge"], size), x), name["merge_norm"])
        inner = _ACTIVATIONS[self.config.activation](self._linear(x, name["up"], None))
        return self._layer_norm(ops.add(self._linear(inner, name["down"], size), x), name["down_norm"])

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
        columns = _columns(x)
        x = ops.matmul(x, _weight(tensors, "linear.weight", step.out_features, columns), False, True)
        if step.bias:
            x = ops.add(x, _weight(tensors, "linear.bias", step.out_features))
        return _ACTIVATIONS[step.activation](x)

    def _score(self, x: Any, head: ScoreHead) -> Any:
        """The classifier of the family, on the first token: ``[batch, 1]``."""
        hidden, activation, classifier = {
            "bert": (self.prefix + "pooler.dense", "tanh", "classifier"),
            "roberta": ("classifier.dense", "tanh", "classifier.out_proj"),
            "distilbert": ("pre_classifier", "relu", "classifier"),
        }[self.config.family]
        shape = self.tensors.shape(classifier + ".weight")
        if len(shape) == 2 and shape[0] != 1:
            raise UnsupportedFeature(
                f"{self.tensors.folder}: the classifier has {shape[0]} labels, expected one for a reranker"
            )
        x = _ACTIVATIONS[activation](self._linear(_pool(x, None, "cls"), hidden, self.config.hidden_size))
        return _ACTIVATIONS[head.activation](self._linear(x, classifier, 1))

    # --- parts

    def _linear(self, x: Any, name: str, rows: int | None) -> Any:
        product = ops.matmul(x, self._weight(name + ".weight", rows, _columns(x)), False, True)
        return ops.add(product, self._weight(name + ".bias", _columns(product)))

    def _layer_norm(self, x: Any, name: str) -> Any:
        centered = ops.mvn(x, _i64([-1]), True, self.config.layer_norm_eps, "inside_sqrt")
        size = self.config.hidden_size
        scaled = ops.multiply(centered, self._weight(name + ".weight", size))
        return ops.add(scaled, self._weight(name + ".bias", size))

    def _weight(self, name: str, *shape: int | None) -> Any:
        return _weight(self.tensors, name, *shape)


def _weight(tensors: SafetensorsFolder, name: str, *shape: int | None) -> Any:
    """A tensor of this shape, in which None is any size.

    Raises:
        ModelFileError: it is missing, has another shape, or values that are not finite.
    """
    weight = tensors.weight(name)
    found = weight.values.shape
    if len(found) != len(shape) or any(
        size not in (None, own) for size, own in zip(shape, found, strict=True)
    ):
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise ModelFileError(
            f"{tensors.folder}: tensor {name} has the shape {list(found)}, expected [{expected}] by the configuration; "
            "the files do not belong together"
        )
    check_finite(weight, name, str(tensors.folder))
    # dense() copies: OpenVINO converts views of a memory map element by element, in minutes.
    return ops.constant(weight.dense())


def _rows(x: Any) -> int:
    rows: int = x.get_output_partial_shape(0)[0].get_length()
    return rows


def _columns(x: Any) -> int:
    shape = x.get_output_partial_shape(0)
    columns: int = shape[len(shape) - 1].get_length()
    return columns


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

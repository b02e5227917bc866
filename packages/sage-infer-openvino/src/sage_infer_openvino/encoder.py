"""A sentence encoder on OpenVINO, without torch: texts or token ids in, float32 vectors out.

What follows the transformer is read from the files that sentence-transformers writes beside it:
``modules.json`` (which steps), ``1_Pooling/config.json`` (mean or first token) and
``sentence_bert_config.json`` (longest text).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
from sage_infer.errors import InvalidRequest, ModelFileError, UnsupportedFeature
from tokenizers import Tokenizer

from sage_infer_openvino.bert_graph import Activation, BertConfig, Pooling, build_bert
from sage_infer_openvino.ov_runtime import ov
from sage_infer_openvino.safetensors_file import SafetensorsFolder

__all__ = ["Encoder", "EncoderConfig", "read_encoder_config"]

TextOrIds = str | Sequence[int]

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


@attrs.frozen(kw_only=True)
class EncoderConfig:
    """A sentence encoder's graph, and its limits."""

    bert: BertConfig
    max_sequence_length: int
    """Tokens of the longest text, special tokens included."""
    lower_case: bool


class Encoder:
    """A compiled encoder. Not thread-safe: one :meth:`embed` at a time.

    ``folder`` is a Hugging Face or sentence-transformers folder; ``precision`` is what products are computed in
    (``f32``, ``bf16``); ``token_budget`` bounds the padded tokens of one inference, which bounds its memory;
    ``max_sequence_length`` makes the model's own limit smaller. Raises :class:`ModelFileError` and
    :class:`UnsupportedFeature`, each naming the file.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        device: str = "CPU",
        precision: str = "f32",
        threads: int | None = None,
        token_budget: int = 2048,
        max_sequence_length: int | None = None,
    ) -> None:
        folder = Path(folder)
        self.config = read_encoder_config(folder)
        self.dimension = self.config.bert.hidden_size
        limit = self.config.max_sequence_length
        self.max_sequence_length = limit if max_sequence_length is None else min(limit, max_sequence_length)
        self._budget = max(token_budget, 1)
        self._tokenizer = _tokenizer(folder)
        self._cutting_tokenizer = _tokenizer(folder)
        self._cutting_tokenizer.enable_truncation(self.max_sequence_length)
        properties: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
        if threads is not None:
            properties["INFERENCE_NUM_THREADS"] = threads
        model = build_bert(self.config.bert, SafetensorsFolder(folder))
        try:
            self._request = ov.Core().compile_model(model, device, properties).create_infer_request()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UnsupportedFeature(
                f"OpenVINO cannot compile {folder} for {device} with precision={precision}: {reason}"
            ) from error

    def embed(
        self, inputs: Sequence[TextOrIds], *, truncate: bool = False
    ) -> tuple[npt.NDArray[np.float32], list[int]]:
        """Vectors ``[len(inputs), dimension]`` in the order of ``inputs``, and how many tokens each of them
        had.

        A text gets the model's special tokens; token ids are taken as they are. What is longer than
        ``max_sequence_length`` is cut when ``truncate``, otherwise refused. Raises :class:`InvalidRequest`.
        """
        token_ids = self.tokenize(inputs, truncate=truncate)
        vectors = np.empty((len(token_ids), self.dimension), np.float32)
        for group, rows in self.compute(token_ids):
            vectors[group] = rows
        return vectors, [len(ids) for ids in token_ids]

    def compute(
        self, token_ids: Sequence[Sequence[int]]
    ) -> Iterator[tuple[list[int], npt.NDArray[np.float32]]]:
        """Vectors of what :meth:`tokenize` gave, one inference at a time: indices, and their rows. Rows are
        overwritten by the next inference.
        """
        for group in _groups([len(ids) for ids in token_ids], self._budget):
            width = len(token_ids[group[-1]])
            ids = np.zeros((len(group), width), np.int64)
            mask = np.zeros((len(group), width), np.int64)
            for row, index in enumerate(group):
                ids[row, : len(token_ids[index])] = token_ids[index]
                mask[row, : len(token_ids[index])] = 1
            self._request.infer({"input_ids": ids, "attention_mask": mask})
            yield group, self._request.get_tensor("embeddings").data

    def tokenize(self, inputs: Sequence[TextOrIds], *, truncate: bool = False) -> list[list[int]]:
        """The token ids that :meth:`embed` computes with. Raises :class:`InvalidRequest` as it does."""
        texts = [self._prepare(item) for item in inputs if isinstance(item, str)]
        encoded = iter(self._tokenizer.encode_batch(texts)) if texts else iter(())
        result: list[list[int]] = []
        for index, item in enumerate(inputs):
            ids = next(encoded).ids if isinstance(item, str) else self._checked(index, list(item))
            if len(ids) > self.max_sequence_length:
                if not truncate:
                    raise InvalidRequest(
                        f"input {index} has {len(ids)} tokens, but this model takes "
                        f"{self.max_sequence_length}; "
                        "shorten it, or ask for truncation"
                    )
                is_text = isinstance(item, str)
                ids = (
                    self._cutting_tokenizer.encode(self._prepare(item)).ids
                    if is_text
                    else ids[: self.max_sequence_length]
                )
            result.append(ids)
        return result

    def _prepare(self, text: Any) -> str:
        return str(text).lower() if self.config.lower_case else str(text)

    def _checked(self, index: int, ids: list[int]) -> list[int]:
        if not ids:
            raise InvalidRequest(f"input {index} is an empty list, expected text or at least one token id")
        # OpenVINO would read out of the table's bounds.
        if min(ids) < 0 or max(ids) >= self.config.bert.vocab_size:
            raise InvalidRequest(
                f"input {index} has token ids outside 0 to {self.config.bert.vocab_size - 1}"
            )
        return ids


def read_encoder_config(folder: str | Path) -> EncoderConfig:
    """Reads an encoder folder's configuration, without its weights. Raises as :class:`Encoder` does."""
    folder = Path(folder)
    raw = _read_object(folder / "config.json")
    kind = raw.get("model_type")
    if kind != "bert":
        raise UnsupportedFeature(
            f"{folder}: encoder {kind!r} is not supported by the openvino backend; supported: bert"
        )
    if raw.get("position_embedding_type", "absolute") != "absolute":
        raise UnsupportedFeature(
            f"{folder}: position_embedding_type {raw['position_embedding_type']!r} is not supported"
        )
    if raw.get("hidden_act", "gelu") not in _ACTIVATIONS:
        raise UnsupportedFeature(
            f"{folder}: activation {raw['hidden_act']!r} is not supported; supported: "
            f"{', '.join(_ACTIVATIONS)}"
        )
    pooling, normalize = _read_modules(folder)
    sentence_path = folder / "sentence_bert_config.json"
    sentence = _read_object(sentence_path) if sentence_path.is_file() else {}
    try:
        bert = BertConfig(
            num_layers=int(raw["num_hidden_layers"]),
            hidden_size=int(raw["hidden_size"]),
            num_heads=int(raw["num_attention_heads"]),
            max_positions=int(raw["max_position_embeddings"]),
            vocab_size=int(raw["vocab_size"]),
            layer_norm_eps=float(raw.get("layer_norm_eps", 1e-12)),
            activation=_ACTIVATIONS[raw.get("hidden_act", "gelu")],
            pooling=pooling,
            normalize=normalize,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(
            f"{folder / 'config.json'}: a BERT dimension is missing or not a number: {error}"
        ) from error
    longest = min(int(sentence.get("max_seq_length") or bert.max_positions), bert.max_positions)
    return EncoderConfig(
        bert=bert, max_sequence_length=longest, lower_case=bool(sentence.get("do_lower_case", False))
    )


def _read_modules(folder: Path) -> tuple[Pooling, bool]:
    """Pooling, and whether vectors get length 1. A folder without ``modules.json`` is pooled as
    sentence-transformers would.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return "mean", False
    pooling: Pooling = "mean"
    normalize = False
    for module in _read_list(path):
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        if kind == "Pooling":
            pooling = _read_pooling(folder / str(module.get("path", "")) / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise UnsupportedFeature(
                f"{path}: module {kind!r} is not supported; supported: Transformer, Pooling, Normalize"
            )
    return pooling, normalize


def _read_pooling(path: Path) -> Pooling:
    config = _read_object(path)
    modes = {
        key.removeprefix("pooling_mode_")
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value is True
    }
    if isinstance(config.get("pooling_mode"), str):
        modes.add(config["pooling_mode"])
    if modes in ({"mean_tokens"}, {"mean"}):
        return "mean"
    if modes in ({"cls_token"}, {"cls"}):
        return "cls"
    raise UnsupportedFeature(
        f"{path}: pooling {', '.join(sorted(modes)) or 'none'} is not supported; supported: mean, cls"
    )


def _tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelFileError(f"{path}: not found; the model's folder needs its tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    # `tokenizers` raises a bare Exception for whatever is wrong with the file.
    except Exception as error:
        raise ModelFileError(f"{path}: not a tokenizer.json that this `tokenizers` reads: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _groups(lengths: list[int], budget: int) -> Iterator[list[int]]:
    """Indices in groups of similar length, each padded to its last one's, of at most ``budget`` padded
    tokens.
    """
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and lengths[index] * (len(group) + 1) > budget:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path}: not readable as JSON: {error}") from error


def _read_object(path: Path) -> dict[str, Any]:
    data = _read_json(path)
    if not isinstance(data, dict):
        raise ModelFileError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def _read_list(path: Path) -> list[dict[str, Any]]:
    data = _read_json(path)
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        raise ModelFileError(f"{path}: expected a list of objects")
    return data

"""Folders of small encoders with random weights, made from a seed: the same here and where references are recorded."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

_TEXT = "the a cat dog sat ran on under mat tree what is capital of france paris city rain fell today query : ## e"
WORDS = _TEXT.split()
TEXTS = [
    "The cat sat on the mat.",
    "paris is the capital of france",
    "rain",
    "a dog ran under a tree today and the rain fell on the city",
]
QUERY = "what is the capital of france"
DOCUMENTS = ["paris is the capital city", "the dog ran", "rain fell on paris today " * 8, "tree"]

HIDDEN, HEADS, LAYERS, INNER, POSITIONS = 24, 3, 2, 40, 34

_DENSE = {
    "in_features": HIDDEN,
    "out_features": 10,
    "bias": True,
    "activation_function": "torch.nn.modules.activation.Tanh",
}
EMBEDDERS: dict[str, dict[str, Any]] = {
    "bert": {"family": "bert", "modules": [{"pooling_mode_mean_tokens": True}, "Normalize"]},
    "roberta": {"family": "roberta", "modules": [{"pooling_mode_cls_token": True}, "Normalize"]},
    "xlm-roberta": {
        "family": "xlm-roberta",
        "modules": [{"pooling_mode_mean_tokens": True}],
        "prompts": True,
    },
    "distilbert": {"family": "distilbert", "modules": [{"pooling_mode_lasttoken": True}]},
    "max": {"family": "bert", "modules": [{"pooling_mode_max_tokens": True}]},
    "weighted": {"family": "bert", "modules": [{"pooling_mode": "weightedmean"}]},
    "joined": {
        "family": "bert",
        "modules": [{"pooling_mode_mean_sqrt_len_tokens": True, "pooling_mode_cls_token": True}],
    },
    "dense": {"family": "bert", "modules": [{"pooling_mode_mean_tokens": True}, _DENSE, "Normalize"]},
    "plain": {"family": "distilbert", "modules": None},
}
RERANKERS: dict[str, dict[str, Any]] = {
    "bert": {"family": "bert", "reranker": True},
    "bert-identity": {
        "family": "bert",
        "reranker": True,
        "config": {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
    },
    "xlm-roberta": {"family": "xlm-roberta", "reranker": True},
    "distilbert": {"family": "distilbert", "reranker": True},
}
_CLASSES = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta", "distilbert": "DistilBert"}
_KINDS = "sentence_transformers.models."


def write_encoder(
    folder: Path,
    *,
    family: str,
    reranker: bool = False,
    modules: list[Any] | None = None,
    prompts: bool = False,
    config: dict[str, Any] | None = None,
    labels: int = 1,
) -> Path:
    """Writes a whole folder, as transformers and sentence-transformers would."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(family))
    task = "ForSequenceClassification" if reranker else "Model"
    roberta = "roberta" in family
    vocabulary = _write_tokenizer(folder, family)
    dimensions = (
        {"dim": HIDDEN, "n_heads": HEADS, "n_layers": LAYERS, "hidden_dim": INNER, "activation": "gelu"}
        if family == "distilbert"
        else {
            "hidden_size": HIDDEN,
            "num_attention_heads": HEADS,
            "num_hidden_layers": LAYERS,
            "intermediate_size": INNER,
            "hidden_act": "gelu",
            "type_vocab_size": 1 if roberta else 2,
            "layer_norm_eps": 1e-5,
        }
    )
    labelled = {"id2label": {str(i): f"LABEL_{i}" for i in range(labels)}} if reranker else {}
    write_json(
        folder / "config.json",
        {
            "architectures": [_CLASSES[family] + task],
            "model_type": family,
            "vocab_size": vocabulary,
            "max_position_embeddings": POSITIONS,
            "pad_token_id": 1 if roberta else 0,
            **dimensions,
            **labelled,
            **(config or {}),
        },
    )
    write_safetensors(folder / "model.safetensors", _weights(rng, family, reranker, vocabulary, labels))
    if modules is not None:
        _write_modules(folder, modules, rng)
    if prompts:
        write_json(
            folder / "config_sentence_transformers.json",
            {"prompts": {"query": "query: ", "passage": "the : "}, "default_prompt_name": "passage"},
        )
    return folder


def write_json(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def write_safetensors(path: Path, tensors: dict[str, npt.NDArray[np.float32]]) -> None:
    header, offset = {}, 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": tensor.shape,
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    body = b"".join(tensor.tobytes() for tensor in tensors.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def _write_tokenizer(folder: Path, family: str) -> int:
    """A word a token; ids of the special ones, and the form of a pair, as the family has them."""
    roberta = "roberta" in family
    special = ["<s>", "<pad>", "</s>", "<unk>"] if roberta else ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    first, end, padding, unknown = (special[i] for i in ((0, 2, 1, 3) if roberta else (2, 3, 0, 1)))
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    middle = f" {end} {end} $B:0 {end}" if roberta else f" {end}:0 $B:1 {end}:1"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {end}",
        pair=f"{first} $A{middle}",
        special_tokens=[(first, vocabulary[first]), (end, vocabulary[end])],
    )
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"cls_token": first, "sep_token": end, "pad_token": padding, "unk_token": unknown}
    inputs = ["input_ids", "attention_mask"] + ["token_type_ids"] * (family == "bert")
    limit = POSITIONS - 2 * roberta
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": limit,
            "model_input_names": inputs,
            **names,
        },
    )
    return len(vocabulary)


def _weights(
    rng: np.random.Generator, family: str, reranker: bool, vocabulary: int, labels: int
) -> dict[str, npt.NDArray[np.float32]]:
    parts: Sequence[str]
    distil, roberta = family == "distilbert", "roberta" in family
    tensors: dict[str, npt.NDArray[np.float32]] = {}

    def add(name: str, *shape: int, around: float = 0.0) -> None:
        tensors[name] = rng.normal(around, 0.3, shape).astype(np.float32)

    def linear(name: str, rows: int, columns: int) -> None:
        add(f"{name}.weight", rows, columns)
        add(f"{name}.bias", rows)

    def norm(name: str) -> None:
        add(f"{name}.weight", HIDDEN, around=1.0)
        add(f"{name}.bias", HIDDEN)

    prefix = {"bert": "bert.", "distilbert": "distilbert."}.get(family, "roberta.") if reranker else ""
    add(f"{prefix}embeddings.word_embeddings.weight", vocabulary, HIDDEN)
    add(f"{prefix}embeddings.position_embeddings.weight", POSITIONS, HIDDEN)
    if not distil:
        add(f"{prefix}embeddings.token_type_embeddings.weight", 1 if roberta else 2, HIDDEN)
    norm(f"{prefix}embeddings.LayerNorm")
    if distil:
        pattern, parts, merge, merge_norm = "attention.{}_lin", "qkv", "attention.out_lin", "sa_layer_norm"
        up, down, down_norm = "ffn.lin1", "ffn.lin2", "output_layer_norm"
    else:
        pattern, parts = "attention.self.{}", ("query", "key", "value")
        merge, merge_norm = "attention.output.dense", "attention.output.LayerNorm"
        up, down, down_norm = "intermediate.dense", "output.dense", "output.LayerNorm"
    for layer in range(LAYERS):
        place = f"{prefix}{'transformer' if distil else 'encoder'}.layer.{layer}."
        for part in parts:
            linear(place + pattern.format(part), HIDDEN, HIDDEN)
        linear(place + merge, HIDDEN, HIDDEN)
        norm(place + merge_norm)
        linear(place + up, INNER, HIDDEN)
        linear(place + down, HIDDEN, INNER)
        norm(place + down_norm)
    if not reranker:
        return tensors
    hidden = {"bert": "bert.pooler.dense", "distilbert": "pre_classifier"}.get(family, "classifier.dense")
    linear(hidden, HIDDEN, HIDDEN)
    linear("classifier.out_proj" if roberta else "classifier", labels, HIDDEN)
    return tensors


def _write_modules(folder: Path, modules: list[Any], rng: np.random.Generator) -> None:
    entries = [{"idx": 0, "name": "0", "path": "", "type": _KINDS + "Transformer"}]
    for index, module in enumerate(modules, 1):
        if module == "Normalize":
            kind, path = "Normalize", f"{index}_Normalize"
        else:
            kind = "Dense" if "in_features" in module else "Pooling"
            path = f"{index}_{kind}"
            extra = {} if kind == "Dense" else {"word_embedding_dimension": HIDDEN}
            write_json(folder / path / "config.json", {**extra, **module})
        if kind == "Dense":
            shape = module["out_features"], module["in_features"]
            write_safetensors(
                folder / path / "model.safetensors",
                {
                    "linear.weight": rng.normal(0, 0.3, shape).astype(np.float32),
                    "linear.bias": rng.normal(0, 0.3, shape[:1]).astype(np.float32),
                },
            )
        entries.append({"idx": index, "name": str(index), "path": path, "type": _KINDS + kind})
    write_json(folder / "modules.json", entries)

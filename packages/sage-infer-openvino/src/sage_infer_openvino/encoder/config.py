"""Reads the configuration of an encoder's folder, without its weights.

Besides transformers' ``config.json``, sentence-transformers has ``modules.json`` (modules after the transformer, and
their folders), ``sentence_bert_config.json`` (maximum length) and ``config_sentence_transformers.json`` (prompts; a
cross-encoder's activation). Its defaults apply to missing files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import attrs
from sage_infer.errors import ModelFileError, UnsupportedFeature
from sage_infer.models import check_model_files, read_model_text

from sage_infer_openvino.models.tokenizer_file import is_text

__all__ = [
    "BertConfig",
    "DenseStep",
    "EncoderConfig",
    "Pooling",
    "ScoreHead",
    "VectorHead",
    "read_encoder_config",
]

Family = Literal["bert", "roberta", "distilbert"]
Pooling = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
_LARGEST_COUNT = 2**31 - 1  # no model has larger widths or lengths
Activation = Literal["gelu", "gelu_tanh", "identity", "relu", "sigmoid", "tanh"]

_FAMILIES: dict[str, Family] = {
    "bert": "bert",
    "camembert": "roberta",
    "distilbert": "distilbert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
}
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
_TORCH_ACTIVATIONS: dict[str, Activation] = {
    "GELU": "gelu",
    "Identity": "identity",
    "ReLU": "relu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
}
_POOLINGS: dict[str, Pooling] = {mode: mode for mode in get_args(Pooling)} | {
    # Pooling keys of older configurations, in the order in which several are concatenated.
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@attrs.frozen(kw_only=True)
class BertConfig:
    """Dimensions of a BERT encoder. Lengths count tokens, ids are token ids."""

    family: Family
    num_layers: int
    hidden_size: int
    num_heads: int
    max_positions: int
    """Maximum number of tokens of a text."""
    padding_position: int | None
    """Id and position of RoBERTa's padding; positions of tokens start after it. None: positions start at 0."""
    padding_id: int
    vocab_size: int
    pair_types: bool
    """Whether the two texts of a pair have different token types."""
    layer_norm_eps: float
    activation: Activation


@attrs.frozen(kw_only=True)
class DenseStep:
    """sentence-transformers' ``Dense``; its weights are in ``folder``."""

    folder: Path
    out_features: int
    bias: bool
    activation: Activation


@attrs.frozen(kw_only=True)
class VectorHead:
    """Pooling of the last hidden states into one vector."""

    pooling: tuple[Pooling, ...]
    """Several are concatenated."""
    includes_prompt: bool
    """Whether the prompt's tokens are pooled too."""
    steps: tuple[DenseStep | Literal["normalize"], ...]


@attrs.frozen(kw_only=True)
class ScoreHead:
    """A classifier with one label, whose logit goes through ``activation``."""

    activation: Activation


@attrs.frozen(kw_only=True)
class EncoderConfig:
    """An encoder, its head and its limits."""

    bert: BertConfig
    head: VectorHead | ScoreHead
    max_sequence_length: int
    """Maximum tokens of a text or pair of texts, including special tokens."""
    lower_case: bool
    prompts: Mapping[str, str]
    """Prompts by name, which are prepended to a text."""
    default_prompt: str
    """The default prompt; often empty."""

    @property
    def dimension(self) -> int:
        """Size of the output for a text."""
        if isinstance(self.head, ScoreHead):
            return 1
        dense = [step.out_features for step in self.head.steps if isinstance(step, DenseStep)]
        return dense[-1] if dense else self.bert.hidden_size * len(self.head.pooling)


def read_encoder_config(folder: str | Path, *, reranker: bool = False) -> EncoderConfig:
    """The configuration of an encoder, or of a cross-encoder if ``reranker``.

    Raises :class:`ModelFileError` and :class:`UnsupportedFeature`, each naming the file.
    """
    folder = Path(folder)
    check_model_files(folder)
    raw = _read_object(folder / "config.json")
    tokenizer = _read_object(folder / "tokenizer_config.json", optional=True)
    sentence = _read_object(folder / "sentence_bert_config.json", optional=True)
    own = _read_object(folder / "config_sentence_transformers.json", optional=True)
    bert = _read_bert(folder, raw, tokenizer, pairs=reranker)
    head = ScoreHead(activation=_score_activation(folder, raw, own)) if reranker else _read_modules(folder)
    prompts, default = own.get("prompts") or {}, own.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(map(is_text, prompts.values())):
        raise ModelFileError(
            f"{folder / 'config_sentence_transformers.json'}: prompts is not an object of Unicode strings"
        )
    if reranker and default is not None:
        raise UnsupportedFeature(f"{folder}: a reranker with a default prompt ({default!r}) is not supported")
    if default is not None and str(default) not in prompts:
        raise ModelFileError(
            f"{folder / 'config_sentence_transformers.json'}: default_prompt_name {default!r} is not one of its prompts"
        )
    try:
        limit = int(sentence.get("max_seq_length") or tokenizer.get("model_max_length") or bert.max_positions)
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelFileError(f"{folder}: the maximum length is not a number: {error}") from error
    if limit < 1:
        raise ModelFileError(f"{folder}: the maximum length is {limit}, expected at least 1")
    return EncoderConfig(
        bert=bert,
        head=head,
        max_sequence_length=min(limit, bert.max_positions),
        lower_case=bool(sentence.get("do_lower_case", False)),
        prompts=prompts,
        default_prompt="" if default is None else prompts[str(default)],
    )


def _read_bert(folder: Path, raw: dict[str, Any], tokenizer: dict[str, Any], *, pairs: bool) -> BertConfig:
    family = _FAMILIES.get(str(raw.get("model_type")))
    if family is None:
        raise UnsupportedFeature(
            f"{folder}: encoder {raw.get('model_type')!r} is not supported by the openvino backend; supported: "
            f"{', '.join(_FAMILIES)}"
        )
    if raw.get("position_embedding_type") not in (None, "absolute"):
        raise UnsupportedFeature(
            f"{folder}: position_embedding_type {raw['position_embedding_type']!r} is not supported"
        )
    distil = family == "distilbert"
    activation = raw.get("activation" if distil else "hidden_act") or "gelu"
    if str(activation) not in _ACTIVATIONS:
        raise UnsupportedFeature(
            f"{folder}: activation {activation!r} is not supported; supported: {', '.join(_ACTIVATIONS)}"
        )
    inputs = tokenizer.get("model_input_names") or ["token_type_ids"]
    if not isinstance(inputs, list):
        raise ModelFileError(
            f"{folder / 'tokenizer_config.json'}: model_input_names is {inputs!r}, expected a list of strings"
        )
    path = folder / "config.json"
    padding = raw.get("pad_token_id", 1) if family == "roberta" else raw.get("pad_token_id") or 0
    padding_id = _count({"pad_token_id": padding}, "pad_token_id", path, least=0)
    first = padding_id + 1 if family == "roberta" else 0
    vocab_size = _count(raw, "vocab_size", path)
    if padding_id >= vocab_size:
        raise ModelFileError(
            f"{path}: pad_token_id is {padding_id}, which is not an id of {vocab_size} tokens; the file is damaged"
        )
    heads = "n_heads" if distil else "num_attention_heads"
    size, count = _count(raw, "dim" if distil else "hidden_size", path), _count(raw, heads, path)
    if size % count:
        raise ModelFileError(f"{path}: the hidden size {size} is not a multiple of the {count} heads")
    epsilon = raw.get("layer_norm_eps", 1e-12)
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
        raise ModelFileError(f"{path}: layer_norm_eps is {epsilon!r}, expected a number between 0 and 1")
    return BertConfig(
        family=family,
        num_layers=_count(raw, "n_layers" if distil else "num_hidden_layers", path),
        hidden_size=size,
        num_heads=count,
        max_positions=_count(raw, "max_position_embeddings", path, least=first + 1) - first,
        padding_position=padding_id if family == "roberta" else None,
        padding_id=padding_id,
        vocab_size=vocab_size,
        pair_types=pairs and family == "bert" and "token_type_ids" in inputs,
        layer_norm_eps=float(epsilon),
        activation=_ACTIVATIONS[str(activation)],
    )


def _count(raw: Mapping[str, Any], key: str, path: Path, *, least: int = 1) -> int:
    """A whole number of at least ``least``.

    Raises:
        ModelFileError: it is missing, or no such number.
    """
    try:
        value = int(raw[key])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelFileError(
            f"{path}: {key} is missing or not a number ({error}); the file is damaged"
        ) from error
    if not least <= value <= _LARGEST_COUNT:
        raise ModelFileError(f"{path}: {key} is {value}, expected a number ≥ {least}; the file is damaged")
    return value


def _score_activation(folder: Path, raw: dict[str, Any], own: dict[str, Any]) -> Activation:
    """The activation of ``CrossEncoder``: newer locations first, by default a sigmoid."""
    section = raw.get("sentence_transformers")
    name = (
        own.get("activation_fn")
        or (section.get("activation_fn") if isinstance(section, dict) else None)
        or raw.get("sbert_ce_default_activation_function")
        or "torch.nn.modules.activation.Sigmoid"
    )
    return _torch_activation(folder, name)


def _torch_activation(path: Path, name: object) -> Activation:
    activation = _TORCH_ACTIVATIONS.get(str(name).rsplit(".", 1)[-1])
    if activation is None or not str(name).startswith("torch."):
        raise UnsupportedFeature(
            f"{path}: activation {name!r} is not supported; supported: torch's {', '.join(_TORCH_ACTIVATIONS)}"
        )
    return activation


def _read_modules(folder: Path) -> VectorHead:
    """The modules after the transformer; mean pooling without ``modules.json``."""
    path = folder / "modules.json"
    pooling: tuple[Pooling, ...] = ("mean",)
    includes_prompt = True
    steps: list[DenseStep | Literal["normalize"]] = []
    for module in _read_list(path) if path.is_file() else []:
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        name = str(module.get("path", ""))
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelFileError(f"{path}: the module {name!r} is outside of the folder")
        place = folder / name
        if kind == "Pooling":
            pooling, includes_prompt = _read_pooling(place / "config.json")
        elif kind == "Normalize":
            steps.append("normalize")
        elif kind == "Dense":
            steps.append(_read_dense(place))
        elif kind != "Transformer":
            raise UnsupportedFeature(
                f"{path}: module {kind!r} is not supported; supported: Transformer, Pooling, Dense, Normalize"
            )
    return VectorHead(pooling=pooling, includes_prompt=includes_prompt, steps=tuple(steps))


def _read_pooling(path: Path) -> tuple[tuple[Pooling, ...], bool]:
    config = _read_object(path)
    named = config.get("pooling_mode")
    modes: list[Any] = named if isinstance(named, list) else [named]
    if named is None:
        on = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
        modes = [mode for mode in _POOLINGS if mode in on] + [mode for mode in on if mode not in _POOLINGS]
    unknown = [str(mode) for mode in modes if str(mode) not in _POOLINGS]
    if unknown:
        raise UnsupportedFeature(
            f"{path}: pooling {', '.join(unknown)} is not supported; supported: {', '.join(get_args(Pooling))}"
        )
    return tuple(_POOLINGS[str(mode)] for mode in modes) or ("mean",), config.get(
        "include_prompt", True
    ) is not False


def _read_dense(folder: Path) -> DenseStep:
    path = folder / "config.json"
    config = _read_object(path)
    names = [config.get("module_input_name"), config.get("module_output_name")]
    if config.get("use_residual") or any(name not in (None, "sentence_embedding") for name in names):
        raise UnsupportedFeature(
            f"{path}: a Dense with a residual, or with an input other than the sentence embedding, is not supported"
        )
    return DenseStep(
        folder=folder,
        out_features=_count(config, "out_features", path),
        bias=bool(config.get("bias", True)),
        activation=_torch_activation(path, config.get("activation_function", "torch.nn.Tanh")),
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(read_model_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: not readable as JSON: {error}") from error


def _read_object(path: Path, *, optional: bool = False) -> dict[str, Any]:
    if optional and not path.is_file():
        return {}
    data = _read_json(path)
    if not isinstance(data, dict):
        raise ModelFileError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def _read_list(path: Path) -> list[dict[str, Any]]:
    data = _read_json(path)
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        raise ModelFileError(f"{path}: expected a list of objects")
    return data

"""A decoder from a Hugging Face folder: ``config.json`` and safetensors, whole or sharded.

Fields of ``config.json`` follow transformers' configuration classes of version 4 (``rope_theta``, ``rope_scaling``) and
version 5 (``rope_parameters``). Of a multimodal model, the language model is read.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from sage_infer.errors import ModelFileError, UnsupportedFeature
from sage_infer.models import read_model_text

from sage_infer_openvino.models import rotary
from sage_infer_openvino.models.decoder_weights import Activation, DecoderConfig, DenseWeight
from sage_infer_openvino.models.families import (
    FAMILIES,
    Family,
    hf_family,
    refuse,
    rows_of,
    unrotated_layers,
    windows_of,
)
from sage_infer_openvino.models.file_checks import (
    check_config,
    check_finite,
    check_kinds,
    checked_number,
    special_token_id,
)
from sage_infer_openvino.models.safetensors_file import SafetensorsFolder

__all__ = ["HfModel"]

_GLOBAL_NAMES = {"embed": "embed_tokens.weight", "final_norm": "norm.weight"}
# Prefixes of the decoder's tensors: in a text model, and in multimodal models.
_PREFIXES = {
    "model.": "lm_head.weight",
    "language_model.model.": "language_model.lm_head.weight",
    "model.language_model.": "lm_head.weight",
}


class HfModel:
    """A Hugging Face folder opened as a decoder (a
    :class:`~sage_infer_openvino.models.decoder_weights.DecoderSource`).

    Raises :class:`ModelFileError` for files that are missing, truncated or inconsistent, and
    :class:`UnsupportedFeature` for an unsupported architecture, activation or rotary scaling.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / "config.json"
        try:
            self._raw = json.loads(read_model_text(path))
        except (OSError, ValueError, RecursionError) as error:
            raise ModelFileError(f"{path}: not readable as JSON: {error}") from error
        if not isinstance(self._raw, dict):
            raise ModelFileError(f"{path}: expected a JSON object, got {type(self._raw).__name__}")
        where = str(path)
        check_kinds(self._raw, where)
        self.family = hf_family(self._raw.get("model_type"), self._raw.get("architectures") or [], where)
        if isinstance(text := self._raw.get("text_config"), dict):
            self._raw = {**self._raw, **text}
            check_kinds(self._raw, where)
        self._raw = {**self.family.defaults, **self._raw}
        refuse(self.family, self._raw, where)
        self._tensors = SafetensorsFolder(self.folder)
        self._prefix = next((p for p in _PREFIXES if p + _GLOBAL_NAMES["embed"] in self._tensors), "model.")
        self.config = self._config()

    def weight(self, name: str) -> DenseWeight:
        """The weight with a canonical name (see ``decoder_weights``), as a view of the file if possible."""
        tensor = hf_name(name, self.family, self._prefix)
        weight = self._tensors.weight(tensor)
        check_finite(weight, tensor, str(self.folder))
        kind = name.split(".")[2] if name.startswith("layers.") else name
        part = rows_of(kind, self.family.tensors, self.config)
        if part is not None:
            rows, total = part
            if weight.shape[0] != total:
                raise ModelFileError(
                    f"{self.folder}: tensor {tensor} has {weight.shape[0]} rows, expected {total}"
                )
            weight = DenseWeight(weight.values[rows], weight.type)
        if self.family.offset_norms and kind.endswith("norm"):
            return DenseWeight(np.float32(1) + weight.dense(), "f32")
        return weight

    def _config(self) -> DecoderConfig:
        raw, tensors, family = self._raw, self._tensors, self.family
        if raw.get("quantization_config"):
            raise UnsupportedFeature(
                f"{self.folder}: a quantized folder is not supported; use a float folder or a GGUF file"
            )
        heads, hidden = self._integer("num_attention_heads"), self._integer("hidden_size")
        layers, length = self._integer("num_hidden_layers"), self._integer("max_position_embeddings", 2048)
        head_dim = self._integer("head_dim", hidden // heads)
        has_head = _PREFIXES[self._prefix] in tensors
        tied = bool(raw.get("tie_word_embeddings", False)) or not has_head
        embed = tensors.shape(hf_name("embed", family, self._prefix))
        if len(embed) != 2:
            raise ModelFileError(
                f"{self.folder}: the embedding has the shape {embed}, expected two dimensions"
            )
        eos = raw.get("eos_token_id")
        rope, local = self._ropes()
        theta = self._checked(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0, "rope_theta", gt=1)
        part = self._checked(
            rope.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0,
            "partial_rotary_factor", gt=0,
        )  # fmt: skip
        rotary_dim = int(head_dim * part)
        scaling = self._rope_scaling(rope, rotary_dim, theta, length)
        length = self._stretched(rope, length)
        windows = windows_of(family, raw, layers, length, str(self.folder))
        local_theta = (
            local.get("rope_theta") or raw.get("rope_local_base_freq") or family.local_theta or theta
        )
        config = DecoderConfig(
            architecture=family.key,
            name=Path(str(raw.get("_name_or_path") or self.folder.name)).name,
            num_layers=layers,
            hidden_size=hidden,
            num_heads=heads,
            num_kv_heads=self._integer("num_key_value_heads", heads),
            head_dim=head_dim,
            intermediate_size=self._integer("intermediate_size"),
            vocab_size=embed[0],
            max_sequence_length=min(length, scaling.limit or length),
            rms_eps=self._float("rms_norm_eps", 1e-6, ge=0),
            rope_theta=theta,
            rope_factors=scaling.factors,
            rope_scale=scaling.scale,
            rotary_dim=None if rotary_dim == head_dim else rotary_dim,
            local_rope_theta=self._checked(local_theta, "rope_theta of layers with a window", gt=1)
            if windows and family.local_rotary
            else None,
            unrotated_layers=unrotated_layers(family, raw, layers),
            windows=windows,
            attention_scale=self._attention_scale(head_dim),
            qk_norm=family.qk_norm,
            activation=self._activation(),
            input_norms=family.input_norms,
            output_norms=family.output_norms,
            embedding_scale=math.sqrt(hidden)
            if family.scales_embedding
            else self._float("embedding_multiplier", 1.0),
            residual_scale=self._float("residual_multiplier", 1.0),
            logit_scale=1 / self._float("logits_scaling", 1.0, gt=0),
            logit_cap=self._float("final_logit_softcapping", 0.0, ge=0) or None,
            tied_embeddings=tied,
            attention_bias=hf_name("layers.0.q.bias", family, self._prefix) in tensors,
            output_bias=hf_name("layers.0.o.bias", family, self._prefix) in tensors,
            mlp_bias=hf_name("layers.0.gate.bias", family, self._prefix) in tensors,
            bos_token_id=self._token_id("bos_token_id", raw.get("bos_token_id"), embed[0]),
            eos_token_ids=tuple(
                found
                for value in (eos if isinstance(eos, list) else [eos])
                if (found := self._token_id("eos_token_id", value, embed[0])) is not None
            ),
            pad_token_id=self._token_id("pad_token_id", raw.get("pad_token_id"), embed[0]),
        )
        check_config(config, str(self.folder))
        return config

    def _token_id(self, key: str, value: object, vocab_size: int) -> int | None:
        return special_token_id(value, f"{self.folder / 'config.json'}: {key}", vocab_size)

    def _activation(self) -> Activation:
        name = self._raw.get("hidden_activation") or self._raw.get("hidden_act")
        if name is None:
            return self.family.activation
        if name not in self.family.activations:
            known = ", ".join(self.family.activations)
            raise UnsupportedFeature(
                f"{self.folder}: activation {name!r} is not supported; supported: {known}"
            )
        return self.family.activations[name]

    def _attention_scale(self, head_dim: int) -> float | None:
        scale = self._float("query_pre_attn_scalar", head_dim, gt=0) ** -0.5
        scale = self._float("attention_multiplier", scale)
        return None if scale == head_dim**-0.5 else scale

    def _ropes(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The rotary parameters of layers without a window, and of those with one."""
        rope = self._object("rope_parameters") or self._object("rope_scaling")
        if "full_attention" not in rope:
            return rope, {}
        local, everywhere = (rope.get(key) or {} for key in ("sliding_attention", "full_attention"))
        if not isinstance(local, dict) or not isinstance(everywhere, dict):
            raise ModelFileError(
                f"{self.folder / 'config.json'}: rope_parameters lacks an object for a layer type"
            )
        if local.get("rope_type", "default") != "default":
            raise UnsupportedFeature(
                f"{self.folder}: rotary scaling {local['rope_type']!r} in layers with a window is not supported"
            )
        return everywhere, local

    def _stretched(self, rope: dict[str, Any], length: int) -> int:
        """The context length with YaRN: ``factor`` times the original length, which many configs declare as their
        length.
        """
        original = rope.get("original_max_position_embeddings")
        if rope.get("rope_type", rope.get("type")) != "yarn" or original is None:
            return length
        return max(length, int(original * rope["factor"]))

    def _object(self, key: str) -> dict[str, Any]:
        value = self._raw.get(key) or {}
        if not isinstance(value, dict):
            raise ModelFileError(
                f"{self.folder / 'config.json'}: {key} is {type(value).__name__}, expected an object"
            )
        return value

    def _rope_scaling(
        self, rope: dict[str, Any], dimensions: int, theta: float, length: int
    ) -> rotary.RopeScaling:
        kind = rope.get("rope_type", rope.get("type", "default"))

        def number(key: str, default: float | None = None) -> float:
            value = rope.get(key)
            where = f"{self.folder / 'config.json'}: {key} of rotary scaling {kind!r}"
            return float(checked_number(default if value is None else value, where, gt=0))

        original: float = self._integer("original_max_position_embeddings", length)
        scale = None if rope.get("attention_factor") is None else number("attention_factor")
        match kind:
            case "default":
                return rotary.RopeScaling()
            case "linear":
                return rotary.linear(dimensions, number("factor"))
            case "llama3":
                low, high = number("low_freq_factor"), number("high_freq_factor")
                original = number("original_max_position_embeddings", original)
                return rotary.llama3(dimensions, theta, number("factor"), low, high, original)
            case "longrope" | "su" if isinstance(factors := rope.get("short_factor"), list):
                original = int(number("original_max_position_embeddings", original))
                factors = [self._checked(factor, "short_factor", gt=0) for factor in factors]
                return rotary.longrope(factors, number("factor", length / original), original, scale)
            case "yarn" if not rope.get("mscale") and not rope.get("llama_4_scaling_beta"):
                return rotary.yarn(
                    dimensions,
                    theta,
                    number("factor"),
                    number("original_max_position_embeddings", original),
                    beta_fast=number("beta_fast", 32.0),
                    beta_slow=number("beta_slow", 1.0),
                    scale=scale,
                    truncate=bool(rope.get("truncate", True)),
                )
        raise UnsupportedFeature(
            f"{self.folder}: rotary scaling {kind!r} is not supported; supported: default, linear, llama3, longrope "
            "and plain yarn"
        )

    def _float(self, key: str, default: float, *, gt: float | None = None, ge: float | None = None) -> float:
        value = self._raw.get(key)
        return self._checked(default if value is None else value, key, gt=gt, ge=ge)

    def _integer(self, key: str, default: int | None = None) -> int:
        value = self._raw.get(key)
        return int(self._checked(default if value is None else value, key, gt=0, whole=True))

    def _checked(
        self,
        value: object,
        key: str,
        *,
        gt: float | None = None,
        ge: float | None = None,
        whole: bool = False,
    ) -> float:
        where = f"{self.folder / 'config.json'}: {key}"
        return float(checked_number(value, where, gt=gt, ge=ge, whole=whole))


def hf_name(name: str, family: Family = FAMILIES[0], prefix: str = "model.") -> str:
    """The tensor name of a canonical weight name: ``layers.3.q.bias`` → ``model.layers.3.self_attn.q_proj.bias``."""
    if name == "lm_head":
        return _PREFIXES[prefix]
    if not name.startswith("layers."):
        return prefix + _GLOBAL_NAMES[name]
    _, layer, kind, *rest = name.split(".")
    return f"{prefix}layers.{layer}.{family.tensors[kind]}.{rest[0] if rest else 'weight'}"

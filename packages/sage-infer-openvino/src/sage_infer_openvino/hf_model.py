"""A Llama-family decoder from a Hugging Face folder: ``config.json`` and safetensors, whole or sharded.

Fields of ``config.json``: transformers' ``LlamaConfig``, in the spelling of version 4 (``rope_theta``,
``rope_scaling``) and of version 5 (``rope_parameters``).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from sage_infer.errors import ModelFileError, UnsupportedFeature

from sage_infer_openvino.decoder_weights import DecoderConfig, DenseWeight
from sage_infer_openvino.safetensors_file import SafetensorsFolder

__all__ = ["HfModel"]

_GLOBAL_NAMES = {
    "embed": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "lm_head": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


class HfModel:
    """A Hugging Face folder opened as a decoder (a
    :class:`~sage_infer_openvino.decoder_weights.DecoderSource`).

    Raises :class:`ModelFileError` for files that are missing, cut off or inconsistent, and
    :class:`UnsupportedFeature` for another architecture, activation or rotary scaling than are implemented.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / "config.json"
        try:
            self._raw = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{path}: not readable as JSON: {error}") from error
        if not isinstance(self._raw, dict):
            raise ModelFileError(f"{path}: expected a JSON object, got {type(self._raw).__name__}")
        architectures = self._raw.get("architectures") or []
        if self._raw.get("model_type") != "llama" or any(
            name != "LlamaForCausalLM" for name in architectures
        ):
            found = ", ".join(map(str, architectures)) or str(self._raw.get("model_type"))
            raise UnsupportedFeature(
                f"{path}: architecture {found!r} is not supported by the openvino backend; supported: "
                "LlamaForCausalLM"
            )
        self._tensors = SafetensorsFolder(self.folder)
        self.config = self._config()

    def weight(self, name: str) -> DenseWeight:
        """The weight of that canonical name (see ``decoder_weights``), as a view of the file."""
        return self._tensors.weight(hf_name(name))

    def _config(self) -> DecoderConfig:
        raw, tensors = self._raw, self._tensors
        if raw.get("hidden_act", "silu") != "silu":
            raise UnsupportedFeature(
                f"{self.folder}: activation {raw['hidden_act']!r} is not supported (silu is)"
            )
        if raw.get("quantization_config"):
            raise UnsupportedFeature(
                f"{self.folder}: a quantized folder is not supported; use a float folder or a GGUF file"
            )
        heads, hidden = self._integer("num_attention_heads"), self._integer("hidden_size")
        head_dim = self._integer("head_dim", hidden // heads)
        tied = bool(raw.get("tie_word_embeddings", False)) or "lm_head.weight" not in tensors
        eos = raw.get("eos_token_id")
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        theta = rope.get("rope_theta", raw.get("rope_theta", 10000.0))
        return DecoderConfig(
            architecture="llama",
            name=Path(str(raw.get("_name_or_path") or self.folder.name)).name,
            num_layers=self._integer("num_hidden_layers"),
            hidden_size=hidden,
            num_heads=heads,
            num_kv_heads=self._integer("num_key_value_heads", heads),
            head_dim=head_dim,
            intermediate_size=self._integer("intermediate_size"),
            vocab_size=tensors.shape("model.embed_tokens.weight")[0],
            max_sequence_length=self._integer("max_position_embeddings", 2048),
            rms_eps=float(raw.get("rms_norm_eps", 1e-6)),
            rope_theta=float(theta),
            rope_factors=_rope_factors(rope, head_dim, float(theta), self.folder),
            tied_embeddings=tied,
            attention_bias="model.layers.0.self_attn.q_proj.bias" in tensors,
            output_bias="model.layers.0.self_attn.o_proj.bias" in tensors,
            mlp_bias="model.layers.0.mlp.gate_proj.bias" in tensors,
            bos_token_id=raw.get("bos_token_id"),
            eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
            pad_token_id=raw.get("pad_token_id"),
        )

    def _integer(self, key: str, default: int | None = None) -> int:
        value = self._raw.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise ModelFileError(
                f"{self.folder / 'config.json'}: {key} is {value!r}, expected a positive integer"
            )
        return value


def hf_name(name: str) -> str:
    """The tensor of a canonical weight name: ``layers.3.q.bias`` →
    ``model.layers.3.self_attn.q_proj.bias``.
    """
    if not name.startswith("layers."):
        return _GLOBAL_NAMES[name]
    _, layer, kind, *rest = name.split(".")
    return f"model.layers.{layer}.{_LAYER_NAMES[kind]}.{rest[0] if rest else 'weight'}"


def _rope_factors(
    rope: dict[str, Any], head_dim: int, theta: float, folder: Path
) -> tuple[float, ...] | None:
    """Divisors of the rotary frequencies for transformers' ``rope_type`` ``default``, ``linear`` and
    ``llama3``.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return (float(rope["factor"]),) * (head_dim // 2)
    if kind != "llama3":
        raise UnsupportedFeature(
            f"{folder}: rotary scaling {kind!r} is not supported (default, linear and llama3 are)"
        )
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(rope["original_max_position_embeddings"])
    factors = []
    for exponent in np.arange(0, head_dim, 2) / head_dim:
        turns = original / (2 * math.pi * theta**exponent)
        # Frequencies that turn often over the original context stay, slow ones are stretched, between them a
        # ramp.
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(float(1.0 / ((1.0 - smooth) / factor + smooth)))
    return tuple(factors)

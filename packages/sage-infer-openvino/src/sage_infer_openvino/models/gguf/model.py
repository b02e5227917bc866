"""A decoder from a GGUF file: its config, and its exact weights.

Metadata keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Block formats of quantized types:
``ggml-common.h`` of the same project; ``gguf.quants`` dequantizes the types without a :class:`GroupedWeight`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType as GgmlType
from gguf.quants import dequantize
from sage_infer.errors import ModelFileError, UnsupportedFeature

from sage_infer_openvino.models import rotary
from sage_infer_openvino.models.decoder_weights import (
    DecoderConfig,
    DenseWeight,
    GroupedWeight,
    Weight,
    map_rows,
)
from sage_infer_openvino.models.families import (
    FAMILIES,
    Family,
    gguf_family,
    refuse,
    rows_of,
    unrotated_layers,
    windows_of,
)
from sage_infer_openvino.models.file_checks import (
    check_config,
    check_finite,
    checked_number,
    special_token_id,
)
from sage_infer_openvino.models.gguf.file import GgufFile, GgufTensor

__all__ = ["GgufModel"]

_GLOBAL_NAMES = {"embed": "token_embd", "final_norm": "output_norm", "lm_head": "output"}
_END_OF_TURN = ("eos_token_id", "eot_token_id", "eom_token_id")


class GgufModel:
    """A GGUF file opened as a decoder (a :class:`~sage_infer_openvino.models.decoder_weights.DecoderSource`).

    Raises :class:`ModelFileError` for an incomplete file or missing data, and :class:`UnsupportedFeature` for an
    unsupported architecture, rotary scaling or tensor type.
    """

    def __init__(self, path: str | Path) -> None:
        self.file = GgufFile(path)
        self.family = gguf_family(self.file.metadata.get("general.architecture"), str(self.file.path))
        self.config = self._config()

    def weight(self, name: str) -> Weight:
        """The weight with a canonical name (see ``decoder_weights``), read from the memory map on each call."""
        tensor = self._tensor(gguf_name(name, self.family))
        kind = name.split(".")[2] if name.startswith("layers.") else name
        weight = self._decode(tensor, kind)
        check_finite(weight, tensor.name, self._where)
        if kind in ("q", "k") and self.family.gguf_interleaves:
            heads = self.config.num_heads if kind == "q" else self.config.num_kv_heads
            if weight.shape[0] != heads * self.config.head_dim:
                raise ModelFileError(
                    f"{self._where}: tensor {tensor.name} has {weight.shape[0]} rows, expected {heads} heads of "
                    f"{self.config.head_dim}; the file is damaged"
                )
            return map_rows(weight, lambda rows: _unpermute(rows, heads))
        return weight

    def _tensor(self, name: str) -> GgufTensor:
        try:
            return self.file.tensors[name]
        except KeyError:
            raise ModelFileError(
                f"{self.file.path}: tensor {name} is missing; the file is incomplete"
            ) from None

    def _decode(self, tensor: GgufTensor, kind: str = "") -> Weight:
        raw, shape = self.file.raw(tensor), tensor.shape
        part = rows_of(kind, self.family.gguf_tensors, self.config) if kind else None
        if part is not None:
            rows, total = part
            if shape[0] != total:
                raise ModelFileError(
                    f"{self.file.path}: tensor {tensor.name} has {shape[0]} rows, expected {total}"
                )
            raw = raw.reshape(total, -1)[rows].reshape(-1)
            shape = (rows.stop - rows.start, *shape[1:])
        match tensor.type:
            case GgmlType.F32:
                return DenseWeight(raw.view(np.float32).reshape(shape), "f32")
            case GgmlType.F16:
                return DenseWeight(raw.view(np.float16).reshape(shape), "f16")
            case GgmlType.BF16:
                return DenseWeight(raw.view(np.uint16).reshape(shape), "bf16")
            case GgmlType.Q8_0:
                return _grouped(raw, shape, bits=8, has_minimum=False)
            case GgmlType.Q4_0:
                return _grouped(raw, shape, bits=4, has_minimum=False)
            case GgmlType.Q4_1:
                return _grouped(raw, shape, bits=4, has_minimum=True)
        try:
            blocks = raw.reshape(*shape[:-1], -1)
            return DenseWeight(
                dequantize(blocks, tensor.type).astype(np.float32, copy=False).reshape(shape), "f32"
            )
        except NotImplementedError as error:
            raise UnsupportedFeature(
                f"{self.file.path}: tensor {tensor.name} has the type {tensor.type.name}, which the package `gguf` "
                "cannot dequantize; "
                "use a file in F16, Q8_0, Q4_0, Q4_1 or a K-quant"
            ) from error

    def _config(self) -> DecoderConfig:
        meta, tensors, family = self.file.metadata, self.file.tensors, self.family
        if self._number("expert_count", 0):
            raise UnsupportedFeature(
                f"{self.file.path}: a mixture of experts is not supported; use a dense model"
            )
        refuse(
            family,
            {key: meta.get(self._key(key)) for key in family.refused if self._key(key) in meta},
            self._where,
        )
        hidden, heads = self._count("embedding_length"), self._count("attention.head_count")
        layers, length = self._count("block_count"), self._count("context_length")
        head_dim = self._count("attention.key_length", hidden // heads)
        if self._count("attention.value_length", head_dim) != head_dim:
            raise UnsupportedFeature(
                f"{self.file.path}: keys and values of different dimensions are not supported"
            )
        rotary_dim = self._count("rope.dimension_count", head_dim)
        if rotary_dim != head_dim and family.gguf_interleaves:
            raise UnsupportedFeature(
                f"{self.file.path}: partial rotary embedding is not supported for "
                f"{meta['general.architecture']}"
            )
        theta = float(self._number("rope.freq_base", 10000.0, gt=1))
        scaling = self._rope_scaling(rotary_dim, theta, length)
        embed = self._tensor("token_embd.weight")
        if len(embed.shape) != 2:
            raise ModelFileError(
                f"{self._where}: token_embd.weight has the shape {embed.shape}, expected two dimensions"
            )
        ids = [self._token_id(key, embed.shape[0]) for key in _END_OF_TURN]
        windows = self._windows(layers, length)
        local_theta = float(self._number("rope.freq_base_swa", family.local_theta or theta, gt=1))
        config = DecoderConfig(
            architecture=family.key,
            name=str(meta.get("general.name", self.file.path.stem)),
            num_layers=layers,
            hidden_size=hidden,
            num_heads=heads,
            num_kv_heads=self._count("attention.head_count_kv", heads),
            head_dim=head_dim,
            intermediate_size=self._count("feed_forward_length"),
            vocab_size=embed.shape[0],
            max_sequence_length=min(length, scaling.limit or length),
            rms_eps=float(self._number("attention.layer_norm_rms_epsilon", ge=0)),
            rope_theta=theta,
            rope_factors=scaling.factors,
            rope_scale=scaling.scale,
            rotary_dim=None if rotary_dim == head_dim else rotary_dim,
            local_rope_theta=local_theta if windows and family.local_rotary else None,
            unrotated_layers=unrotated_layers(family, {}, layers),
            windows=windows,
            attention_scale=self._attention_scale(layers, head_dim),
            qk_norm=family.qk_norm,
            activation=family.activation,
            input_norms=family.input_norms,
            output_norms=family.output_norms,
            embedding_scale=math.sqrt(hidden)
            if family.scales_embedding
            else self._number("embedding_scale", 1.0),
            residual_scale=self._number("residual_scale", 1.0),
            logit_scale=1 / self._number("logit_scale", 1.0, gt=0),
            logit_cap=self._number("final_logit_softcapping", 0.0, ge=0) or None,
            tied_embeddings="output.weight" not in tensors,
            attention_bias=gguf_name("layers.0.q.bias", family) in tensors,
            output_bias=gguf_name("layers.0.o.bias", family) in tensors,
            mlp_bias=gguf_name("layers.0.gate.bias", family) in tensors,
            bos_token_id=self._token_id("bos_token_id", embed.shape[0]),
            eos_token_ids=tuple(dict.fromkeys(i for i in ids if i is not None)),
            pad_token_id=self._token_id("padding_token_id", embed.shape[0]),
        )
        if embed.shape[1] != hidden:
            raise ModelFileError(
                f"{self.file.path}: token_embd.weight has rows of {embed.shape[1]}, expected "
                f"embedding_length {hidden}"
            )
        check_config(config, self._where)
        return config

    @property
    def _where(self) -> str:
        return str(self.file.path)

    def _key(self, key: str) -> str:
        return f"{self.file.metadata['general.architecture']}.{key}"

    def _count(self, key: str, default: int | None = None) -> int:
        return int(self._number(key, default, gt=0, whole=True))

    def _token_id(self, key: str, vocab_size: int) -> int | None:
        key = f"tokenizer.ggml.{key}"
        return special_token_id(self.file.metadata.get(key), f"{self._where}: metadata {key}", vocab_size)

    def _number(
        self,
        key: str,
        default: float | None = None,
        *,
        gt: float | None = None,
        ge: float | None = None,
        whole: bool = False,
    ) -> float:
        key = self._key(key)
        value = self.file.metadata.get(key, default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if isinstance(value, list):
            raise UnsupportedFeature(
                f"{self.file.path}: {key} differs between layers, which is not supported"
            )
        return checked_number(value, f"{self._where}: metadata {key}", gt=gt, ge=ge, whole=whole)

    def _attention_scale(self, layers: int, head_dim: int) -> float | None:
        scalar = self.family.gguf_query_scalars.get(layers, head_dim)
        scale = self._number("attention.scale", 0.0) or scalar**-0.5
        return None if scale == head_dim**-0.5 else scale

    def _windows(self, layers: int, length: int) -> tuple[int, ...] | None:
        pattern = self.file.metadata.get(self._key("attention.sliding_window_pattern"))
        facts = {
            **self.family.defaults,
            "sliding_window": int(self._number("attention.sliding_window", 0, ge=0, whole=True)),
        }
        if isinstance(pattern, list):
            facts["layer_types"] = ["sliding_attention" if local else "full_attention" for local in pattern]
        elif pattern is not None:
            facts["sliding_window_pattern"] = pattern
        return windows_of(self.family, facts, layers, length, self._where)

    def _rope_scaling(self, dimensions: int, theta: float, length: int) -> rotary.RopeScaling:
        meta, tensors = self.file.metadata, self.file.tensors
        if "rope_freqs.weight" in tensors:
            return rotary.RopeScaling(self._floats("rope_freqs.weight"))
        if "rope_factors_short.weight" in tensors:
            original = self._count("rope.scaling.original_context_length", length)
            scale = self._number("rope.scaling.attn_factor", 1.0)
            return rotary.longrope(
                self._floats("rope_factors_short.weight"), length / original, original, scale
            )
        old_factor = self._number("rope.scale_linear", 1.0, gt=0)
        kind = meta.get(self._key("rope.scaling.type"), "none" if old_factor == 1.0 else "linear")
        factor = self._number("rope.scaling.factor", old_factor, gt=0)
        if kind == "none":
            return rotary.RopeScaling()
        if kind == "linear":
            return rotary.linear(dimensions, factor)
        if kind == "yarn" and not self._number("rope.scaling.yarn_log_multiplier", 0.0):
            yarn = rotary.yarn(
                dimensions,
                theta,
                factor,
                self._count("rope.scaling.original_context_length", length),
                beta_fast=self._number("rope.scaling.yarn_beta_fast", 32.0, gt=0),
                beta_slow=self._number("rope.scaling.yarn_beta_slow", 1.0, gt=0),
            )
            return rotary.RopeScaling(
                yarn.factors, yarn.scale * self._number("rope.scaling.attn_factor", 1.0)
            )
        raise UnsupportedFeature(
            f"{self.file.path}: rotary scaling {kind!r} is not supported; supported: none, linear, llama3, longrope "
            "and plain yarn"
        )

    def _floats(self, name: str) -> tuple[float, ...]:
        return tuple(map(float, self._decode(self._tensor(name)).dense()))


def gguf_name(name: str, family: Family = FAMILIES[0]) -> str:
    """The GGUF tensor name of a canonical weight name: ``layers.3.q.bias`` → ``blk.3.attn_q.bias``."""
    if not name.startswith("layers."):
        return _GLOBAL_NAMES[name] + ".weight"
    _, layer, kind, *rest = name.split(".")
    return f"blk.{layer}.{family.gguf_tensors[kind]}.{rest[0] if rest else 'weight'}"


def _grouped(
    raw: npt.NDArray[np.uint8], shape: tuple[int, ...], *, bits: int, has_minimum: bool
) -> GroupedWeight:
    """Decode blocks of 32 values: ``d: f16 [, m: f16]``, then 32 int8 or 16 bytes of nibble pairs ``(j, j + 16)``."""
    rows, groups = int(np.prod(shape[:-1])), shape[-1] // 32
    head = 4 if has_minimum else 2
    blocks = raw.reshape(rows, groups, -1)
    floats = np.ascontiguousarray(blocks[..., :head]).view(np.float16).astype(np.float32)
    scale = np.ascontiguousarray(floats[..., 0])
    if bits == 8:
        return GroupedWeight(8, np.ascontiguousarray(blocks[..., head:]).view(np.int8), scale, None)
    packed = blocks[..., head:]
    quants = np.concatenate([packed & 15, packed >> 4], axis=-1)
    # Q4_0 is d * (q - 8), stored here as d * q + minimum with minimum = -8 * d. Both are exact in float32: products of
    # an f16 (11 significant bits) and at most 4 bits need 15 of 24 significant bits.
    minimum = np.ascontiguousarray(floats[..., 1]) if has_minimum else scale * np.float32(-8)
    return GroupedWeight(4, quants, scale, minimum)


def _unpermute(rows: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Convert a head's rows from llama.cpp's order, which interleaves the two halves, to Hugging Face's order."""
    half = rows.shape[0] // heads // 2
    return np.ascontiguousarray(rows.reshape(heads, half, 2, *rows.shape[1:]).swapaxes(1, 2)).reshape(
        rows.shape
    )

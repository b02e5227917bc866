"""A Llama-family decoder from a GGUF file: its config, and its weights exactly as they are.

Metadata keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Blocks of the quantized types:
``ggml-common.h`` of the same project, and ``gguf.quants`` for every type that is not kept in its own form
here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType as GgmlType
from gguf.quants import dequantize
from sage_infer.errors import ModelFileError, UnsupportedFeature

from sage_infer_openvino.decoder_weights import DecoderConfig, DenseWeight, GroupedWeight, Weight
from sage_infer_openvino.gguf_file import GgufFile, GgufTensor

__all__ = ["SUPPORTED_ARCHITECTURES", "GgufModel"]

SUPPORTED_ARCHITECTURES = ("llama",)

_GLOBAL_NAMES = {"embed": "token_embd", "final_norm": "output_norm", "lm_head": "output"}
_LAYER_NAMES = {
    "attn_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_END_OF_TURN = ("eos_token_id", "eot_token_id", "eom_token_id")


class GgufModel:
    """A GGUF file opened as a decoder (a :class:`~sage_infer_openvino.decoder_weights.DecoderSource`).

    Raises :class:`ModelFileError` for a file that is not a whole GGUF or lacks what a decoder needs, and
    :class:`UnsupportedFeature` for an architecture, rotary scaling or tensor type that is not implemented.
    """

    def __init__(self, path: str | Path) -> None:
        self.file = GgufFile(path)
        self.config = self._config()

    def weight(self, name: str) -> Weight:
        """The weight of that canonical name (see ``decoder_weights``), read from the memory map on each
        call.
        """
        tensor = self._tensor(gguf_name(name))
        weight = self._decode(tensor)
        kind = name.split(".")[2] if name.startswith("layers.") else name
        if kind in ("q", "k"):
            heads = self.config.num_heads if kind == "q" else self.config.num_kv_heads
            return _map_rows(weight, lambda rows: _unpermute(rows, heads))
        return weight

    def _tensor(self, name: str) -> GgufTensor:
        try:
            return self.file.tensors[name]
        except KeyError:
            raise ModelFileError(f"{self.file.path}: has no tensor {name}; the file is incomplete") from None

    def _decode(self, tensor: GgufTensor) -> Weight:
        raw, shape = self.file.raw(tensor), tensor.shape
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
            rows = raw.reshape(*shape[:-1], -1)
            return DenseWeight(
                dequantize(rows, tensor.type).astype(np.float32, copy=False).reshape(shape), "f32"
            )
        except NotImplementedError as error:
            raise UnsupportedFeature(
                f"{self.file.path}: tensor {tensor.name} is {tensor.type.name}, which the `gguf` "
                "package cannot dequantize; "
                "use a file in F16, Q8_0, Q4_0, Q4_1 or a K-quant"
            ) from error

    def _config(self) -> DecoderConfig:
        meta, tensors = self.file.metadata, self.file.tensors
        architecture = meta.get("general.architecture")
        if architecture not in SUPPORTED_ARCHITECTURES:
            raise UnsupportedFeature(
                f"{self.file.path}: architecture {architecture!r} is not supported by the openvino backend; "
                f"supported: {', '.join(SUPPORTED_ARCHITECTURES)}"
            )
        if self._number("expert_count", 0):
            raise UnsupportedFeature(
                f"{self.file.path}: a mixture of experts is not supported; use a dense llama model"
            )
        hidden, heads = int(self._number("embedding_length")), int(self._number("attention.head_count"))
        head_dim = int(self._number("attention.key_length", hidden // heads))
        if int(self._number("attention.value_length", head_dim)) != head_dim:
            raise UnsupportedFeature(
                f"{self.file.path}: keys and values of different width are not supported"
            )
        if int(self._number("rope.dimension_count", head_dim)) != head_dim:
            raise UnsupportedFeature(
                f"{self.file.path}: rotary embedding of a part of each head is not supported"
            )
        embed = self._tensor("token_embd.weight")
        ids = [meta.get(f"tokenizer.ggml.{key}") for key in _END_OF_TURN]
        config = DecoderConfig(
            architecture=architecture,
            name=str(meta.get("general.name", self.file.path.stem)),
            num_layers=int(self._number("block_count")),
            hidden_size=hidden,
            num_heads=heads,
            num_kv_heads=int(self._number("attention.head_count_kv", heads)),
            head_dim=head_dim,
            intermediate_size=int(self._number("feed_forward_length")),
            vocab_size=embed.shape[0],
            max_sequence_length=int(self._number("context_length")),
            rms_eps=float(self._number("attention.layer_norm_rms_epsilon")),
            rope_theta=float(self._number("rope.freq_base", 10000.0)),
            rope_factors=self._rope_factors(head_dim),
            tied_embeddings="output.weight" not in tensors,
            attention_bias="blk.0.attn_q.bias" in tensors,
            output_bias="blk.0.attn_output.bias" in tensors,
            mlp_bias="blk.0.ffn_gate.bias" in tensors,
            bos_token_id=meta.get("tokenizer.ggml.bos_token_id"),
            eos_token_ids=tuple(dict.fromkeys(i for i in ids if i is not None)),
            pad_token_id=meta.get("tokenizer.ggml.padding_token_id"),
        )
        if embed.shape[1] != hidden:
            raise ModelFileError(
                f"{self.file.path}: token_embd.weight has rows of {embed.shape[1]}, expected "
                f"embedding_length {hidden}"
            )
        return config

    def _number(self, key: str, default: float | None = None) -> float:
        value = self.file.metadata.get(f"llama.{key}", default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if isinstance(value, list):
            raise UnsupportedFeature(
                f"{self.file.path}: llama.{key} differs between layers, which is not supported"
            )
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ModelFileError(f"{self.file.path}: metadata llama.{key} is {value!r}, expected a number")
        return value

    def _rope_factors(self, head_dim: int) -> tuple[float, ...] | None:
        meta = self.file.metadata
        if "rope_freqs.weight" in self.file.tensors:
            factors = self._decode(self._tensor("rope_freqs.weight")).dense()
            return tuple(float(factor) for factor in factors)
        kind = meta.get("llama.rope.scaling.type", "linear" if "llama.rope.scale_linear" in meta else "none")
        if kind == "none":
            return None
        if kind == "linear":
            factor = float(meta.get("llama.rope.scaling.factor", meta.get("llama.rope.scale_linear", 1.0)))
            return (factor,) * (head_dim // 2) if factor != 1.0 else None
        raise UnsupportedFeature(
            f"{self.file.path}: rotary scaling {kind!r} is not supported (none, linear and llama3 are)"
        )


def gguf_name(name: str) -> str:
    """The GGUF tensor of a canonical weight name: ``layers.3.q.bias`` → ``blk.3.attn_q.bias``."""
    if not name.startswith("layers."):
        return _GLOBAL_NAMES[name] + ".weight"
    _, layer, kind, *rest = name.split(".")
    return f"blk.{layer}.{_LAYER_NAMES[kind]}.{rest[0] if rest else 'weight'}"


def _grouped(
    raw: npt.NDArray[np.uint8], shape: tuple[int, ...], *, bits: int, has_minimum: bool
) -> GroupedWeight:
    """Takes blocks of 32 values apart: ``d: f16 [, m: f16], then 32 int8 or 16 bytes of nibble pairs (j, j +
    16)``.
    """
    rows, groups = int(np.prod(shape[:-1])), shape[-1] // 32
    head = 4 if has_minimum else 2
    blocks = raw.reshape(rows, groups, -1)
    floats = np.ascontiguousarray(blocks[..., :head]).view(np.float16).astype(np.float32)
    scale = np.ascontiguousarray(floats[..., 0])
    if bits == 8:
        return GroupedWeight(8, np.ascontiguousarray(blocks[..., head:]).view(np.int8), scale, None)
    packed = blocks[..., head:]
    quants = np.concatenate([packed & 15, packed >> 4], axis=-1)
    # Q4_0 is d * (q - 8); d * -8 is exact (a power of two), so d * q + minimum rounds as d * (q - 8) does
    # only after an exact sum. It is kept as such: 15 * d has 4 + 11 significant bits, far from float32's 24.
    minimum = np.ascontiguousarray(floats[..., 1]) if has_minimum else scale * np.float32(-8)
    return GroupedWeight(4, quants, scale, minimum)


def _unpermute(rows: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Undoes llama.cpp's order of a head's rows: it interleaves the halves that Hugging Face keeps apart."""
    half = rows.shape[0] // heads // 2
    return np.ascontiguousarray(rows.reshape(heads, half, 2, *rows.shape[1:]).swapaxes(1, 2)).reshape(
        rows.shape
    )


def _map_rows(weight: Weight, move: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> Weight:
    if isinstance(weight, DenseWeight):
        return DenseWeight(move(weight.values), weight.type)
    minimum = None if weight.minimum is None else move(weight.minimum)
    return GroupedWeight(weight.bits, move(weight.quants), move(weight.scale), minimum)

"""A decoder's config and exact weights, independent of the file format.

``gguf.model`` and ``hf_model`` produce a :class:`DecoderSource`; ``decoder_graph`` consumes one. In every file format,
weights have the canonical names below, and rows of ``q`` and ``k`` are in Hugging Face order (the two halves of a head
are rotated against each other).

===============================  =========================================
``embed``                        ``[vocab, hidden]``
``final_norm``                   ``[hidden]``
``lm_head``                      ``[vocab, hidden]``, absent when tied to ``embed``
``layers.N.attn_norm``           ``[hidden]``
``layers.N.{q,k,v}``             ``[heads * head_dim, hidden]``
``layers.N.{q,k}_norm``          ``[head_dim]`` or ``[heads * head_dim]``
``layers.N.o``                   ``[hidden, num_heads * head_dim]``
``layers.N.attn_post_norm``      ``[hidden]``
``layers.N.mlp_norm``            ``[hidden]``
``layers.N.{gate,up}``           ``[intermediate, hidden]``
``layers.N.down``                ``[hidden, intermediate]``
``layers.N.mlp_post_norm``       ``[hidden]``
``layers.N.X.bias``              ``[rows of X]``, optional
===============================  =========================================

The config says which norms and biases exist, and whether ``lm_head`` does. A norm's weight is the factor of the
normalized vector, even if a file stores the factor minus one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import attrs
import numpy as np
import numpy.typing as npt

__all__ = [
    "Activation",
    "DecoderConfig",
    "DecoderSource",
    "DenseWeight",
    "FloatType",
    "GroupedWeight",
    "QkNorm",
    "Weight",
    "map_rows",
    "stacked",
]

FloatType = Literal["f32", "f16", "bf16"]
Activation = Literal["silu", "gelu_tanh"]
QkNorm = Literal["none", "head", "width"]
"""Normalization of q and k before rotation: none, per head, or over all heads together."""


@attrs.frozen(kw_only=True)
class DecoderConfig:
    """Dimensions and constants of a decoder-only language model. Lengths count tokens, ids are token ids."""

    architecture: str
    """The family's key (``families``), informative only: the other fields define the computation."""
    name: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_sequence_length: int
    rms_eps: float
    rope_theta: float
    rope_factors: tuple[float, ...] | None = None
    """Divisors of the ``rotary_dim / 2`` rotary frequencies (``rotary``); ``None``: all 1."""
    rope_scale: float = 1.0
    """Factor on cosine and sine."""
    rotary_dim: int | None = None
    """Number of leading values per head that are rotated; ``None``: all ``head_dim``."""
    local_rope_theta: float | None = None
    """Rotary base in layers with a window, without factors or scale; ``None``: same as in other layers."""
    unrotated_layers: tuple[int, ...] = ()
    windows: tuple[int, ...] | None = None
    """Attention window per layer in tokens, including the token itself, 0 for none; ``None``: no windows."""
    attention_scale: float | None = None
    """Factor on attention scores; ``None``: ``1 / sqrt(head_dim)``."""
    qk_norm: QkNorm = "none"
    activation: Activation = "silu"
    input_norms: bool = True
    """Whether the inputs of attention and MLP are normalized."""
    output_norms: bool = False
    """Whether the outputs of attention and MLP are normalized before they are added."""
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    """Factor on the outputs of attention and MLP."""
    logit_scale: float = 1.0
    logit_cap: float | None = None
    """Logits become ``cap * tanh(logits / cap)``."""
    tied_embeddings: bool = False
    attention_bias: bool = False
    """Whether q, k and v have a bias."""
    output_bias: bool = False
    """Whether the attention's output projection has a bias."""
    mlp_bias: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON data, for :meth:`from_dict`."""
        return attrs.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DecoderConfig:
        """The inverse of :meth:`to_dict`. Raises ``TypeError`` for a missing or an unknown key."""
        data = dict(data)
        for key in ("rope_factors", "unrotated_layers", "windows", "eos_token_ids"):
            if data.get(key) is not None:
                data[key] = tuple(data[key])
        return cls(**data)

    def window(self, layer: int) -> int:
        """Attention window of a layer in tokens, 0 for none."""
        return self.windows[layer] if self.windows else 0

    def inverse_frequencies(self, local: bool = False) -> npt.NDArray[np.float32]:
        """Angular frequencies of the rotary embedding per position, ``[rotary_dim / 2]``, computed in float32.

        ``local`` selects those of layers with a window.
        """
        dimensions = self.rotary_dim or self.head_dim
        exponents = np.arange(0, dimensions, 2, dtype=np.float32) / np.float32(dimensions)
        if local and self.local_rope_theta is not None:
            return np.asarray(np.float32(1) / np.power(np.float32(self.local_rope_theta), exponents))
        frequencies = np.float32(1) / np.power(np.float32(self.rope_theta), exponents)
        if self.rope_factors is not None:
            frequencies = frequencies / np.asarray(self.rope_factors, dtype=np.float32)
        return np.asarray(frequencies, dtype=np.float32)


@attrs.frozen(eq=False)
class DenseWeight:
    """A weight stored as floats. ``values`` holds bf16 as ``uint16`` bit patterns."""

    values: npt.NDArray[Any]
    type: FloatType

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    def dense(self) -> npt.NDArray[np.float32]:
        """The weight in float32; exact, because float32 contains every supported type."""
        if self.type == "bf16":
            bits: npt.NDArray[Any] = np.left_shift(self.values, 16, dtype=np.uint32)
            return bits.view(np.float32)
        return self.values.astype(np.float32)


@attrs.frozen(eq=False)
class GroupedWeight:
    """A matrix of small integers with one scale, and optionally one minimum, per ``group`` columns.

    ``w[r, g * group + j] = scale[r, g] * quants[r, g, j] + minimum[r, g]``; a ``minimum`` of ``None`` counts as 0.
    ``quants`` is ``[rows, groups, group]`` of ``int8`` (``bits=8``, signed) or ``uint8`` (``bits=4``, 0 to 15, one
    value per byte); ``scale`` and ``minimum`` are float32 ``[rows, groups]``.
    """

    bits: Literal[4, 8]
    quants: npt.NDArray[Any]
    scale: npt.NDArray[np.float32]
    minimum: npt.NDArray[np.float32] | None

    @property
    def shape(self) -> tuple[int, int]:
        rows, groups, group = self.quants.shape
        return rows, groups * group

    @property
    def form(self) -> tuple[int, int, bool]:
        """Bits, columns per group, and whether there are minima."""
        return self.bits, self.quants.shape[2], self.minimum is not None

    def dense(self) -> npt.NDArray[np.float32]:
        """The weight in float32, with the same rounding as ``gguf.quants.dequantize``."""
        values = self.quants.astype(np.float32)
        values *= self.scale[:, :, None]
        if self.minimum is not None:
            values += self.minimum[:, :, None]
        return values.reshape(self.shape)

    def affine(self) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
        """The same weight as ``(quants - zero_point) * scale``: quants, float32 scale, and float32 zero point or None.

        The zero point is not rounded to an integer, which would change weights by up to a tenth. A group with scale 0
        (all its weights are the minimum) has no zero point; it becomes ``(0 + minimum) * 1``.
        """
        if self.minimum is None:
            return self.quants, self.scale, None
        flat = self.scale == 0
        scale = np.where(flat, np.float32(1), self.scale).astype(np.float32)
        quants = np.where(flat[:, :, None], np.uint8(0), self.quants) if flat.any() else self.quants
        return quants, scale, np.negative(self.minimum / scale, dtype=np.float32)


Weight = DenseWeight | GroupedWeight


def map_rows(weight: Weight, move: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> Weight:
    """The weight with rows selected or reordered by ``move``, which is called for each array with rows as axis 0."""
    if isinstance(weight, DenseWeight):
        return DenseWeight(move(weight.values), weight.type)
    minimum = None if weight.minimum is None else move(weight.minimum)
    return GroupedWeight(weight.bits, move(weight.quants), move(weight.scale), minimum)


def stacked(weights: Sequence[Weight]) -> Weight | None:
    """Concatenate the rows of several matrices of one format; ``None`` if their formats differ."""
    first = weights[0]
    if isinstance(first, DenseWeight):
        dense = [w for w in weights if isinstance(w, DenseWeight) and w.type == first.type]
        if len(dense) < len(weights):
            return None
        return DenseWeight(np.concatenate([w.values for w in dense]), first.type)
    grouped = [w for w in weights if isinstance(w, GroupedWeight) and w.form == first.form]
    if len(grouped) < len(weights):
        return None
    minima = [w.minimum for w in grouped if w.minimum is not None]
    return GroupedWeight(
        first.bits,
        np.concatenate([w.quants for w in grouped]),
        np.concatenate([w.scale for w in grouped]),
        np.concatenate(minima) if minima else None,
    )


class DecoderSource(Protocol):
    """An opened model file: its config, and its weights one at a time, to save memory."""

    @property
    def config(self) -> DecoderConfig: ...

    def weight(self, name: str) -> Weight:
        """The weight with a canonical name. Raises ``ModelFileError`` if it is missing or has another shape."""
        ...

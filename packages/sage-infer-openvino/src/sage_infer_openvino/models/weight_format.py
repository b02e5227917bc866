"""Formats of a model's matrices: the file's format, or rounded to fewer bits.

OpenVINO represents every format exactly, so it computes with the values defined here.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from sage_infer.errors import InvalidRequest

from sage_infer_openvino.models.decoder_weights import DenseWeight, GroupedWeight, Weight

__all__ = ["WeightFormat", "check_weight_format", "in_format"]

WeightFormat = Literal["int8", "int4", "exact", "bf16", "f32"]
"""``int8``: float matrices are rounded to 8 bits; 4- and 8-bit blocks of a file are kept.
``int4``: all matrices are rounded to 4 bits, except the embedding and the head, which are as in ``int8``.
``exact``: no rounding. ``bf16`` and ``f32``: all matrices are converted to this type.
"""

_INT8_GROUPS = (128, 64, 32)
_INT4_GROUPS = (64, 32)


def check_weight_format(weight_format: str) -> None:
    """Raise :class:`InvalidRequest` for a name that is not a ``WeightFormat``."""
    names = get_args(WeightFormat)
    if weight_format not in names:
        raise InvalidRequest(f"weight_format is {weight_format!r}, expected one of {', '.join(names)}")


def in_format(weight: Weight, weight_format: WeightFormat, *, is_table: bool = False) -> Weight:
    """Convert a matrix ``[rows, columns]`` to a format; ``is_table``: it is the embedding or the head."""
    match weight_format:
        case "exact":
            return weight
        case "f32":
            return DenseWeight(weight.dense(), "f32")
        case "bf16":
            if isinstance(weight, DenseWeight) and weight.type == "bf16":
                return weight
            return DenseWeight(_bf16_bits(weight.dense()), "bf16")
        case "int4" if not is_table:
            keeps = isinstance(weight, GroupedWeight) and weight.bits == 4
            return weight if keeps else _int4(weight.dense())
        case _:
            return weight if isinstance(weight, GroupedWeight) else _int8(weight.dense())


def _int8(values: npt.NDArray[np.float32]) -> GroupedWeight:
    """Symmetric: ``scale * q`` with q from -127 to 127, one scale per group of columns."""
    groups = _grouped(values, _INT8_GROUPS)
    scale = np.abs(groups).max(axis=-1) / np.float32(127)
    scale = np.where(scale == 0, np.float32(1), scale)
    # Subnormal scales have lost precision, so the quotient may exceed 127: clip it.
    quants = np.rint(groups / scale[..., None]).clip(-127, 127).astype(np.int8)
    return GroupedWeight(8, quants, scale, None)


def _int4(values: npt.NDArray[np.float32]) -> GroupedWeight:
    """Asymmetric: ``minimum + scale * q`` with q from 0 to 15. The minimum is not rounded."""
    groups = _grouped(values, _INT4_GROUPS)
    low, high = groups.min(axis=-1), groups.max(axis=-1)
    scale = (high - low) / np.float32(15)
    steps = np.where(scale == 0, np.float32(1), scale)
    quants = np.rint((groups - low[..., None]) / steps[..., None]).clip(0, 15).astype(np.uint8)
    return GroupedWeight(4, quants, scale, low)


def _grouped(values: npt.NDArray[np.float32], sizes: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """``[rows, columns]`` → ``[rows, groups, group]``, with the largest group size that divides the columns."""
    rows, columns = values.shape
    group = next((size for size in sizes if columns % size == 0), columns)
    return values.reshape(rows, columns // group, group)


def _bf16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """Round float32 to bf16 bit patterns, to nearest, ties to even."""
    bits = values.view(np.uint32)
    rounding = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded: npt.NDArray[np.uint32] = (bits + rounding) >> np.uint32(16)
    return rounded.astype(np.uint16)

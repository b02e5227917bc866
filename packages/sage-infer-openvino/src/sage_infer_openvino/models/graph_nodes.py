"""Building blocks of OpenVINO graphs for decoders: constants, weights, and small arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sage_infer_openvino.models.decoder_weights import DenseWeight, GroupedWeight, Weight
from sage_infer_openvino.ov_runtime import ops, ov

__all__ = ["dimension", "f32", "i64", "matrix_node", "owned", "parameter", "scaled", "split_heads"]


def matrix_node(weight: Weight) -> Any:
    """A matrix as a constant in its own format, with its conversion to float32."""
    return _grouped_node(weight) if isinstance(weight, GroupedWeight) else _dense_node(weight)


def _dense_node(weight: DenseWeight) -> Any:
    types = {"f32": ov.Type.f32, "f16": ov.Type.f16, "bf16": ov.Type.bf16}
    node = _constant(weight.values, weight.shape, types[weight.type])
    return node if weight.type == "f32" else ops.convert(node, "f32")


def _grouped_node(weight: GroupedWeight) -> Any:
    """``(convert(quants) - zero_point) * scale``, which the plug-ins recognize as a compressed weight."""
    quants, scale, zero_point = weight.affine()
    if weight.bits == 4:
        # OpenVINO packs the first value into the low nibble.
        packed = quants[..., 0::2] | (quants[..., 1::2] << 4)
        node = _constant(packed, quants.shape, ov.Type.u4)
    else:
        node = _constant(quants, quants.shape, ov.Type.i8)
    node = ops.convert(node, "f32")
    if zero_point is not None:
        node = ops.subtract(node, ops.constant(owned(zero_point[..., None])))
    node = ops.multiply(node, ops.constant(owned(scale[..., None])))
    return ops.reshape(node, i64(list(weight.shape)), False)


def _constant(values: npt.NDArray[Any], shape: tuple[int, ...], element: Any) -> Any:
    # The tensor borrows NumPy's memory, so the constant must copy it: the array may be freed.
    return ops.constant(ov.Tensor(owned(values), ov.Shape(list(shape)), element), shared_memory=False)


def owned(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A plain aligned array: OpenVINO converts views of a memory map element by element, in minutes."""
    return np.array(values, order="C", copy=True, subok=False)


def parameter(name: str, shape: list[int], element: Any) -> Any:
    """A graph input; -1 is a dynamic size."""
    node = ops.parameter(shape, element, name=name)
    node.output(0).set_names({name})
    return node


def dimension(node: Any, axis: int) -> Any:
    """The size of one axis, as i64 ``[1]``."""
    return ops.gather(ops.shape_of(node), i64([axis]), i64(0))


def scaled(x: Any, factor: float) -> Any:
    """``x`` times ``factor``; ``x`` itself for a factor of 1."""
    return x if factor == 1.0 else ops.multiply(x, f32(factor))


def split_heads(x: Any, heads: int) -> Any:
    """``[batch, tokens, heads * d]`` → ``[batch, heads, tokens, d]``."""
    return ops.transpose(ops.reshape(x, i64([0, 0, heads, -1]), True), i64([0, 2, 1, 3]))


def i64(value: Any) -> Any:
    """A constant of integers, in the value's shape."""
    return ops.constant(np.asarray(value, dtype=np.int64))


def f32(value: float) -> Any:
    """A constant scalar."""
    return ops.constant(np.float32(value))

"""Rounding of matrices: within the format's step, and never for weights that are already narrower."""

from __future__ import annotations

from typing import get_args

import hypothesis.extra.numpy as arrays
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sage_infer.errors import InvalidRequest
from sage_infer_openvino.models.decoder_weights import DenseWeight, GroupedWeight, stacked
from sage_infer_openvino.models.weight_format import WeightFormat, check_weight_format, in_format

Matrix = npt.NDArray[np.float32]
MATRICES = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.sampled_from([1, 5, 32, 64, 96, 128, 192])),
    elements=st.floats(-100, 100, width=32),
)


def quantized(weight: DenseWeight, weight_format: WeightFormat) -> GroupedWeight:
    result = in_format(weight, weight_format)
    assert isinstance(result, GroupedWeight)
    return result


@given(MATRICES)
def test_int8_is_off_by_half_a_step_at_most(values: Matrix) -> None:
    weight = quantized(DenseWeight(values, "f32"), "int8")
    assert weight.shape == values.shape
    assert weight.quants.min() >= -127
    error = np.abs(weight.dense() - values).reshape(weight.quants.shape)
    assert (error <= weight.scale[..., None] * 0.501 + 1e-37).all()


@given(MATRICES)
def test_int4_is_off_by_half_a_step_and_keeps_the_smallest(values: Matrix) -> None:
    weight = quantized(DenseWeight(values, "f32"), "int4")
    assert weight.minimum is not None
    assert weight.quants.max() <= 15
    groups = values.reshape(weight.quants.shape)
    error = np.abs(weight.dense().reshape(weight.quants.shape) - groups)
    assert (error <= weight.scale[..., None] * 0.501 + 1e-5).all()
    assert np.array_equal(weight.minimum, groups.min(-1))


@given(MATRICES)
def test_bf16_is_the_nearest(values: Matrix) -> None:
    weight = in_format(DenseWeight(values, "f32"), "bf16")
    assert isinstance(weight, DenseWeight)
    near = weight.dense()
    # 8 bits of significand: half of a unit in the last place is 2^-9 of the value.
    assert (np.abs(near - values) <= np.abs(values) * 2.0**-8 + 1e-38).all()
    assert in_format(weight, "bf16") is weight
    assert np.array_equal(in_format(DenseWeight(near, "f32"), "bf16").dense(), near)


@given(MATRICES)
def test_float32_and_exact_change_nothing(values: Matrix) -> None:
    weight = DenseWeight(values, "f32")
    assert in_format(weight, "exact") is weight
    assert np.array_equal(in_format(weight, "f32").dense(), values)


def test_narrower_weights_of_a_file_are_kept() -> None:
    values = np.random.default_rng(0).normal(0, 1, (4, 64)).astype(np.float32)
    four = quantized(DenseWeight(values, "f32"), "int4")
    eight = quantized(DenseWeight(values, "f32"), "int8")
    assert in_format(four, "int4") is four
    assert in_format(four, "int8") is four
    assert in_format(eight, "int8") is eight
    again = in_format(eight, "int4")
    assert isinstance(again, GroupedWeight)
    assert again.bits == 4


def test_tables_keep_8_bits() -> None:
    table = in_format(DenseWeight(np.eye(64, dtype=np.float32), "f32"), "int4", is_table=True)
    assert isinstance(table, GroupedWeight)
    assert table.bits == 8


def test_names() -> None:
    for name in get_args(WeightFormat):
        check_weight_format(name)
    with pytest.raises(InvalidRequest, match="'int3', expected one of int8, int4, exact, bf16, f32"):
        check_weight_format("int3")


def test_stacking_needs_one_form() -> None:
    values = np.random.default_rng(1).normal(0, 1, (4, 64)).astype(np.float32)
    floats = DenseWeight(values, "f32")
    four, eight = quantized(floats, "int4"), quantized(floats, "int8")
    for weight in (floats, four, eight):
        both = stacked([weight, weight])
        assert both is not None
        assert np.array_equal(both.dense(), np.concatenate([weight.dense()] * 2))
    assert stacked([floats, eight]) is None
    assert stacked([eight, floats]) is None
    assert stacked([four, eight]) is None
    assert stacked([floats, in_format(floats, "bf16")]) is None

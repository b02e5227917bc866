"""Blocks in fewer bits: the kit, and the stated bounds of the error."""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sage_infer.errors import ConfigError, UnsupportedFeature
from sage_infer.schemas import KVCacheSchema
from sage_infer_kvstore import QuantizedStore
from sage_infer_kvstore.quantized.codec import DTYPES, GRANULARITIES, PageCodec
from sage_infer_kvstore.quantized.numbers import (
    FP8_MAX,
    as_float32,
    fp8_from_float32,
    fp8_to_float32,
    from_float32,
)
from sage_infer_testing import KVStoreContract

SHAPE: dict[str, int] = {"num_layers": 3, "num_heads": 2, "head_dim": 8, "page_size": 4}
SOURCES = {name: KVCacheSchema(dtype=name, **SHAPE) for name in ("fp32", "fp16", "bf16")}  # type: ignore[arg-type]
COUNT = 3 * 2 * 2 * 8 * 4


class TestQuantized(KVStoreContract):
    lossless: ClassVar[bool] = False

    def block(self, key: bytes) -> memoryview:
        numbers = np.frombuffer(hashlib.shake_128(key).digest(self.kv_schema.bytes_per_page // 2), np.int8)
        return memoryview((numbers / 16).astype(np.float16).tobytes())

    def open_store(self, capacity_blocks: int) -> QuantizedStore:
        return QuantizedStore(
            schema=self.kv_schema,
            model_id=self.model_id,
            lower={"store": "paged", "capacity_blocks": capacity_blocks},
        )


def round_trip(codec: PageCodec, values: np.ndarray[Any, Any], dtype: str) -> tuple[Any, Any]:
    """The numbers that went in, as the source has them, and those that came back."""
    page = np.zeros(codec.source.bytes_per_page, np.uint8)
    from_float32(values.astype(np.float32), page, dtype)
    small, out = np.zeros(codec.schema.bytes_per_page, np.uint8), np.zeros_like(page)
    assert codec.encode(page, small)
    codec.decode(small, out)
    return as_float32(page, dtype).astype(np.float64), as_float32(out, dtype).astype(np.float64)


def bound(kind: str, axes: tuple[int, ...], values: Any) -> Any:
    shaped = values.reshape(3, 2, 2, 4, 8)
    a = np.abs(shaped).max(axes, keepdims=True)
    span = shaped.max(axes, keepdims=True) - shaped.min(axes, keepdims=True)
    error = {
        "int8": a / 254 + np.zeros_like(shaped),
        "int4": span / 30 + a / 1024 + np.zeros_like(shaped),
        "fp8_e4m3": np.maximum(np.abs(shaped) / 16, a / 2**18),
        "fp8_e5m2": np.maximum(np.abs(shaped) / 8, a / 2**31),
    }[kind]
    return (error * 1.002).reshape(-1)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.sampled_from(DTYPES),
    st.sampled_from(list(GRANULARITIES)),
    st.sampled_from(list(SOURCES)),
    st.integers(0, 2**32 - 1),
    st.floats(-3, 3),
    st.booleans(),
)
def test_errors_stay_within_the_stated_bounds(
    kind: str, granularity: str, dtype: str, seed: int, power: float, has_outliers: bool
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(rng.normal(), 1, COUNT) * 10**power
    if has_outliers:
        values[rng.integers(0, COUNT, 5)] *= 30
    values[rng.integers(0, COUNT, 20)] = 0.0
    values = np.clip(values, -60_000, 60_000)  # what fp16 can hold; pages with infinities are not stored
    codec = PageCodec(SOURCES[dtype], dtype=kind, granularity=granularity)
    before, after = round_trip(codec, values, dtype)
    rounding = {"fp32": 2.0**-23, "fp16": 2.0**-11, "bf16": 2.0**-8}[dtype]
    allowed = bound(kind, GRANULARITIES[granularity], before) + np.abs(after) * rounding + 2.0**-24
    worst = np.argmax(np.abs(before - after) - allowed)
    assert np.all(np.abs(before - after) <= allowed), (before[worst], after[worst], allowed[worst])


@pytest.mark.parametrize("value", [1e-7, 1e-6, 1e-5, 3e-5, 1e-4, 1e7, 1e30])
def test_numbers_whose_scale_is_not_exact_do_not_wrap(value: float) -> None:
    codec = PageCodec(SOURCES["fp32"], dtype="int8", granularity="token_head")
    values = np.linspace(-value, value, COUNT)
    before, after = round_trip(codec, values, "fp32")
    assert np.all(np.abs(after) <= 1.5 * np.abs(before).max())
    assert np.all(after * before >= 0)


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-8])
def test_constant_pages_come_back(kind: str, value: float) -> None:
    codec = PageCodec(SOURCES["fp32"], dtype=kind, granularity="head")
    before, after = round_trip(codec, np.full(COUNT, value), "fp32")
    assert np.allclose(before, after, rtol=0.07, atol=2.0**-24)


@pytest.mark.parametrize("kind", ["fp8_e4m3", "fp8_e5m2"])
def test_every_fp8_number_is_its_own_code(kind: str) -> None:
    codes = np.arange(256, dtype=np.uint8)
    values = fp8_to_float32(codes, kind)
    used = (values != 0) | (codes % 128 == 0)
    assert np.array_equal(fp8_from_float32(values[used], kind), codes[used])
    assert values.max() == FP8_MAX[kind]
    assert len(np.unique(values[used])) == used.sum() - 1  # 0 and -0
    far = fp8_to_float32(fp8_from_float32(np.array([1e9, -1e9], np.float32), kind), kind)
    assert far.tolist() == [FP8_MAX[kind], -FP8_MAX[kind]]


def test_ties_go_to_the_even_code() -> None:
    values = fp8_to_float32(np.arange(0x38, 0x40, dtype=np.uint8), "fp8_e4m3")
    middles = ((values[:-1] + values[1:]) / 2).astype(np.float32)
    assert all(code % 2 == 0 for code in fp8_from_float32(middles, "fp8_e4m3"))


@pytest.mark.parametrize(("kind", "share"), [("int8", 0.53), ("int4", 0.32), ("fp8_e4m3", 0.57)])
def test_blocks_are_smaller(kind: str, share: float) -> None:
    source = KVCacheSchema(dtype="bf16", num_layers=4, num_heads=4, head_dim=64, page_size=16)
    codec = PageCodec(source, dtype=kind, granularity="token_head")
    assert codec.schema.bytes_per_page <= share * source.bytes_per_page


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_numbers_that_are_not_finite_are_dropped(bad: float) -> None:
    source = SOURCES["fp32"]
    store = QuantizedStore(schema=source, model_id="m", lower={"store": "paged", "capacity_blocks": 2})
    values = np.ones(COUNT, np.float32)
    values[7] = bad
    assert store.put([bytes(16)], [memoryview(values.tobytes())]) == 0
    assert store.stats().dropped == 1
    store.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"format_id": "openvino-2026.4"},
        {"axis_order": ("layer", "kv", "token", "head", "dim")},
        {"value_dim": 4},
        {"shards": 2},
    ],
)
def test_other_pages_than_plain_floats_are_refused(changes: dict[str, Any]) -> None:
    schema = KVCacheSchema(dtype="fp32", **SHAPE, **changes)
    with pytest.raises(UnsupportedFeature, match=next(iter(changes))):
        QuantizedStore(schema=schema, model_id="m", lower="paged")


@pytest.mark.parametrize(
    ("options", "message"), [({"dtype": "int2"}, "int8"), ({"granularity": "page"}, "token_head")]
)
def test_options_are_checked(options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuantizedStore(schema=SOURCES["fp32"], model_id="m", lower="paged", **options)

"""The codec reads and writes OpenVINO's own pages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import attrs
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sage_infer.contracts import KVFormatCodec
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import KVCacheSchema
from sage_infer.sdk import KVPageConverter
from sage_infer_openvino import kv_format, kv_kernels
from sage_infer_openvino.engine.kv_schema import kv_schema_of
from sage_infer_openvino.engine.paged_runner import PagedRunner, SequenceSlice
from sage_infer_openvino.kv_format import OpenVINOInt8Codec, cast_floats
from sage_infer_openvino.models.decoder_graph import build_decoder
from sage_infer_openvino.models.gguf.model import GgufModel

TOKENS = [index * 7 % 250 for index in range(32)]


@pytest.mark.parametrize("heads", [1, 2])
def test_pages_equal_those_of_a_running_model(tiny_gguf: Callable[..., Path], heads: int) -> None:
    codec = OpenVINOInt8Codec()
    assert isinstance(codec, KVFormatCodec)
    source = GgufModel(tiny_gguf(hidden=256, heads=4, kv_heads=heads))
    small, full = (
        PagedRunner(build_decoder(source, "f32"), 3, kv_precision=kv, threads=1) for kv in ("u8", "f32")
    )
    schema = kv_schema_of(small.kv_layout, small.num_layers, small.block_nbytes)
    assert schema.page_size == len(TOKENS)
    assert codec.matches(schema)
    assert codec.plain(schema) == kv_schema_of(full.kv_layout, full.num_layers, full.block_nbytes)
    for runner in (small, full):
        runner.step([SequenceSlice(TOKENS, 0, [1])])
    own, exact = small.read_block(1), full.read_block(1).view(np.float32)
    plain = np.empty_like(exact)
    codec.unpack(own.data, schema, plain.data.cast("B"))
    layer = exact.size // 2
    # Of the first layer: the next one computes with what was rounded.
    assert np.abs(plain[:layer] - exact[:layer]).max() < 0.05
    packed = np.zeros_like(own)
    codec.pack(exact.data.cast("B"), schema, packed.data)
    first = own.size // 2
    off = np.abs(packed[:first].astype(int) - own[:first])
    assert (off == 0).mean() > 0.98  # a float's last digit may round a byte or a scale the other way
    again = np.empty_like(exact)
    codec.unpack(packed.data, schema, again.data.cast("B"))
    assert np.abs(again - exact).max() < 0.05
    small.write_block(0, packed.data)
    expected = next_logits(full, 1)
    own_error, our_error = (np.abs(next_logits(small, block) - expected).max() for block in (1, 0))
    assert our_error < 2 * own_error + 0.1


def next_logits(runner: PagedRunner, block: int) -> npt.NDArray[np.float32]:
    """Those of one token more than a full block has."""
    return runner.step([SequenceSlice([5], len(TOKENS), [block, 2])])[0].copy()


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.5, 2.0), (-2.0, -0.5), (1e6, 1e6 + 1), (3.0, 3.0)])
def test_numbers_of_one_sign_and_far_from_zero_round_to_the_nearest_step(low: float, high: float) -> None:
    schema = KVCacheSchema(
        dtype="int8", page_size=32, num_layers=2, num_heads=2, head_dim=64, scale_dtype="fp32",
        scale_granularity="channel", value_scale_granularity="token_head", zero_points=True,
        format_id="openvino-2026.4",
    )  # fmt: skip
    codec = OpenVINOInt8Codec()
    shape = (2, 2, 2, 32, 64)
    page = np.random.default_rng(1).uniform(low, high, shape).astype(np.float32)
    packed, back = bytearray(schema.bytes_per_page), np.empty_like(page)
    codec.pack(page.data.cast("B"), schema, memoryview(packed))
    codec.unpack(memoryview(packed), schema, back.data.cast("B"))
    for kind, axis in ((0, 2), (1, 3)):
        numbers = page[:, kind]
        step = (numbers.max(axis, keepdims=True) - numbers.min(axis, keepdims=True)) / 255
        rounding = np.abs(numbers).max() * 2.0**-22
        assert (np.abs(back[:, kind] - numbers) <= step * 0.51 + rounding).all()


SHAPES = st.tuples(
    st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 5, 32]), st.sampled_from([4, 64])
)
NUMBERS = st.sampled_from([0.0, -0.0, 1e-9, 1.0, 3.0, -2.5, 1e4, -1e6])


@given(SHAPES, st.integers(0, 2**32 - 1), NUMBERS, st.sampled_from([0.0, 1e-6, 1.0, 50.0]), st.data())
@settings(deadline=None)
def test_compiled_loops_write_the_bytes_that_numpy_writes(
    shape: tuple[int, int, int, int], seed: int, center: float, spread: float, data: st.DataObject
) -> None:
    pytest.importorskip("numba")  # the extra `compiled`
    assert kv_kernels.wait(), "Numba does not compile the loops"
    layers, heads, tokens, dim = shape
    schema = KVCacheSchema(
        dtype="int8", page_size=tokens, num_layers=layers, num_heads=heads, head_dim=dim, scale_dtype="fp32",
        scale_granularity="channel", value_scale_granularity="token_head", zero_points=True,
        format_id="openvino-2026.4",
    )  # fmt: skip
    codec = OpenVINOInt8Codec()
    floats = np.random.default_rng(seed).normal(center, spread, (layers, 2, heads, tokens, dim))
    page = memoryview(floats.astype(np.float32)).cast("B").toreadonly()
    begin = data.draw(st.integers(0, tokens - 1))
    part = slice(begin, data.draw(st.integers(begin + 1, tokens)))
    room = attrs.evolve(codec.plain(schema), page_size=tokens + 2)
    found = []
    for kernels in (kv_kernels.compiled(), None):
        packed, out = bytearray(schema.bytes_per_page), bytearray(room.bytes_per_page)
        with mock.patch.object(kv_format, "compiled", lambda chosen=kernels: chosen):
            codec.pack(page, schema, memoryview(packed))
            codec.unpack_tokens(memoryview(packed).toreadonly(), schema, part, memoryview(out), room, 2)
        found.append((bytes(packed), bytes(out)))
    assert found[0] == found[1]


def test_numpy_computes_where_numba_does_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kv_kernels, "_module", None)
    monkeypatch.setattr(kv_kernels, "_thread", None)
    with monkeypatch.context() as patch:
        patch.setattr(kv_kernels, "find_spec", lambda name: None)
        assert not kv_kernels.wait()
    assert not caplog.records

    def broken(name: str) -> None:
        raise ImportError("Numba needs NumPy 2.3 or less")

    monkeypatch.setattr(kv_kernels, "import_module", broken)
    assert not kv_kernels.wait()
    assert "Numba failed: Numba needs NumPy 2.3 or less" in caplog.text


def test_pages_of_the_wrong_size(tiny_gguf: Callable[..., Path]) -> None:
    codec = OpenVINOInt8Codec()
    runner = PagedRunner(build_decoder(GgufModel(tiny_gguf()), "f32"), 1, kv_precision="u8", threads=1)
    schema = kv_schema_of(runner.kv_layout, runner.num_layers, runner.block_nbytes)
    for other in (
        codec.plain(schema),
        attrs.evolve(schema, format_id="vllm-0.32.0"),
        attrs.evolve(schema, scale_granularity="token_head"),
        attrs.evolve(schema, value_dim=16),
    ):
        assert not codec.matches(other)
    page = memoryview(bytearray(schema.bytes_per_page))
    plain = memoryview(bytearray(codec.plain(schema).bytes_per_page))
    with pytest.raises(InvalidRequest, match=f"of {len(page) - 1} bytes, expected {len(page)} by its schema"):
        codec.unpack(page[1:], schema, plain)
    with pytest.raises(InvalidRequest, match=f"of {len(plain) - 4} bytes"):
        codec.pack(plain[4:], schema, page)


def test_floats_are_rounded_to_the_nearest() -> None:
    numbers = np.array([0.0, 1.0, -2.5, 1 / 3, 65504, 1e38, np.inf, -np.inf, np.nan], np.float32)
    for dtype, bits in (("bf16", 8), ("fp16", 11)):
        out, again = np.zeros(numbers.size, np.uint16), np.zeros(numbers.size, np.float32)
        cast_floats(memoryview(numbers).cast("B"), "fp32", memoryview(out).cast("B"), dtype)
        cast_floats(memoryview(out).cast("B"), dtype, memoryview(again).cast("B"), "fp32")
        small = np.abs(numbers) < 1e5
        assert (np.abs(again[small] - numbers[small]) <= np.abs(numbers[small]) * 2.0**-bits).all()
        assert (np.sign(again[6:8]) == [1, -1]).all()
        assert np.isinf(again[6:8]).all()
        assert np.isnan(again[8])
    halves = np.array([0x3F808000, 0x3F818000], np.uint32)  # half way: to the even one
    out = np.zeros(2, np.uint16)
    cast_floats(memoryview(halves).cast("B"), "fp32", memoryview(out).cast("B"), "bf16")
    assert out.tolist() == [0x3F80, 0x3F82]


@pytest.mark.parametrize("tokens", [1, 33, 128])
def test_floats_of_larger_pages_become_8_bit_pages(tokens: int) -> None:
    """As in a hand-over from an engine with pages of 128 tokens: within ``max_error`` of each page's range."""
    small = {"num_layers": 2, "num_heads": 2, "head_dim": 16}
    source = KVCacheSchema(dtype="fp32", page_size=128, **small)
    target = KVCacheSchema(
        dtype="int8", page_size=32, scale_dtype="fp32", scale_granularity="channel", zero_points=True,
        value_scale_granularity="token_head", format_id="openvino-2026.4", **small,
    )  # fmt: skip
    floats = np.random.default_rng(3).normal(5, 2, (2, 2, 2, 128, 16)).astype(np.float32)
    converter = KVPageConverter(source, target)
    pages = converter.converted([memoryview(floats).cast("B")], tokens)
    back = KVPageConverter(target, source).converted(pages, tokens)
    found = np.frombuffer(back[0], np.float32).reshape(floats.shape)
    exact = floats[..., :tokens, :]
    allowed = converter.max_error * (exact.max() - exact.min())
    assert np.abs(found[..., :tokens, :] - exact).max() <= allowed
    assert not found[..., tokens:, :].any()

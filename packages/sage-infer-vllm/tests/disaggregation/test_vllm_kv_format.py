"""The codec of vLLM's CPU pages, by the kit, and by the axes that ``test_vllm_kv_layout`` finds in the kernels."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from sage_infer.contracts import KVFormatCodec
from sage_infer.plugins import kv_codec
from sage_infer.schemas import KVCacheSchema
from sage_infer.sdk.kv_formats import KVPageConverter
from sage_infer_testing import KVFormatCodecContract
from sage_infer_vllm.handover.kv_format import VLLMCPUCodec, cast_floats

np = pytest.importorskip("numpy")

SCHEMA = KVCacheSchema(
    dtype="fp32", page_size=8, num_layers=2, num_heads=3, head_dim=4, format_id="vllm-0.32.0-cpu_attn-vec16",
    axis_order=("layer", "head", "kv", "token", "dim"), key_axis_order=("layer", "head", "kv", "dim", "token"),
)  # fmt: skip


class TestPagesOfFloats(KVFormatCodecContract):
    kv_schema = SCHEMA

    def make_codec(self) -> KVFormatCodec:
        return VLLMCPUCodec()


class TestPagesOfHalves(TestPagesOfFloats):
    kv_schema = attrs.evolve(SCHEMA, dtype="bf16")


def test_elements_lie_by_the_axes_of_the_schema() -> None:
    codec = kv_codec(SCHEMA.format_id)
    assert isinstance(codec, VLLMCPUCodec)
    plain = np.arange(2 * 2 * 3 * 8 * 4, dtype=np.float32).reshape(2, 2, 3, 8, 4)
    page = bytearray(SCHEMA.bytes_per_page)
    codec.pack(memoryview(plain).cast("B"), SCHEMA, memoryview(page))
    halves = np.frombuffer(page, np.float32).reshape(2, 3, 2, -1)
    assert (halves[:, :, 0].reshape(2, 3, 4, 8) == plain[:, 0].transpose(0, 1, 3, 2)).all()
    assert (halves[:, :, 1].reshape(2, 3, 8, 4) == plain[:, 1]).all()


@pytest.mark.parametrize(("size", "out_size"), [(32, 8), (8, 32), (8, 12)])
@pytest.mark.parametrize("tokens", [1, 8, 33, 70])
def test_pages_of_another_size(size: int, out_size: int, tokens: int) -> None:
    """As between a prefill and a decode instance: each token has the same keys and values."""
    source, target = (attrs.evolve(SCHEMA, page_size=pages) for pages in (size, out_size))
    numbers = np.random.default_rng(tokens).random((2, 2, 3, 96, 4), np.float32)
    converter = KVPageConverter(source, target)
    found = converter.converted(paged(source, numbers, tokens), tokens)
    assert [bytes(page) for page in found] == [bytes(page) for page in paged(target, numbers, tokens)]


def paged(schema: KVCacheSchema, numbers: Any, tokens: int) -> list[memoryview]:
    """Pages with the first ``tokens`` tokens of plain KV; the end of the last one is zero."""
    pages, size, codec = [], schema.page_size, VLLMCPUCodec()
    for start in range(0, tokens, size):
        end = min(start + size, tokens)
        plain = np.zeros((2, 2, 3, size, 4), np.float32)
        plain[:, :, :, : end - start] = numbers[:, :, :, start:end]
        pages.append(memoryview(bytearray(schema.bytes_per_page)))
        codec.pack(memoryview(plain).cast("B"), schema, pages[-1])
    return pages


@pytest.mark.parametrize(
    "changes",
    [
        {"format_id": "vllm-0.32.0-cpu_attn-amx"},
        {"format_id": "vllm-0.99.0-cpu_attn-vec"},
        {"format_id": "vllm-0.320-cpu_attn-vec"},
        {"format_id": "openvino-cpu_attn-vec"},
        {"key_axis_order": None},
        {"value_dim": 2},
        {"dtype": "fp8_e4m3"},
    ],
)
def test_layouts_that_are_not_known(changes: dict[str, Any]) -> None:
    assert not VLLMCPUCodec().matches(attrs.evolve(SCHEMA, **changes))


@pytest.mark.parametrize(("dtype", "width"), [("fp32", 4), ("fp16", 2), ("bf16", 2)])
@pytest.mark.parametrize(("out_dtype", "out_width"), [("fp32", 4), ("fp16", 2), ("bf16", 2)])
def test_floats_of_every_type(dtype: str, width: int, out_dtype: str, out_width: int) -> None:
    torch = pytest.importorskip("torch", reason="torch comes with vLLM")
    kinds = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    numbers = torch.tensor([0.0, 1.0, -2.5, 1e-3, 1 / 3]).to(kinds[dtype])
    data = memoryview(numbers.view(torch.uint8).numpy().tobytes())
    out = bytearray(5 * out_width)
    cast_floats(data, dtype, memoryview(out), out_dtype)
    assert torch.equal(torch.frombuffer(out, dtype=kinds[out_dtype]), numbers.to(kinds[out_dtype]))

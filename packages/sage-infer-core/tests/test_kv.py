"""KV schemas: bytes, conversions, presets, and the names of blocks."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sage_infer.contracts import block_keys
from sage_infer.errors import CapabilityMismatch
from sage_infer.schemas import (
    KV_PRESETS,
    TRANSPORT_PRESETS,
    KVCacheSchema,
    TransportReport,
    TransportSettings,
)
from sage_infer.schemas.capability import CapabilityDescriptor, HybridCapabilityDescriptor
from sage_infer.schemas.generation import Usage
from sage_infer.schemas.model import ModelDescriptor

GEOMETRY = {"num_layers": 30, "num_heads": 3, "head_dim": 64}


def test_bytes_of_a_plain_cache() -> None:
    schema = KVCacheSchema.from_preset("bf16", **GEOMETRY)
    assert schema.bytes_per_token == 2 * 30 * 3 * 64 * 2
    assert schema.bytes_per_page == 16 * schema.bytes_per_token


def test_bytes_of_openvinos_u8_cache() -> None:
    """Its blocks on x86 are K [3, 40, 64] and V [3, 32, 72] bytes a layer (scales and zero points in the rows)."""
    schema = KVCacheSchema(
        dtype="int8",
        page_size=32,
        scale_dtype="fp32",
        scale_granularity="channel",
        value_scale_granularity="token_head",
        zero_points=True,
        **GEOMETRY,
    )
    assert schema.bytes_per_page == 30 * (3 * 40 * 64 + 3 * 32 * 72)


@pytest.mark.parametrize(
    ("granularity", "scales"),
    [("tensor", 0), ("head", 3), ("channel", 192), ("token", 16), ("token_head", 48)],
)
def test_scales_are_counted_by_granularity(granularity: str, scales: int) -> None:
    plain = KVCacheSchema(dtype="fp8_e4m3", page_size=16, **GEOMETRY)
    scaled = attrs.evolve(plain, scale_dtype="fp32", scale_granularity=granularity)
    assert scaled.bytes_per_page - plain.bytes_per_page == 30 * 2 * scales * 4


def test_int4_packs_two_elements_into_a_byte() -> None:
    schema = KVCacheSchema(
        dtype="int4", page_size=2, scale_dtype="fp16", scale_granularity="tensor", **GEOMETRY
    )
    assert schema.bytes_per_token == 2 * 30 * 3 * 64 / 2


def test_identical_schemas_need_nothing(kv_schema: KVCacheSchema) -> None:
    assert kv_schema.compatible_with(attrs.evolve(kv_schema)).identical


def test_differences_are_conversions(kv_schema: KVCacheSchema) -> None:
    other = KVCacheSchema.from_preset("fp16", page_size=32, **GEOMETRY)
    fit = kv_schema.compatible_with(other)
    assert fit.compatible
    assert not fit.identical
    assert fit.conversions == ("page_size", "dtype", "scale_dtype", "scale_granularity")


@pytest.mark.parametrize("field", ["num_layers", "num_heads", "head_dim"])
def test_another_geometry_is_another_model(kv_schema: KVCacheSchema, field: str) -> None:
    fit = kv_schema.compatible_with(attrs.evolve(kv_schema, **{field: 7}))
    assert not fit.compatible
    assert field in fit.reason


def test_private_formats_do_not_mix_and_one_can_be_converted(kv_schema: KVCacheSchema) -> None:
    ours, theirs = (attrs.evolve(kv_schema, format_id=name) for name in ("openvino-1", "openvino-2"))
    assert "private byte formats differ" in ours.compatible_with(theirs).reason
    assert ours.compatible_with(kv_schema).conversions == ("format_id",)


@pytest.mark.parametrize("preset", KV_PRESETS)
def test_every_preset_makes_a_schema(preset: str) -> None:
    schema = KVCacheSchema.from_preset(preset, page_size=64, **GEOMETRY)
    assert schema.page_size == 64
    assert schema.dtype.startswith(preset)


@pytest.mark.parametrize("preset", TRANSPORT_PRESETS)
def test_every_transport_preset_makes_settings(preset: str) -> None:
    assert TransportSettings.from_preset(preset, max_in_flight=3).max_in_flight == 3


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(CapabilityMismatch, match="fp16, bf16, fp8, int8, int4"):
        KVCacheSchema.from_preset("fp2", **GEOMETRY)
    with pytest.raises(CapabilityMismatch, match="high-bw, low-latency, low-cost"):
        TransportSettings.from_preset("fast")


tokens = st.lists(st.integers(0, 2**31), max_size=80)


@given(tokens, tokens)
def test_equal_prefixes_and_only_they_share_keys(a: list[int], b: list[int]) -> None:
    schema = KVCacheSchema.from_preset("bf16", **GEOMETRY)
    keys_a, keys_b = list(block_keys("m", schema, a)), list(block_keys("m", schema, b))
    assert len(keys_a) == len(a) // 16
    for i, (x, y) in enumerate(zip(keys_a, keys_b, strict=False)):
        end = (i + 1) * 16
        assert (x == y) == (a[:end] == b[:end])


def test_keys_depend_on_model_and_form(kv_schema: KVCacheSchema) -> None:
    prompt = list(range(32))
    other = attrs.evolve(kv_schema, page_size=8)
    names = [next(block_keys(m, s, prompt)) for m, s in (("a", kv_schema), ("b", kv_schema), ("a", other))]
    assert len(set(names)) == 3


def test_a_report_is_ok_when_every_step_is_done() -> None:
    report = TransportReport(
        plan_id="p", statuses=("done", "failed"), errors=("link down",), moved_bytes=1, elapsed_s=0.1
    )
    assert not report.ok
    assert attrs.evolve(report, statuses=("done", "done"), errors=()).ok


def test_descriptors_answer_the_questions_that_schedulers_ask() -> None:
    capability = CapabilityDescriptor(
        backend_name="b", instance_type="general", hardware_backend="npu9000", max_batch_size=1, max_sequence_length=8,
        supported_precisions=["fp16"], features=["chat", "x-own"],
    )  # fmt: skip
    assert capability.supports("chat")
    assert not capability.supports("lora")
    models = [
        ModelDescriptor(model_id=kind, model_type=kind, model_path="/m")
        for kind in ("llm", "multimodal", "embedding")  # type: ignore[arg-type]
    ]
    hybrid = HybridCapabilityDescriptor(
        backend_name="b",
        hardware_backend="cpu",
        loaded_models=models,
        total_memory_gb=2,
        available_memory_gb=1,
    )
    assert [m.model_id for m in hybrid.get_llm_models()] == ["llm", "multimodal"]
    assert [m.model_id for m in hybrid.get_embedding_models()] == ["embedding"]
    assert Usage(prompt_tokens=2, completion_tokens=3).total_tokens == 5

"""KV schemas: bytes, conversions, presets, and the names of blocks."""

from __future__ import annotations

import attrs
import pytest
from sage_infer.errors import CapabilityMismatch, SchemaError
from sage_infer.schemas import (
    KV_PRESETS,
    TRANSPORT_PRESETS,
    KVCacheSchema,
    KVGroup,
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


def test_private_formats_need_their_codecs(kv_schema: KVCacheSchema) -> None:
    ours, theirs = (attrs.evolve(kv_schema, format_id=name) for name in ("openvino-1", "openvino-2"))
    assert ours.compatible_with(theirs).conversions == ("format_id",)
    assert ours.compatible_with(kv_schema).conversions == ("format_id",)


def test_mla_keeps_one_latent_and_no_values() -> None:
    """DeepSeek-V3: 512 of latent and 64 of rotary keys in one head, 61 layers of bf16 (KV.md: 70,272 bytes a token)."""
    mla = KVCacheSchema(
        dtype="bf16", page_size=64, num_layers=61, num_heads=1, head_dim=576, value_dim=0, rope_dim=64
    )
    assert mla.bytes_per_token == 70_272
    assert "value_width" in mla.compatible_with(attrs.evolve(mla, value_dim=None)).reason


def test_keys_and_values_may_differ_in_width_dtype_and_order() -> None:
    schema = KVCacheSchema(
        dtype="bf16",
        page_size=16,
        num_layers=2,
        num_heads=4,
        head_dim=192,
        value_dim=128,
        value_dtype="fp8_e4m3",
    )
    assert schema.bytes_per_token == 2 * 4 * (192 * 2 + 128)
    swapped = attrs.evolve(schema, key_axis_order=("layer", "kv", "head", "dim", "token"))
    assert schema.compatible_with(swapped).conversions == ("key_axis_order",)
    assert schema.compatible_with(attrs.evolve(schema, key_axis_order=schema.axis_order)).identical


def test_groups_hold_no_more_than_their_window() -> None:
    """Gemma 3 in small: five sliding layers and one full; and a state as Mamba keeps it."""
    groups = (
        KVGroup(layers=(0, 1, 2, 3, 4), kind="sliding", window=64),
        KVGroup(layers=(5,)),
        KVGroup(layers=(6,), kind="state", state_bytes=1000),
    )
    schema = KVCacheSchema(dtype="bf16", page_size=16, num_layers=7, num_heads=2, head_dim=64, groups=groups)
    layer = 16 * 2 * 64 * 2 * 2
    assert schema.bytes_per_page == 6 * layer
    assert schema.state_bytes == 1000
    assert schema.bytes_for(16) == 6 * layer + 1000
    assert schema.bytes_for(1600) == 5 * 5 * layer + 100 * layer + 1000
    plain = KVCacheSchema(dtype="bf16", page_size=16, num_layers=7, num_heads=2, head_dim=64)
    assert "groups differ" in schema.compatible_with(plain).reason


def test_a_groups_page_size_is_its_own() -> None:
    groups = (
        KVGroup(layers=(0,), page_size=32),
        KVGroup(layers=(1,), kind="chunked", window=64, num_heads=1),
    )
    schema = KVCacheSchema(dtype="fp16", page_size=16, num_layers=2, num_heads=2, head_dim=8, groups=groups)
    per_token = 2 * 8 * 2 * 2 + 1 * 8 * 2 * 2
    assert schema.bytes_per_token == per_token
    other = attrs.evolve(schema, groups=(attrs.evolve(groups[0], page_size=64), groups[1]))
    assert schema.compatible_with(other).conversions == ("groups",)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"shards": 2}, "must divide num_heads"),
        ({"rope_dim": 128}, "must be ≤ head_dim"),
        ({"groups": (KVGroup(layers=(0, 1)),)}, "each of the 30 layers in exactly one group"),
        ({"value_dtype": "int8"}, "required by dtype int8"),
        ({"key_axis_order": ("layer", "kv")}, "must name each of"),
    ],
)
def test_forms_that_do_not_add_up_are_refused(
    kv_schema: KVCacheSchema, changes: dict[str, object], problem: str
) -> None:
    plain = KVCacheSchema.from_preset("fp16", **GEOMETRY)
    with pytest.raises(SchemaError, match=problem):
        attrs.evolve(plain, **changes)


def test_a_scale_dtype_alone_is_one_scale_for_the_whole_cache() -> None:
    schema = KVCacheSchema(dtype="fp8_e4m3", page_size=16, scale_dtype="fp16", layout="paged", **GEOMETRY)
    assert schema.scale_granularity == "tensor"


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

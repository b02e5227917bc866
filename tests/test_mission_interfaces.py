"""The interface draft that the project was asked for: every dataclass takes the draft's keys and defaults, and the
protocols' calls their forms.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from sage_infer.contracts import EmbeddingBackend, HybridInferenceBackend, InferenceBackend
from sage_infer.schemas import (
    CapabilityDescriptor,
    HybridCapabilityDescriptor,
    KVCacheSchema,
    ModelDescriptor,
    QuantizationProfile,
)

LLM = ModelDescriptor(
    model_id="qwen-7b",
    model_type="llm",
    model_path="Qwen/Qwen2.5-7B-Instruct",
    device_ids=[0],
    memory_gb=14.0,
    max_batch_size=32,
    max_sequence_length=32768,
    supported_precisions=["fp16", "fp8_e4m3"],
)
EMBEDDING = ModelDescriptor(
    model_id="bge-m3",
    model_type="embedding",
    model_path="BAAI/bge-m3",
    device_ids=[0],
    memory_gb=2.0,
    max_batch_size=256,
    max_sequence_length=8192,
    supported_precisions=["fp16"],
    embedding_dim=1024,
    pooling_type="cls",
    max_pair_length=None,
)


@pytest.mark.parametrize("dtype", ["fp16", "fp8_e4m3", "fp8_e5m2", "int4"])
@pytest.mark.parametrize("layout", ["paged", "contiguous"])
@pytest.mark.parametrize("scale_dtype", ["fp16", "fp32", "int8"])
def test_kv_cache_schema(dtype: Any, layout: Any, scale_dtype: Any) -> None:
    schema = KVCacheSchema(
        dtype=dtype,
        page_size=16,
        num_layers=28,
        num_heads=4,
        head_dim=128,
        scale_dtype=scale_dtype,
        layout=layout,
    )
    assert (schema.dtype, schema.num_heads, schema.layout) == (dtype, 4, layout)


@pytest.mark.parametrize("hardware", ["cuda", "ascend", "cambricon", "hygon", "kunlunxin"])
@pytest.mark.parametrize("instance_type", ["prefill", "decode", "general", "embedding", "hybrid"])
def test_capability_descriptor(hardware: str, instance_type: Any) -> None:
    capability = CapabilityDescriptor(
        backend_name="vllm",
        instance_type=instance_type,
        hardware_backend=hardware,
        max_batch_size=256,
        max_sequence_length=32768,
        kv_cache_capacity_gb=20.0,
        supported_precisions=["fp16", "fp8_e4m3", "int4"],
        kv_schema=KVCacheSchema(
            dtype="fp16", page_size=16, num_layers=28, num_heads=4, head_dim=128, scale_dtype="fp16", layout="paged"
        ),
        quant_profile_id=None,
        sparsity_ratio=0.0,
        throughput_hint_tps=0.0,
        ttft_hint_ms=0.0,
    )  # fmt: skip
    assert capability.kv_schema is not None
    assert capability.instance_type == instance_type


def test_hybrid_capability_descriptor() -> None:
    bare = HybridCapabilityDescriptor(backend_name="x")
    assert (bare.instance_type, bare.hardware_backend, bare.gpu_sharing_mode) == (
        "hybrid",
        "cuda",
        "time_slice",
    )
    assert (bare.memory_isolation, bare.total_memory_gb, bare.available_memory_gb) == (False, 0.0, 0.0)
    assert not list(bare.loaded_models)
    full = HybridCapabilityDescriptor(
        backend_name="hybrid",
        instance_type="llm_embedding",
        hardware_backend="ascend",
        loaded_models=[LLM, EMBEDDING],
        gpu_sharing_mode="mps",
        memory_isolation=False,
        total_memory_gb=64.0,
        available_memory_gb=48.0,
    )
    assert list(full.get_llm_models()) == [LLM]
    assert list(full.get_embedding_models()) == [EMBEDDING]


def test_quantization_profile() -> None:
    profile = QuantizationProfile(weight_bits=4, activation_bits=16, kv_bits_prefill=8, kv_bits_decode=8)
    assert (profile.sparsity_ratio, profile.sparsity_pattern) == (0.0, "none")
    for pattern, ratio in (("none", 0.0), ("2:4", 0.5), ("block", 0.3), ("unstructured", 0.6)):
        full = QuantizationProfile(
            weight_bits=8,
            activation_bits=8,
            kv_bits_prefill=16,
            kv_bits_decode=4,
            sparsity_ratio=ratio,
            sparsity_pattern=pattern,  # type: ignore[arg-type]
            kernel_backend="cuda",
            calibration_dataset="",
            calibration_samples=512,
            max_sequence_length=8192,
        )
        assert full.sparsity_pattern == pattern


DRAFT: dict[type, dict[str, tuple[str, ...]]] = {
    InferenceBackend: {
        "prefill": ("prompts", "request_id"),
        "decode": ("state", "request_id"),
        "generate": ("prompts", "params"),
        "get_capability": (),
        "get_kv_schema": (),
        "load_quant_profile": ("profile",),
    },
    EmbeddingBackend: {
        "embed": ("texts",),
        "embed_batch": ("texts", "batch_size"),
        "get_embedding_dim": (),
        "get_max_length": (),
    },
    HybridInferenceBackend: {
        "generate": ("prompts", "params", "model"),
        "chat": ("messages", "params", "model"),
        "embed": ("texts", "model"),
        "list_models": (),
        "load_model": ("model",),
        "unload_model": ("model_id",),
        "get_model_status": ("model_id",),
        "get_hybrid_capability": (),
    },
}
KEYWORDS = ("request_id",)  # keywords in the draft, too


@pytest.mark.parametrize(
    ("protocol", "method", "names"),
    [(protocol, name, names) for protocol, methods in DRAFT.items() for name, names in methods.items()],
)
def test_calls_have_the_drafts_forms(protocol: type, method: str, names: tuple[str, ...]) -> None:
    """The draft's parameters come first, in its order; all others are keywords with a default."""
    parameters = [
        p for p in inspect.signature(getattr(protocol, method)).parameters.values() if p.name != "self"
    ]
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == [name for name in names if name not in KEYWORDS]
    for parameter in parameters:
        if parameter.name not in names:
            assert parameter.kind is parameter.KEYWORD_ONLY
            assert parameter.default is not parameter.empty, parameter.name

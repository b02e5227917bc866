"""What a running engine can do, read from its own configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sage_infer.schemas import CapabilityDescriptor, KVCacheSchema

from sage_infer_vllm.quantization import Quantization
from sage_infer_vllm.settings import Settings

if TYPE_CHECKING:
    from sage_infer_vllm.base import VLLMBackend
    from sage_infer_vllm.engine import Engine

__all__ = ["capability_of"]

_PRECISIONS = {
    "float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64", "float8_e4m3fn": "fp8_e4m3",
}  # fmt: skip


def capability_of(
    backend: VLLMBackend,
    engine: Engine,
    compat: Any,
    tokenizer: Any,
    schema: KVCacheSchema | None,
    *,
    settings: Settings,
    quantization: Quantization,
) -> CapabilityDescriptor:
    """The descriptor of a running engine; ``schema`` is null for one without KV."""
    config, platform = engine.config, backend.platform
    dtypes = [str(dtype).removeprefix("torch.") for dtype in compat.current_platform.supported_dtypes]
    precisions = platform.precisions or tuple(_PRECISIONS[dtype] for dtype in dtypes if dtype in _PRECISIONS)
    blocks = config.cache_config.num_gpu_blocks or 0
    features = [*backend.served_features(engine)]
    if backend.runner == "generate":
        features += ["chat"] if getattr(tokenizer, "chat_template", None) else []
        features += ["prefix_caching"] if config.cache_config.enable_prefix_caching else []
        features += ["lora"] if settings.adapters else []
        features += ["tool_calls"] if settings.tool_parser else []
    if compat.current_platform.is_sleep_mode_available() and config.model_config.enable_sleep_mode:
        features.append("sleep")
    return CapabilityDescriptor(
        backend_name=backend.name,
        instance_type="general" if backend.runner == "generate" else "embedding",
        hardware_backend=platform.hardware_backend or str(compat.current_platform.device_name).lower(),
        max_batch_size=config.scheduler_config.max_num_seqs,
        max_sequence_length=compat.max_model_len(engine.llm),
        kv_cache_capacity_gb=None if schema is None else blocks * schema.bytes_per_page / 2**30,
        supported_precisions=precisions,
        kv_schema=schema,
        quant_profile_id=quantization.profile_id,
        features=tuple(features),
    )

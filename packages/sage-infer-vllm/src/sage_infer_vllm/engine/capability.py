"""Capabilities of a running engine, read from its configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from attrs import frozen
from sage_infer.schemas import CapabilityDescriptor, KVCacheSchema

from sage_infer_vllm.models.quantization import Quantization
from sage_infer_vllm.platform import Platform
from sage_infer_vllm.settings import VLLMSettings

if TYPE_CHECKING:
    from sage_infer_vllm.engine.engine import VLLMEngine

__all__ = ["Service", "capability_of"]

_PRECISIONS = {
    "float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64", "float8_e4m3fn": "fp8_e4m3",
}  # fmt: skip


@frozen(kw_only=True)
class Service:
    """A backend's facts for the capability of an engine.

    Attributes:
        name: the backend's registered name.
        platform: the table of the vendor's vLLM.
        runner: vLLM's runner for the model.
        features: returns the features of a running engine that do not depend on the model.
    """

    name: str
    platform: Platform
    runner: Literal["generate", "pooling"]
    features: Callable[[VLLMEngine], Sequence[str]]


def capability_of(
    service: Service,
    engine: VLLMEngine,
    compat: Any,
    schema: KVCacheSchema | None,
    *,
    has_chats: bool,
    settings: VLLMSettings,
    quantization: Quantization,
    handover: Sequence[str] = (),
) -> CapabilityDescriptor:
    """The descriptor of a running engine; ``schema`` is None without KV, or if no schema describes it.

    ``has_chats`` says whether the model renders chats. ``handover`` are the features of separate prefill and decode.
    """
    config, platform = engine.config, service.platform
    dtypes = [str(dtype).removeprefix("torch.") for dtype in compat.current_platform.supported_dtypes]
    precisions = platform.precisions or tuple(_PRECISIONS[dtype] for dtype in dtypes if dtype in _PRECISIONS)
    features = [*service.features(engine), *handover]
    if compat.guided_needs_float32() and str(config.model_config.dtype) != "torch.float32":
        features = [feature for feature in features if not feature.startswith("guided_")]
    if service.runner == "generate":
        features += ["chat", "template_variables"] if has_chats else []
        features += ["prefix_caching"] if config.cache_config.enable_prefix_caching else []
        features += ["lora"] if settings.adapters else []
        features += ["tool_calls"] if settings.tool_parser else []
    features += ["trace"] if compat.traces(engine.llm) else []
    can_sleep = platform.can_sleep is not False and compat.current_platform.is_sleep_mode_available()
    if can_sleep and config.model_config.enable_sleep_mode:
        features.append("sleep")
    return CapabilityDescriptor(
        backend_name=service.name,
        instance_type="general" if service.runner == "generate" else "embedding",
        hardware_backend=platform.hardware_backend or str(compat.current_platform.device_name).lower(),
        max_batch_size=config.scheduler_config.max_num_seqs,
        max_sequence_length=compat.max_model_len(engine.llm),
        kv_cache_capacity_gb=engine.kv_bytes / 2**30
        if service.runner == "generate" and engine.kv_bytes
        else None,
        supported_precisions=precisions,
        kv_schema=schema,
        quant_profile_id=quantization.profile_id,
        features=tuple(features),
    )

"""Capabilities of running instances. Schedulers and routers decide by these alone."""

from __future__ import annotations

from typing import Literal, get_args

from attrs import field, frozen

from sage_infer.checks import Choice, Each, Flag, Instance, Integer, Number, Text, as_tuple, optional
from sage_infer.errors import Problem, SchemaError
from sage_infer.names import GENERATING, InstanceType, Precision, feature_name, hardware_name, precision
from sage_infer.schemas.base import schema
from sage_infer.schemas.kv import KVCacheSchema
from sage_infer.schemas.model import ModelDescriptor

__all__ = ["CapabilityDescriptor", "HybridCapabilityDescriptor"]

SharingMode = Literal["exclusive", "mps", "time_slice"]
HybridType = Literal["hybrid", "llm_embedding"]


@schema("1.0")
@frozen(kw_only=True)
class CapabilityDescriptor:
    """Capability of one backend instance with its model loaded.

    Attributes:
        backend_name: registered name of the backend.
        instance_type: prefill, decode, general (both), embedding or hybrid.
        hardware_backend: cpu, cuda, ascend, … or a name defined by a plug-in.
        max_batch_size: maximum number of sequences in a batch.
        max_sequence_length: maximum length of prompt plus output, in tokens.
        kv_cache_capacity_gb: KV cache size in GiB; null if the instance has no KV cache.
        supported_precisions: inference precisions that this instance supports.
        kv_schema: layout of its KV cache; null if the instance has no KV cache, or one that no schema can
            describe.
        quant_profile_id: id of the active quantization profile; null for the checkpoint's own quantization.
        sparsity_ratio: fraction of weights that are zero, 0 to 1.
        throughput_hint_tps: output tokens per second at full batch; null or 0 if unknown.
        ttft_hint_ms: time to the first token of a short prompt on an idle instance, in milliseconds; null or
            0 if unknown.
        features: optional features that requests may use: names of ``sage_infer.schemas.FEATURES`` or ``x-…``.
    """

    backend_name: str = field(validator=Text(min_length=1))
    instance_type: InstanceType = field(validator=Choice(get_args(InstanceType)))
    hardware_backend: str = field(validator=hardware_name())
    max_batch_size: int = field(validator=Integer(ge=1))
    max_sequence_length: int = field(validator=Integer(ge=1))
    kv_cache_capacity_gb: float | None = field(default=None, validator=optional(Number(ge=0)))
    supported_precisions: tuple[Precision, ...] = field(
        converter=as_tuple, validator=Each(precision(), min_items=1, unique=True)
    )
    kv_schema: KVCacheSchema | None = field(default=None, validator=optional(Instance(KVCacheSchema)))
    quant_profile_id: str | None = field(default=None, validator=optional(Text(min_length=1)))
    sparsity_ratio: float = field(default=0.0, validator=Number(ge=0, le=1))
    throughput_hint_tps: float | None = field(default=None, validator=optional(Number(ge=0)))
    ttft_hint_ms: float | None = field(default=None, validator=optional(Number(ge=0)))
    features: tuple[str, ...] = field(
        default=(), converter=as_tuple, validator=Each(feature_name(), unique=True)
    )

    def supports(self, feature: str) -> bool:
        return feature in self.features


@schema("1.0")
@frozen(kw_only=True)
class HybridCapabilityDescriptor:
    """Capability of one instance that serves several models on shared devices.

    Attributes:
        backend_name: registered name of the backend.
        instance_type: hybrid, or llm_embedding for an instance that serves exactly these two types.
        hardware_backend: cpu, cuda, ascend, … or a name defined by a plug-in.
        loaded_models: models that are loaded and accept requests.
        gpu_sharing_mode: exclusive (one model per device), mps (simultaneous) or time_slice (in turns).
        memory_isolation: whether each model's memory is protected from the others.
        total_memory_gb: device memory in GiB.
        available_memory_gb: memory left for further models, in GiB.
    """

    backend_name: str = field(validator=Text(min_length=1))
    instance_type: HybridType = field(default="hybrid", validator=Choice(get_args(HybridType)))
    hardware_backend: str = field(default="cuda", validator=hardware_name())
    loaded_models: tuple[ModelDescriptor, ...] = field(
        default=(), converter=as_tuple, validator=Each(Instance(ModelDescriptor))
    )
    gpu_sharing_mode: SharingMode = field(default="time_slice", validator=Choice(get_args(SharingMode)))
    memory_isolation: bool = field(default=False, validator=Flag())
    total_memory_gb: float = field(default=0.0, validator=Number(ge=0))
    available_memory_gb: float = field(default=0.0, validator=Number(ge=0))

    def __attrs_post_init__(self) -> None:
        problems = []
        if self.available_memory_gb > self.total_memory_gb:
            problems.append(
                Problem("$.available_memory_gb", f"must be ≤ total_memory_gb ({self.total_memory_gb:g})")
            )
        ids = [model.model_id for model in self.loaded_models]
        problems += [
            Problem("$.loaded_models", f"names {i!r} twice")
            for i in sorted({i for i in ids if ids.count(i) > 1})
        ]
        if problems:
            raise SchemaError("HybridCapabilityDescriptor", problems)

    def get_llm_models(self) -> tuple[ModelDescriptor, ...]:
        return tuple(m for m in self.loaded_models if m.model_type in GENERATING)

    def get_embedding_models(self) -> tuple[ModelDescriptor, ...]:
        return tuple(m for m in self.loaded_models if m.model_type == "embedding")

"""Schemas: the frozen, validated and versioned data types that the contracts exchange."""

from sage_infer.names import FEATURES
from sage_infer.schemas.base import all_schemas, schema_version
from sage_infer.schemas.capability import CapabilityDescriptor, HybridCapabilityDescriptor
from sage_infer.schemas.embedding import EmbeddingResult, RerankHit, RerankResult
from sage_infer.schemas.generation import (
    DecodeState,
    FinishReason,
    MediaItem,
    Prompt,
    Timing,
    TokenDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from sage_infer.schemas.hardware import (
    UNKNOWN_MODEL,
    AcceleratorDescriptor,
    AcceleratorPartition,
    Figure,
    HardwareProfile,
    LinkProfile,
    MemoryTierSpec,
)
from sage_infer.schemas.host import CpuDescriptor, NumaNode
from sage_infer.schemas.instance import InstanceDescriptor, InstanceReport
from sage_infer.schemas.kv import KV_PRESETS, KVCacheSchema, KVCompatibility, KVGroup
from sage_infer.schemas.kv_chunk import KVChunk, KVLocation
from sage_infer.schemas.model import ModelDescriptor
from sage_infer.schemas.options import SLO, RequestOptions, Retention
from sage_infer.schemas.quantization import QuantizationProfile
from sage_infer.schemas.replica import ReplicaSpec
from sage_infer.schemas.sampling import GuidedDecoding, SamplingParams
from sage_infer.schemas.transport import (
    TRANSPORT_PRESETS,
    TransportPlan,
    TransportReport,
    TransportSettings,
    TransportStep,
)

__all__ = [
    "FEATURES", "KV_PRESETS", "TRANSPORT_PRESETS", "UNKNOWN_MODEL", "AcceleratorDescriptor",
    "AcceleratorPartition", "CapabilityDescriptor", "CpuDescriptor", "DecodeState", "EmbeddingResult",
    "Figure", "FinishReason", "GuidedDecoding", "HardwareProfile", "HybridCapabilityDescriptor",
    "InstanceDescriptor", "InstanceReport", "KVCacheSchema", "KVChunk", "KVCompatibility", "KVGroup",
    "KVLocation", "LinkProfile", "MediaItem", "MemoryTierSpec", "ModelDescriptor", "NumaNode", "Prompt",
    "QuantizationProfile", "ReplicaSpec", "RequestOptions", "RerankHit", "RerankResult", "Retention", "SLO",
    "SamplingParams", "Timing", "TokenDelta", "TokenLogprob", "ToolCallDelta", "TransportPlan",
    "TransportReport", "TransportSettings", "TransportStep", "Usage", "all_schemas", "schema_version",
]  # fmt: skip

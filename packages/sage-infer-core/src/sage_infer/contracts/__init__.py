"""The protocols that plug-ins implement structurally, and the types of their arguments and results."""

from sage_infer.contracts.answers import (
    AnswerDelta,
    AnswerFormat,
    AnswerReader,
    AnswerReading,
    HybridAnswerReading,
)
from sage_infer.contracts.embedding import EmbeddingBackend, TextLike, Truncation, as_texts, check_texts
from sage_infer.contracts.executor import HOST_VARIABLE, Executor, ReplicaExit, ReplicaHandle
from sage_infer.contracts.hardware import HardwareDetector, HardwareMeter
from sage_infer.contracts.hybrid import HybridInferenceBackend, ModelStatus
from sage_infer.contracts.inference import (
    ChatMessage,
    DecodeResult,
    InferenceBackend,
    PrefillResult,
    PromptLike,
    as_prompts,
    request_ids,
)
from sage_infer.contracts.kv_events import KVEvents, KVEventSource, KVSnapshot, KVStored
from sage_infer.contracts.kv_keys import KeyChain, block_keys, key_space, next_key, partial_key, root_key
from sage_infer.contracts.kv_store import (
    KVPlace,
    KVStore,
    KVStoreEvent,
    KVStoreStats,
    MappedKVStore,
    ObservableKVStore,
    TieredKVStore,
)
from sage_infer.contracts.kv_transfer import (
    KVEndpoint,
    KVFlushing,
    KVFormatCodec,
    KVPrefetching,
    KVStateChecking,
    KVTransfer,
    LayerwiseKVFormatCodec,
)
from sage_infer.contracts.lifecycle import EngineStats, Health, Lifecycle
from sage_infer.contracts.memory import DeviceMemory, MemoryPlanning, MemoryReporting, MemoryShare
from sage_infer.contracts.reporting import (
    ClusterReporting,
    InstanceReporting,
    Metric,
    MetricsReporting,
    ModelReporting,
    ModelSettings,
    ProgressReport,
    ProgressReporting,
)
from sage_infer.contracts.resuming import HybridResuming, Resuming
from sage_infer.contracts.stream import BufferedTokenStream, TokenStream, collect_text
from sage_infer.contracts.tokenizing import HybridTokenizing, TextCodec, Tokenizing
from sage_infer.contracts.tools import ChatAnswer, HybridToolCalling, ToolCall, ToolCalling
from sage_infer.contracts.transport import StepCallback, Transport

__all__ = [
    "AnswerDelta", "AnswerFormat", "AnswerReader", "AnswerReading", "BufferedTokenStream",
    "ChatAnswer", "ChatMessage", "ClusterReporting", "DecodeResult", "DeviceMemory",
    "EmbeddingBackend", "EngineStats", "Executor", "HOST_VARIABLE", "HardwareDetector", "HardwareMeter", "Health",
    "HybridAnswerReading",
    "HybridInferenceBackend", "HybridResuming", "HybridTokenizing", "HybridToolCalling", "InferenceBackend",
    "InstanceReporting", "KVEndpoint",
    "KVEventSource", "KVEvents", "KVFlushing", "KVFormatCodec", "KVPlace", "KVPrefetching", "KVSnapshot",
    "KVStateChecking", "KVStore", "KVStoreEvent", "KVStoreStats", "KVStored", "KVTransfer", "KeyChain",
    "LayerwiseKVFormatCodec", "Lifecycle", "MappedKVStore",
    "MemoryPlanning", "MemoryReporting", "MemoryShare", "Metric", "MetricsReporting", "ModelReporting", "ModelSettings",
    "ModelStatus", "ObservableKVStore",
    "PrefillResult", "ProgressReport", "ProgressReporting", "PromptLike", "ReplicaExit", "ReplicaHandle",
    "Resuming", "StepCallback", "TextCodec", "TextLike", "TieredKVStore", "TokenStream", "Tokenizing",
    "ToolCall", "ToolCalling", "Transport", "Truncation", "as_prompts", "as_texts", "block_keys",
    "check_texts", "collect_text", "key_space", "next_key", "partial_key", "request_ids", "root_key",
]  # fmt: skip

"""The protocols that plug-ins satisfy by shape, and the types of their arguments and results."""

from sage_infer.contracts.embedding import EmbeddingBackend, Truncation, check_texts
from sage_infer.contracts.hardware import HardwareDetector, HardwareMeter
from sage_infer.contracts.hybrid import HybridInferenceBackend, ModelStatus
from sage_infer.contracts.inference import (
    ChatMessage,
    DecodeResult,
    EngineStats,
    Health,
    InferenceBackend,
    KVTransfer,
    Lifecycle,
    PrefillResult,
    PromptLike,
    as_prompts,
    request_ids,
)
from sage_infer.contracts.kv_store import KVStore, KVStoreStats, block_keys
from sage_infer.contracts.memory import DeviceMemory, MemoryPlanning, MemoryReporting, MemoryShare
from sage_infer.contracts.stream import BufferedTokenStream, TokenStream, collect_text
from sage_infer.contracts.tokenizing import HybridTokenizing, Tokenizing
from sage_infer.contracts.tools import ChatAnswer, ToolCall, ToolCalling
from sage_infer.contracts.transport import Transport

__all__ = [
    "BufferedTokenStream", "ChatAnswer", "ChatMessage", "DecodeResult", "DeviceMemory", "EmbeddingBackend",
    "EngineStats", "HardwareDetector", "HardwareMeter", "Health", "HybridInferenceBackend", "HybridTokenizing",
    "InferenceBackend", "KVStore", "KVStoreStats", "KVTransfer", "Lifecycle", "MemoryPlanning", "MemoryReporting",
    "MemoryShare", "ModelStatus", "PrefillResult", "PromptLike", "TokenStream", "Tokenizing", "ToolCall",
    "ToolCalling", "Transport", "Truncation", "as_prompts", "block_keys", "check_texts", "collect_text",
    "request_ids",
]  # fmt: skip

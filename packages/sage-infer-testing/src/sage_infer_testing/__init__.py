"""The contract kit: pytest classes that a vendor subclasses, and ``sage infer backend test``."""

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = [
    "ContractSuite", "EmbeddingBackendContract", "ExecutorContract", "HardwareDetectorContract",
    "HybridBackendContract", "HybridTokenizingContract", "InferenceBackendContract", "KVEndpointContract",
    "KVFormatCodecContract", "KVStoreContract", "MappedKVStoreContract", "ObservableKVStoreContract", "PluginContract",
    "RecordingContract", "TieredKVStoreContract", "TransportContract", "VLLMPlatformContract",
    "WholeRecordingContract", "xfail",
]  # fmt: skip

if TYPE_CHECKING:
    from sage_infer_testing.kits.embedding import EmbeddingBackendContract
    from sage_infer_testing.kits.executor import ExecutorContract
    from sage_infer_testing.kits.hardware import HardwareDetectorContract
    from sage_infer_testing.kits.hybrid import HybridBackendContract
    from sage_infer_testing.kits.hybrid_tokenizing import HybridTokenizingContract
    from sage_infer_testing.kits.inference import InferenceBackendContract
    from sage_infer_testing.kits.kv.codec import KVFormatCodecContract
    from sage_infer_testing.kits.kv.endpoint import KVEndpointContract
    from sage_infer_testing.kits.kv.mapped import MappedKVStoreContract
    from sage_infer_testing.kits.kv.observable import ObservableKVStoreContract
    from sage_infer_testing.kits.kv.store import KVStoreContract
    from sage_infer_testing.kits.kv.tiered import TieredKVStoreContract
    from sage_infer_testing.kits.kv.transport import TransportContract
    from sage_infer_testing.kits.plugin import PluginContract
    from sage_infer_testing.kits.recordings import RecordingContract
    from sage_infer_testing.kits.vllm_platform import VLLMPlatformContract
    from sage_infer_testing.kits.whole_recordings import WholeRecordingContract
    from sage_infer_testing.suite import ContractSuite, xfail

_HOMES = {
    "ContractSuite": "suite", "EmbeddingBackendContract": "kits.embedding", "ExecutorContract": "kits.executor",
    "HardwareDetectorContract": "kits.hardware", "HybridBackendContract": "kits.hybrid",
    "HybridTokenizingContract": "kits.hybrid_tokenizing", "InferenceBackendContract": "kits.inference",
    "KVEndpointContract": "kits.kv.endpoint",
    "KVFormatCodecContract": "kits.kv.codec", "KVStoreContract": "kits.kv.store",
    "MappedKVStoreContract": "kits.kv.mapped",
    "ObservableKVStoreContract": "kits.kv.observable", "PluginContract": "kits.plugin",
    "RecordingContract": "kits.recordings", "TieredKVStoreContract": "kits.kv.tiered",
    "TransportContract": "kits.kv.transport", "VLLMPlatformContract": "kits.vllm_platform",
    "WholeRecordingContract": "kits.whole_recordings", "xfail": "suite",
}  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value

"""The contract kit: pytest classes that a vendor subclasses, and ``sage infer backend test``."""

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = [
    "ContractSuite", "EmbeddingBackendContract", "HardwareDetectorContract", "HybridBackendContract",
    "InferenceBackendContract", "KVStoreContract", "PluginContract", "RecordingContract", "TransportContract",
    "VLLMPlatformContract", "xfail",
]  # fmt: skip

if TYPE_CHECKING:
    from sage_infer_testing.kits.embedding import EmbeddingBackendContract
    from sage_infer_testing.kits.hardware import HardwareDetectorContract
    from sage_infer_testing.kits.hybrid import HybridBackendContract
    from sage_infer_testing.kits.inference import InferenceBackendContract
    from sage_infer_testing.kits.kv_store import KVStoreContract
    from sage_infer_testing.kits.plugin import PluginContract
    from sage_infer_testing.kits.recordings import RecordingContract
    from sage_infer_testing.kits.transport import TransportContract
    from sage_infer_testing.kits.vllm_platform import VLLMPlatformContract
    from sage_infer_testing.suite import ContractSuite, xfail

_HOMES = {
    "ContractSuite": "suite", "EmbeddingBackendContract": "kits.embedding",
    "HardwareDetectorContract": "kits.hardware", "HybridBackendContract": "kits.hybrid",
    "InferenceBackendContract": "kits.inference", "KVStoreContract": "kits.kv_store",
    "PluginContract": "kits.plugin", "RecordingContract": "kits.recordings",
    "TransportContract": "kits.transport", "VLLMPlatformContract": "kits.vllm_platform", "xfail": "suite",
}  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value

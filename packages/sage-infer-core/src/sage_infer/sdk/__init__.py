"""Helpers for engines and plug-ins: public, and as stable as the contracts."""

from typing import TYPE_CHECKING

from sage_infer.lazy import lazy_exports

__all__ = [
    "FEATURE_OF", "BackendReplica", "BaseBackend", "BaseEmbeddingBackend", "BaseExecutor", "BaseInferenceBackend",
    "BaseKVStore", "BaseReplica", "BaseTransport", "Completion", "KVPageConverter", "KVStates", "OpenRequest",
    "OpenRequests", "PlanRun", "Reporter", "StopStringDetector", "accepted_options", "check_claims", "checked_hold",
    "checksum", "choose_token", "copy_chunk", "file_path", "first_logprob", "kv_prompt", "logprob_as_json",
    "plain_messages", "record_source", "verify", "weights_id_of",
]  # fmt: skip

if TYPE_CHECKING:
    from sage_infer.sdk.base_backend import BaseBackend
    from sage_infer.sdk.chat import plain_messages
    from sage_infer.sdk.checksums import checksum, verify
    from sage_infer.sdk.claims import FEATURE_OF, accepted_options, check_claims
    from sage_infer.sdk.completion import Completion
    from sage_infer.sdk.embedding_backend import BaseEmbeddingBackend
    from sage_infer.sdk.executor import BackendReplica, BaseExecutor, BaseReplica
    from sage_infer.sdk.inference_backend import BaseInferenceBackend
    from sage_infer.sdk.kv_formats import KVPageConverter
    from sage_infer.sdk.kv_states import KVStates, checked_hold, first_logprob, kv_prompt, logprob_as_json
    from sage_infer.sdk.kv_store import BaseKVStore
    from sage_infer.sdk.open_requests import OpenRequest, OpenRequests
    from sage_infer.sdk.reporting import Reporter
    from sage_infer.sdk.sampling import choose_token
    from sage_infer.sdk.stop_strings import StopStringDetector
    from sage_infer.sdk.transport import BaseTransport, PlanRun, copy_chunk, file_path
    from sage_infer.sdk.weights import record_source, weights_id_of

_HOMES = {
    "FEATURE_OF": "claims", "BackendReplica": "executor", "BaseBackend": "base_backend",
    "BaseEmbeddingBackend": "embedding_backend",
    "BaseExecutor": "executor", "BaseInferenceBackend": "inference_backend", "BaseKVStore": "kv_store",
    "BaseReplica": "executor", "BaseTransport": "transport", "Completion": "completion",
    "KVPageConverter": "kv_formats", "KVStates": "kv_states", "OpenRequest": "open_requests",
    "OpenRequests": "open_requests", "PlanRun": "transport", "Reporter": "reporting",
    "StopStringDetector": "stop_strings", "accepted_options": "claims", "check_claims": "claims",
    "checked_hold": "kv_states", "checksum": "checksums", "choose_token": "sampling", "copy_chunk": "transport",
    "file_path": "transport",
    "first_logprob": "kv_states", "kv_prompt": "kv_states", "logprob_as_json": "kv_states", "plain_messages": "chat",
    "record_source": "weights", "verify": "checksums", "weights_id_of": "weights",
}  # fmt: skip
__getattr__ = lazy_exports(__name__, _HOMES)

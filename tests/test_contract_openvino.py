"""The contract kit on the embedded engine and its encoder, with the sample models."""

from __future__ import annotations

from sage_infer_testing import EmbeddingBackendContract, InferenceBackendContract, PluginContract


class TestPlugin(PluginContract):
    module = "sage_infer_openvino.plugin"


class TestOpenVINO(InferenceBackendContract):
    backend_name = "openvino"
    model = "smollm2-135m"
    max_queue = 48
    options = {"max_queue": 48, "max_batch_size": 8, "kv_cache_gb": 0.5}  # noqa: RUF012 - as the kit declares it


class TestOpenVINOEmbedding(EmbeddingBackendContract):
    backend_name = "openvino-embedding"
    model = "minilm"
    normalized = True

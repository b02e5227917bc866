"""The contract kit on real models: SmolLM2 and MiniLM on the embedded engine, in one process."""

from __future__ import annotations

from typing import Any

import pytest
from sage_infer.models import resolve_model
from sage_infer.schemas import ModelDescriptor
from sage_infer_hybrid import HybridBackend, ModelConfig
from sage_infer_testing import HybridBackendContract, PluginContract


class TestPlugin(PluginContract):
    module = "sage_infer_hybrid.plugin"


class TestHybrid(HybridBackendContract):
    backend_name = "hybrid"
    llm = "smollm2-135m"
    embedder = "minilm"
    too_large = ModelDescriptor(model_id="giant", model_type="llm", model_path="/nowhere", memory_gb=10_000)

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def models(cls, sample_models: None) -> None:
        found = resolve_model("minilm", model_type="embedding")
        cls.spare = ModelDescriptor(
            model_id="second-minilm", model_type="embedding", model_path=found.model_path
        )

    def make_backend(self) -> Any:
        return HybridBackend(
            llm_config=ModelConfig(model="smollm2-135m", options={"kv_cache_gb": 0.25, "max_batch_size": 8}),
            embedding_config={"model": "minilm", "aliases": ["text-embedding-3-small"]},
        )

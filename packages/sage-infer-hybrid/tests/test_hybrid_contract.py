"""The contract kit on real models: SmolLM2 and MiniLM on the embedded engine, in one process."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sage_infer.models import resolve_model
from sage_infer.schemas import ModelDescriptor
from sage_infer_hybrid import HybridBackend, ModelConfig
from sage_infer_testing import HybridBackendContract, HybridTokenizingContract, PluginContract
from sage_infer_testing.reading import greedy, read


class TestPlugin(PluginContract):
    module = "sage_infer_hybrid.plugin"


def both_models() -> HybridBackend:
    return HybridBackend(
        llm_config=ModelConfig(model="smollm2-135m", options={"kv_cache_gb": 0.25, "max_batch_size": 8}),
        embedding_config={"model": "minilm", "aliases": ["text-embedding-3-small"]},
    )


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
        return both_models()


class TestHybridTokenizing(HybridTokenizingContract):
    llm = "smollm2-135m"
    embedder = "minilm"

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def models(cls, sample_models: None) -> None: ...

    def make_backend(self) -> Any:
        return both_models()


def test_a_real_llm_sleeps_after_its_streams_and_wakes_unchanged(sample_models: None) -> None:
    prompt = "Once upon a time,"

    async def main() -> None:
        hybrid = HybridBackend(llm_config={"model": "smollm2-135m", "options": {"kv_cache_gb": 0.1}})
        await hybrid.start()
        try:
            streams = [(await hybrid.generate(prompt, greedy(24)))[0] for _ in range(4)]
            reading = [asyncio.ensure_future(read(stream)) for stream in streams]
            await hybrid.sleep_model("smollm2-135m")
            assert hybrid.get_model_status("smollm2-135m").state == "sleeping"
            assert not hybrid.memory_plan().shares
            before = [await task for task in reading]
            assert [output.finish_reason for output in before] == ["length"] * 4
            woken = [(await hybrid.generate(prompt, greedy(24)))[0] for _ in range(2)]
            after = [await read(stream) for stream in woken]
            assert {output.token_ids for output in after} == {before[0].token_ids}
            assert hybrid.stats().finished == 6
        finally:
            await hybrid.close()

    asyncio.run(main())

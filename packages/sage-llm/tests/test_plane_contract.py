"""The contract kit on a control plane over the real embedded engines: SmolLM2 on two instances, and MiniLM."""

from __future__ import annotations

import asyncio
from typing import Any

import plane
import pytest
from plane import running_plane, small_llm
from sage_infer.contracts import (
    ClusterReporting,
    HybridAnswerReading,
    HybridTokenizing,
    HybridToolCalling,
    MetricsReporting,
    ModelReporting,
    ModelSettings,
)
from sage_infer.errors import ModelNotFound, UnsupportedFeature
from sage_infer.models import resolve_model
from sage_infer.schemas import ModelDescriptor
from sage_infer_testing import HybridBackendContract, PluginContract
from sage_llm.manager.manager import ControlPlaneManager
from sage_llm.manager.models import ServedModel
from sage_llm.replicas.local import LocalExecutor


class TestPlugin(PluginContract):
    module = "sage_llm.plugin"


def embedder(path: str, replicas: int = 1) -> ServedModel:
    model = resolve_model("minilm", model_type="embedding")
    return ServedModel(
        descriptor=ModelDescriptor(model_id="minilm", model_type="embedding", model_path=model.model_path),
        backend="openvino-embedding",
        aliases=("text-embedding-3-small",),
        replicas=replicas,
    )


class TestControlPlane(HybridBackendContract):
    backend_name = "llm"
    llm = "smollm2-135m"
    embedder = "minilm"

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def models(cls, smollm2: str, minilm: str, cache_dir: str) -> None:
        cls.served = [small_llm(smollm2, cache_dir, max_batch_size=8), embedder(minilm)]
        cls.spare = ModelDescriptor(
            model_id="second-minilm",
            model_type="embedding",
            model_path=resolve_model("minilm", model_type="embedding").model_path,
        )

    def make_backend(self) -> Any:
        return ControlPlaneManager(self.served, LocalExecutor())


def test_the_gateway_finds_all_protocols(smollm2: str, minilm: str, cache_dir: str) -> None:
    async def main() -> None:
        models = [small_llm(smollm2, cache_dir, replicas=1), embedder(minilm, replicas=2)]
        async with running_plane(models, LocalExecutor()) as manager:
            for protocol in (
                HybridTokenizing, HybridToolCalling, HybridAnswerReading, ModelReporting, ModelSettings,
                MetricsReporting, ClusterReporting,
            ):  # fmt: skip
                assert isinstance(manager, protocol)
            tokens = await manager.tokenize("Hello world")
            assert await manager.detokenize(tokens) == "Hello world"
            assert (await manager.answer_format()) is not None
            answer = await manager.parse_tool_calls("just text", tools=[])
            assert answer.content == "just text"
            with pytest.raises(ModelNotFound):
                await manager.tokenize("x", model="nothing")
            with pytest.raises(UnsupportedFeature):
                await manager.embed(["x"], model="smollm2-135m")
            whole = await manager.embed(["a cat", "a boat"], "text-embedding-3-small")
            assert len(whole.vectors) == 2
            one, two = manager.dispatcher.placement.instances("minilm")
            assert one.served + two.served == 1
            lengths = [
                (await manager.embed([text])).usage.prompt_tokens for text in ("a cat", "two words more")
            ]
            both = await asyncio.gather(manager.embed(["a cat"]), manager.embed(["two words more"]))
            assert [result.usage.prompt_tokens for result in both] == lengths
            await one.backend.close()
            again = await asyncio.gather(*(manager.embed(["a cat", "a boat"]) for _ in range(4)))
            assert all(bytes(result.data) == bytes(whole.data) for result in again)
            assert manager.get_model_settings("minilm")["replicas"] == 2
            assert manager.get_model_capability("smollm2-135m").backend_name == "openvino"
            metrics = [(metric.name, tuple(metric.labels.items())) for metric in manager.metrics()]
            assert len(set(metrics)) == len(metrics)
            names = {name for name, _ in metrics}
            assert {"sage_llm_requests_total", "sage_llm_instance_up", "sage_llm_instance_running"} <= names
            assert {row["instance"] for row in manager.cluster()["replicas"]} == {
                "smollm2-135m/0", "minilm/0", "minilm/1",
            }  # fmt: skip

    asyncio.run(asyncio.wait_for(main(), plane.GUARD_S))

"""The examples that the project was asked for, as they were written: the three scenarios of hybrid serving.

Models that are at hand stand in for the hub's; keys and forms of calls are unchanged.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from sage_infer import SamplingParams
from sage_infer.contracts import collect_text
from sage_infer.discovery import model_specs
from sage_infer.errors import InvalidRequest, OutOfMemory, UnsupportedFeature
from sage_infer.models import add_model, resolve_model
from sage_infer.schemas import HardwareProfile, MemoryTierSpec, ModelDescriptor
from sage_infer_cuda.recordings import read
from sage_infer_hybrid import HybridBackend

GIB = 2**30
DATA = Path(__file__).parents[1] / "packages/sage-infer-cuda-hal/tests/data"
MACHINE = HardwareProfile(memory_tiers=(MemoryTierSpec(tier="dram", name="host", capacity_bytes=4 * GIB),))
params = SamplingParams(temperature=0, max_tokens=8)


@pytest.fixture(scope="module")
def sample_models() -> None:
    for name in ("smollm2-135m", "minilm"):
        add_model(model_specs()[name])


def run(backend: Any, work: Callable[[Any], Awaitable[None]]) -> None:
    async def main() -> None:
        await backend.start()
        try:
            await work(backend)
        finally:
            await backend.close()

    asyncio.run(asyncio.wait_for(main(), 600))


def test_scenario_1_one_device_with_a_share_of_memory_each(sample_models: None) -> None:
    backend = HybridBackend(
        llm_config={
            "model_id": "smollm2-135m",
            "device_ids": [0],
            "memory_fraction": 0.7,
        },
        embedding_config={
            "model_id": "minilm",
            "device_ids": [0],
            "memory_fraction": 0.3,
        },
        sharing_mode="time_slice",
        profile=MACHINE,
    )

    async def work(backend: HybridBackend) -> None:
        embeddings = await backend.embed(["查询文本"])
        response = await backend.generate(["基于检索结果回答..."], params)
        assert len(embeddings[0]) == embeddings.dim == 384
        assert len(response) == 1
        await collect_text(response[0])
        budgets = {"smollm2-135m": 0.7, "minilm": 0.3}
        for share in backend.memory_plan().shares:
            assert share.total <= budgets[share.model_id] * 4 * GIB

    run(backend, work)


@pytest.mark.parametrize(
    ("llm", "embedding", "message"),
    [
        (0.8, 0.3, r"'minilm' has memory_fraction 0\.3, too much with the others on cpu \('smollm2-135m' 0\.8\)"),
        (0.05, 0.3, r"'smollm2-135m' needs .* and memory_fraction 0\.05 of cpu is 0\.19 GiB: .* GiB too little"),
    ],
)  # fmt: skip
def test_fractions_that_do_not_go_together_are_refused_with_the_numbers(
    sample_models: None, llm: float, embedding: float, message: str
) -> None:
    backend = HybridBackend(
        llm_config={"model_id": "smollm2-135m", "memory_fraction": llm},
        embedding_config={"model_id": "minilm", "memory_fraction": embedding},
        profile=MACHINE,
    )
    with pytest.raises(OutOfMemory, match=message):
        backend.plan()


def five_cards() -> HardwareProfile:
    """Five of the eight cards of a recorded H100 machine."""
    text = (DATA / "smi-qx-h100.xml").read_text()
    profile = read(text, name="smi-qx-h100.xml")
    return attrs.evolve(profile, accelerators=profile.accelerators[:5], links=(), memory_tiers=())


def config_of_72b(folder: Path) -> None:
    """The configuration of Qwen2.5-72B-Instruct, and weight files of its size without content."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 8192, "num_attention_heads": 64,
        "num_key_value_heads": 8, "num_hidden_layers": 80, "intermediate_size": 29568, "vocab_size": 152064,
        "max_position_embeddings": 32768, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }))  # fmt: skip
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(145_412_407_296)


@pytest.fixture
def on_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM is the configured engine, and the hub's names mean folders here."""
    config_of_72b(tmp_path / "qwen-72b")
    minilm = resolve_model("minilm", model_type="embedding").model_path
    aliases = {"Qwen/Qwen2.5-72B-Instruct": str(tmp_path / "qwen-72b"), "BAAI/bge-m3": minilm}
    config = {
        "inference": {"backend": "vllm", "embedding_backend": "vllm-embedding"},
        "models": {"aliases": aliases},
    }
    (tmp_path / "sage_infer.yaml").write_text(json.dumps(config))
    monkeypatch.setenv("SAGE_INFER_CONFIG", str(tmp_path / "sage_infer.yaml"))


def test_scenario_2_several_devices_planned_before_anything_starts(
    sample_models: None, on_vllm: None
) -> None:
    backend = HybridBackend(
        llm_config={
            "model_id": "Qwen/Qwen2.5-72B-Instruct",
            "device_ids": [0, 1, 2, 3],
        },
        embedding_config={
            "model_id": "BAAI/bge-m3",
            "device_ids": [4],
        },
        sharing_mode="exclusive",
        profile=five_cards(),
    )
    plan = backend.plan()
    assert plan.mode == "exclusive"
    shares = {model.model_id: plan.shares_of(model.model_id) for model in backend.list_models()}
    llm, embedding = shares["Qwen/Qwen2.5-72B-Instruct"], shares["BAAI/bge-m3"]
    assert [share.device for share in llm] == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert [share.device for share in embedding] == ["cuda:4"]
    assert sum(share.weights for share in llm) == pytest.approx(145_412_407_296, rel=1e-6)
    assert all(0 < plan.used(device.name) <= device.usable for device in plan.devices)


def test_devices_that_do_not_exist_or_cannot_be_used_are_refused(sample_models: None, on_vllm: None) -> None:
    missing = HybridBackend(
        embedding_config={"model_id": "BAAI/bge-m3", "device_ids": [5]}, profile=five_cards()
    )
    with pytest.raises(InvalidRequest, match="names device 5, but backend 'vllm-embedding' can use: cuda:0"):
        missing.plan()
    divided = HybridBackend(
        embedding_config={
            "model_id": "BAAI/bge-m3",
            "device_ids": [1, 2],
            "backend": "openvino-embedding",
        },
        profile=five_cards(),
    )
    with pytest.raises((InvalidRequest, UnsupportedFeature), match="names device 1, 2"):
        divided.plan()


def test_scenario_3_models_that_are_loaded_by_descriptor(sample_models: None) -> None:
    backend = HybridBackend(profile=MACHINE)
    backend.load_model(
        ModelDescriptor(
            model_id="qwen-7b",
            model_type="llm",
            model_path="smollm2-135m",
            device_ids=[0],
            memory_gb=0.6,
            max_batch_size=32,
            max_sequence_length=2048,
            supported_precisions=["fp16", "fp8_e4m3"],
        )
    )
    backend.load_model(
        ModelDescriptor(
            model_id="bge-m3",
            model_type="embedding",
            model_path="minilm",
            device_ids=[0],
            memory_gb=0.3,
            max_batch_size=256,
            max_sequence_length=512,
            supported_precisions=["fp16"],
            embedding_dim=384,
            pooling_type="mean",
        )
    )
    assert [backend.get_model_status(name).state for name in ("qwen-7b", "bge-m3")] == ["registered"] * 2
    texts, prompts = ["a", "b"], ["Once upon a time,"]

    async def work(backend: HybridBackend) -> None:
        embeddings = await backend.embed(texts, model="bge-m3")
        response = await backend.generate(prompts, params, model="qwen-7b")
        assert [len(vector) for vector in embeddings] == [384, 384]
        assert await collect_text(response[0])
        chat = await backend.chat([{"role": "user", "content": "Hello"}], params, "qwen-7b")
        assert await collect_text(chat)
        spare = attrs.evolve(resolve_model("minilm", model_type="embedding"), model_id="spare")
        await backend.load_model(spare)
        assert len(await backend.embed(texts, "spare")) == 2
        capability = backend.get_hybrid_capability()
        assert [m.model_id for m in capability.get_llm_models()] == ["qwen-7b"]
        assert [m.model_id for m in capability.get_embedding_models()] == ["bge-m3", "spare"]

    run(backend, work)

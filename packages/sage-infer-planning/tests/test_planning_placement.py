"""What a model will want, by its files, its engine and the user's options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import ModelDescriptor
from sage_infer.specs import BackendSpec, EngineMemory, ModelSizes
from sage_infer_planning.estimate import GIB, Demand
from sage_infer_planning.memory_planner import Device
from sage_infer_planning.placement import candidates, demand_of

CARDS = [Device(name=f"cuda:{i}", total=size * GIB, usable=size * GIB) for i, size in enumerate((24, 16))]
CPU = Device(name="cpu", total=24 * GIB, usable=24 * GIB)
ON_CARDS, ON_CPU = ("cuda:0", "cuda:1"), ("cpu",)
TOKEN = 2 * 4 * 2 * 64 * 2  # bytes of KV at 16 bits: keys and values, 4 layers, 2 heads of 64


@pytest.fixture
def model(tmp_path: Path) -> ModelDescriptor:
    """A small Llama with 32,768 positions."""
    (tmp_path / "config.json").write_text(json.dumps({
        "model_type": "llama", "hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2,
        "num_hidden_layers": 4, "intermediate_size": 1024, "vocab_size": 1000, "tie_word_embeddings": True,
        "max_position_embeddings": 32768, "torch_dtype": "bfloat16",
    }))  # fmt: skip
    return ModelDescriptor(model_id="m", model_type="llm", model_path=str(tmp_path))


def demand(
    model: ModelDescriptor,
    names: tuple[str, ...] = ON_CPU,
    engine: EngineMemory | None = None,
    **options: Any,
) -> Demand:
    return demand_of(model, engine or EngineMemory(), options, names, [*CARDS, CPU], weight=2.0)


def test_kv_is_for_a_sequence_of_full_length_at_least(model: ModelDescriptor) -> None:
    assert demand(model).kv_least == 32768 * TOKEN
    assert demand(model, max_sequence_length=1024).kv_least == 1024 * TOKEN
    assert demand(model, max_batch_size=2, names=ON_CARDS).kv_wanted == 2 * 32768 * TOKEN
    assert demand(model).kv_wanted == GIB  # main memory has other uses


def test_an_engine_with_a_cache_of_its_own_size_takes_shorter_sequences(model: ModelDescriptor) -> None:
    engine = EngineMemory(kv_bytes=2**20)
    assert demand(model, engine=engine).kv_least == 2**20
    assert demand(model, engine=engine, max_sequence_length=1024).kv_least == 1024 * TOKEN  # as the user said


def test_weights_are_what_the_engine_makes_of_them(model: ModelDescriptor) -> None:
    stored = demand(model).weights
    assert demand(model, engine=EngineMemory(least_weight_bits=32)).weights == 2 * stored
    assert demand(model, engine=EngineMemory(most_weight_bits=8)).weights == stored // 2
    twice = demand(model, engine=EngineMemory(has_tied_table_twice=True))
    assert twice.weights - stored == 1000 * 512 * 2


def test_what_the_user_says_of_the_cache_counts(model: ModelDescriptor) -> None:
    said = demand(model, names=ON_CARDS, kv_cache_gb=0.5, tensor_parallel=2)
    assert (said.spread, said.kv_least, said.kv_wanted) == (2, GIB, GIB)  # of each device a half
    assert said.part.kv_least == GIB // 2
    assert demand(model, tensor_parallel=2).spread == 1
    half = demand(model, names=ON_CARDS, memory_fraction=0.5)
    assert half.least == pytest.approx(8 * GIB, abs=8)  # of the smaller card


@pytest.mark.parametrize(
    "wrong", [{"kv_cache_gb": "much"}, {"tensor_parallel": True}, {"memory_fraction": -1}]
)
def test_options_that_make_no_sense_are_left_to_the_backend(
    model: ModelDescriptor, wrong: dict[str, Any]
) -> None:
    assert demand(model, names=ON_CARDS, **wrong) == demand(model, names=ON_CARDS)


def test_devices_are_those_that_the_backend_can_use(model: ModelDescriptor) -> None:
    def names(hardware: set[str], *device_ids: int) -> tuple[str, ...]:
        spec = BackendSpec(name="x", factory="x:Y", serves={"llm"}, hardware=hardware)
        chosen = ModelDescriptor(
            model_id="m", model_type="llm", model_path=model.model_path, device_ids=device_ids
        )
        return candidates(chosen, spec, [*CARDS, CPU])

    assert names({"cuda", "cpu"}) == ON_CARDS
    assert names({"cuda", "cpu"}, 1) == ("cuda:1",)
    assert names({"ascend", "cpu"}) == ("cpu",)


def test_a_model_is_put_on_the_devices_that_it_names(model: ModelDescriptor) -> None:
    spec = BackendSpec(name="b", factory="m:f", serves={"llm"}, hardware={"cuda", "cpu"})
    both = [*CARDS, CPU]
    assert candidates(evolve(model, device_ids=(1,)), spec, both) == ("cuda:1",)
    assert candidates(evolve(model, device_ids=(0,)), spec, [CPU]) == ON_CPU, "main memory is device 0"
    with pytest.raises(InvalidRequest, match=r"names device 2, 7, but backend 'b' can use: cuda:0, cuda:1"):
        candidates(evolve(model, device_ids=(1, 2, 7)), spec, both)
    with pytest.raises(
        InvalidRequest, match="names device 1, but backend 'b' can use: 0, which is main memory"
    ):
        candidates(evolve(model, device_ids=(1,)), spec, [CPU])
    assert demand(evolve(model, device_ids=(0, 1)), names=ON_CARDS).spread == 2


def test_sizes_of_a_plug_ins_own_format_count_as_they_are(tmp_path: Path) -> None:
    model = ModelDescriptor(model_id="own", model_type="llm", model_path=str(tmp_path / "own.bin"))
    sizes = ModelSizes(
        weight_bytes=3 * GIB, kv_bytes_per_token=1024, activation_bytes=7, max_sequence_length=2048
    )
    engine = EngineMemory(least_weight_bits=32, max_batch_size=4, overhead_bytes=5)
    found = demand_of(model, engine, {}, ON_CARDS, CARDS, weight=1.0, sizes=sizes)
    assert (found.weights, found.activations, found.overhead) == (3 * GIB, 7, 5)
    assert (found.kv_least, found.kv_wanted) == (2048 * 1024, 4 * 2048 * 1024)
    shorter = demand_of(model, engine, {"max_sequence_length": 512}, ON_CARDS, CARDS, weight=1.0, sizes=sizes)
    assert shorter.kv_least == 512 * 1024
    no_kv = demand_of(model, engine, {}, ON_CPU, [CPU], weight=1.0, sizes=ModelSizes(weight_bytes=1))
    assert (no_kv.kv_least, no_kv.kv_wanted) == (0, 0)

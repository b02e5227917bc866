"""A KV store that the engine core opens itself, as below ``vllm serve``, without an engine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from sage_infer.errors import ConfigError, UnsupportedFeature
from sage_infer_vllm.kv.facts import facts_of_connector
from sage_infer_vllm.kv.plan import PARAMS
from sage_infer_vllm.kv.scheduler_side import SchedulerSide
from sage_infer_vllm.kv.served import ServedSettings, ServedStore, open_served
from sage_infer_vllm.kv.traffic import StoreTraffic
from vllm_faulty_store import FaultyStore
from vllm_steps import KEYS, SCHEMA, SIZE, TOKENS, WAIT_S, page, plan, request, step

np = pytest.importorskip("numpy")


@pytest.fixture
def store() -> FaultyStore:
    return FaultyStore(SCHEMA, "model")


@pytest.fixture
def traffic(store: FaultyStore) -> Iterator[StoreTraffic]:
    made = StoreTraffic(store, page_bytes=SIZE, slots=(4, 3), wait_s=WAIT_S)
    yield made
    store.mode = "well"
    store.gate.set()
    made.close()


def test_the_scheduler_asks_again_until_the_store_has_answered(
    traffic: StoreTraffic, store: FaultyStore
) -> None:
    store.blocks.update((key, page(key)) for key in KEYS)
    side = SchedulerSide(4)
    side.serve(ServedStore(traffic, kv_model="model", schema=SCHEMA, cached_pages=8))
    store.mode = "hang"
    store.gate.clear()
    one, late, other = request("a", TOKENS), request("b", TOKENS), request("c", TOKENS)
    other.lora_request = "adapter"
    for arrived in (one, late, other):
        side.arrived(arrived)
    assert side.matched_tokens(one, 0) is None
    assert side.matched_tokens(other, 0) == 0
    assert plan(side, step()) is None
    side.finished(late, ([],))  # aborted while the store hangs
    store.gate.set()
    found: int | None = None
    while found is None:  # every look waits a little
        plan(side, step())
        found = side.matched_tokens(one, 0)
    assert found == 16
    side.allocated(one, ([10, 11, 12, 13, 14],), 16)
    copies = plan(side, step((one, 16, 2), new=True))
    assert copies is not None
    assert len(copies.loads) == 4
    assert [bytes(traffic.arena.page(slot)) for slot, _ in copies.loads] == [page(key) for key in KEYS]
    plan(side, step())
    assert traffic.free_slots() == 0  # no worker has loaded them
    traffic.arena.set_loaded_step(copies.step)
    side.finished(one, ([],))
    plan(side, step())
    while traffic.free_slots() < 4:
        plan(side, step())
    again = request("d", TOKENS)  # the engine's own cache is assumed to have it, and has not
    side.arrived(again)
    while (found := side.matched_tokens(again, 0)) is None:
        plan(side, step())
    assert found == 0
    side.allocated(again, ([1, 2, 3, 4, 5],), 0)
    store.blocks.clear()
    copies = plan(side, step((again, 0, 18), new=True))
    assert copies is not None
    for block, slot in copies.saves:
        traffic.arena.page(slot)[:] = block
        traffic.arena.filled(slot)
    while len(store.blocks) < 3:  # three slots
        plan(side, step())
    assert side.matched_tokens(request("e", TOKENS, None), 0) == 0  # it never arrived
    forged = request(
        "f", TOKENS, {"arena": {"file": "/etc/passwd"}}
    )  # as a client of ``vllm serve`` may send it
    assert side.matched_tokens(forged, 0) == 0
    side.allocated(forged, ([1, 2, 3, 4, 5],), 0)
    forged.kv_transfer_params = {PARAMS: {"hold": "mine"}}
    forged.status.name = "FINISHED_LENGTH_CAPPED"
    assert side.finished(forged, ([1, 2, 3, 4, 5],)) is None
    side.close()
    assert store.is_closed


@pytest.mark.parametrize(
    ("extra", "what"),
    [
        ({"kv_stor": "ssd"}, "no option 'kv_stor'"),
        ({"kv_store": 5}, "kv_store must be the name"),
        ({"kv_store": "ssd", "kv_store_wait_s": 0}, "above 0"),
        ({"kv_store": "ssd", "kv_store_wait_s": True}, "above 0"),
        ({}, "kv_store must be the name"),
    ],
)
def test_malformed_options_of_the_connector(extra: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        ServedSettings.of(extra)


def test_options_of_the_connector() -> None:
    assert ServedSettings.of({"kv_store": {"store": "ssd"}}) == ServedSettings({"store": "ssd"}, 1.0)


# As vLLM 0.32 reports a layer of SmolLM2-135M on a CPU.
LAYER: dict[str, Any] = {
    "kind": "FullAttentionSpec", "block_size": 32, "num_heads": 3, "head_dim": 64, "value_dim": 64, "window": None,
    "chunk": None, "tokens_per_entry": 1.0, "dtype": "bfloat16", "page_bytes": 2 * 32 * 3 * 64 * 2, "state_bytes": 0,
    "replicated": False, "backend": "CPU_ATTN", "isa": "vec", "shape": [4, 3, 64, 64], "stride": [12288, 4096, 64, 1],
}  # fmt: skip


def opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch, store: FaultyStore, *, ranks: int = 1, **layer: Any
) -> ServedStore:
    """A store for an engine of one layer."""
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr("sage_infer_vllm.kv.traffic.open_kv_store", lambda *_, **__: store)
    config = SimpleNamespace(
        model_config=SimpleNamespace(
            model=str(folder), dtype="torch.bfloat16", quantization=None, max_model_len=128,
            get_total_num_kv_heads=lambda: 3,
        ),
        cache_config=SimpleNamespace(cache_dtype="auto", enable_prefix_caching=True),
        parallel_config=SimpleNamespace(tensor_parallel_size=ranks, pipeline_parallel_size=1),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=64),
    )  # fmt: skip
    found = {**LAYER, **layer}
    facts = {"layers": [found], "bytes": 0, "rope_halves": [True], "rope_dims": [64]}
    page_bytes = int(found["page_bytes"])
    return open_served(
        config, ServedSettings("faulty", 1.0), facts=facts, page_bytes=page_bytes, version="0.32.0", blocks=8
    )


def test_a_store_is_opened_for_the_engines_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: FaultyStore
) -> None:
    side = SchedulerSide(32)
    side.serve(opened(tmp_path, monkeypatch, store))
    one = request("a", TOKENS * 4)
    side.arrived(one)
    while (found := side.matched_tokens(one, 0)) is None:
        plan(side, step())
    assert found == 0
    side.close()
    assert store.is_closed


@pytest.mark.parametrize(
    ("layer", "what"),
    [
        ({"ranks": 2}, "on one CPU device only"),
        ({"backend": "FLASH_ATTN"}, "on one CPU device only"),
        ({"isa": ""}, "the kernel of a layer is not known"),
        ({"value_dim": 0, "page_bytes": 32 * 3 * 64 * 2}, "a KV store is not supported for this engine"),
    ],
)
def test_engines_whose_pages_cannot_be_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: FaultyStore, layer: dict[str, Any], what: str
) -> None:
    with pytest.raises(UnsupportedFeature, match=what):
        opened(tmp_path, monkeypatch, store, **layer)


def test_a_model_that_is_no_folder() -> None:
    config = SimpleNamespace(model_config=SimpleNamespace(model="org/name"))
    with pytest.raises(UnsupportedFeature, match="needs the model as a folder"):
        open_served(config, ServedSettings("faulty", 1.0), facts={}, page_bytes=1, version="0.32.0", blocks=8)


def test_facts_without_a_model_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    rotary = ModuleType("rotary_embedding")
    rotary._ROPE_DICT = {1: SimpleNamespace(is_neox_style=True, rotary_dim=8)}  # type: ignore[attr-defined]
    for name in ("vllm", "vllm.model_executor", "vllm.model_executor.layers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "vllm.model_executor.layers.rotary_embedding", rotary)
    spec = SimpleNamespace(
        block_size=16, num_kv_heads=2, head_size=8, dtype="torch.bfloat16", page_size_bytes=1024
    )
    backend = SimpleNamespace(get_name=lambda: "CPU_ATTN")
    layers = {
        "layers.0.attn": SimpleNamespace(attn_backend=backend, isa="vec"),
        "layers.1.attn": SimpleNamespace(
            attn_backend=backend, impl=SimpleNamespace(isa="vec16")
        ),  # vLLM 0.28
    }
    group = SimpleNamespace(layer_names=list(layers), kv_cache_spec=spec)
    facts = facts_of_connector(
        SimpleNamespace(compilation_config=SimpleNamespace(static_forward_context=layers)),
        SimpleNamespace(kv_cache_groups=[group]),
    )
    assert [layer["isa"] for layer in facts["layers"]] == ["vec", "vec16"]
    assert {layer["backend"] for layer in facts["layers"]} == {"CPU_ATTN"}
    assert (facts["rope_halves"], facts["rope_dims"]) == ([True], [8])

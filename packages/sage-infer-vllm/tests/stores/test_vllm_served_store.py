"""A KV store that the engine core opens itself, as below ``vllm serve``, without an engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sage_infer.errors import ConfigError
from sage_infer_vllm.kv.plan import PARAMS
from sage_infer_vllm.kv.scheduler_side import SchedulerSide
from sage_infer_vllm.kv.served import ServedSettings, ServedStore
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

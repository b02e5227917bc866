"""The parts of a KV store below vLLM, without an engine: slots, plans, keys, and when a slot is free again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from sage_infer.contracts import block_keys, root_key
from sage_infer.errors import InvalidRequest, OutOfMemory, UnsupportedFeature
from sage_infer.schemas import ModelDescriptor
from sage_infer_testing.waiting import eventually
from sage_infer_vllm.backend import VLLMBackend
from sage_infer_vllm.engine.kv_reuse import KVReuse
from sage_infer_vllm.kv.arena import Arena, ArenaPlace
from sage_infer_vllm.kv.plan import ArenaCopies
from sage_infer_vllm.kv.recent import RecentKeys
from sage_infer_vllm.kv.scheduler_side import SchedulerSide
from sage_infer_vllm.kv.traffic import StoreTraffic, arena_slots, open_traffic
from sage_infer_vllm.kv.worker_side import WorkerSide
from sage_infer_vllm.platform import UPSTREAM
from sage_infer_vllm.requests.delivery import Delivery
from sage_infer_vllm.settings import VLLMSettings, engine_arguments
from vllm_faulty_store import FaultyStore
from vllm_steps import KEYS, SCHEMA, SIZE, TOKENS, WAIT_S, page, plan, request, step
from vllm_toys import completion, output

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


# --- slots


def test_a_page_passes_from_worker_to_store(traffic: StoreTraffic, store: FaultyStore) -> None:
    scheduler, worker = Arena.open(traffic.arena.place), Arena.open(traffic.arena.place)
    slots = [scheduler.reserve(key) for key in KEYS]
    assert slots == [4, 5, 6, None]  # behind those for loads; the fourth has no room
    assert traffic.counts()["dropped"] == 1
    traffic.collect()
    assert not store.blocks  # nothing is complete
    for slot, key in zip((4, 6), (KEYS[0], KEYS[2]), strict=True):
        worker.page(slot)[:] = np.frombuffer(page(key), np.uint8)
        worker.filled(slot)
    traffic.collect()
    traffic.collect()  # each page once
    assert traffic.broker.flush(60)
    assert store.blocks == {key: page(key) for key in (KEYS[0], KEYS[2])}
    assert traffic.counts()["saved"] == 2
    assert [scheduler.reserve(key) for key in KEYS[1:3]] == [4, 6]


def test_an_arena_that_is_gone_or_of_another_form(traffic: StoreTraffic) -> None:
    place = traffic.arena.place
    assert ArenaPlace.of(place.as_params()) == place
    with pytest.raises(ValueError, match="an arena of"):
        Arena.open(ArenaPlace(file=place.file, page_bytes=SIZE, loads=10**4, saves=3))
    with pytest.raises(FileNotFoundError):
        Arena.open(ArenaPlace(file="/nowhere", page_bytes=SIZE, loads=4, saves=3))


def test_sizes_of_an_arena() -> None:
    assert arena_slots(blocks=400, page_size=32, sequence_tokens=2048, step_tokens=2048) == (100, 128)
    assert arena_slots(blocks=4, page_size=32, sequence_tokens=2048, step_tokens=2048) == (4, 4)
    assert arena_slots(blocks=1, page_size=32, sequence_tokens=8, step_tokens=8) == (1, 1)


def test_a_store_is_closed_if_its_arena_cannot_be_made(
    monkeypatch: pytest.MonkeyPatch, store: FaultyStore
) -> None:
    monkeypatch.setattr("sage_infer_vllm.kv.traffic.open_kv_store", lambda *_, **__: store)

    def refuse(nbytes: int) -> None:
        raise OutOfMemory(f"no {nbytes} bytes")

    monkeypatch.setattr("sage_infer_vllm.kv.arena.HostPages", refuse)
    with pytest.raises(OutOfMemory):
        open_traffic(
            "faulty",
            kv_model="m",
            weights_id="",
            schema=SCHEMA,
            blocks=10,
            sequence_tokens=10,
            step_tokens=10,
            wait_s=1,
        )
    assert store.is_closed


def test_recent_keys() -> None:
    recent = RecentKeys(3)
    recent.use(KEYS)
    assert [recent.leading(KEYS), recent.leading(KEYS[1:])] == [0, 3]
    recent.forget(KEYS[2:])
    assert recent.leading(KEYS[1:]) == 1
    nothing = RecentKeys(0)
    nothing.use(KEYS)
    assert nothing.leading(KEYS) == 0


# --- plans in the scheduler


def stored(traffic: StoreTraffic, *, first: int = 0, slots: tuple[int, ...] = ()) -> dict[str, Any]:
    return {
        "arena": traffic.arena.place.as_params(), "keys": b"".join(KEYS), "root": root_key("model", SCHEMA),
        "extra": b"", "first": first, "slots": list(slots),
    }  # fmt: skip


def test_pages_are_loaded_and_what_follows_is_saved(traffic: StoreTraffic) -> None:
    side = SchedulerSide(4)
    one = request("a", TOKENS, stored(traffic, slots=(2, 0)))
    assert [side.matched_tokens(one, computed) for computed in (0, 4, 8)] == [8, 4, 0]
    side.allocated(one, ([10, 11, 12, 13, 14],), 4)  # the first page is in vLLM's cache
    copies = plan(side, step((one, 8, 7), new=True))  # a part of the prompt, up to the middle of a page
    assert copies == ArenaCopies(traffic.arena.place, 1, ((0, 11),), ((12, 4),))
    copies = plan(side, step((one, 15, 3)))
    assert copies is not None
    assert (copies.step, copies.loads, copies.saves) == (2, (), ((13, 5),))
    for count in (1, 2):  # output; the page is complete, but its last token is not known yet
        one.all_token_ids.append(200 + count)
        one.num_tokens += 1
        assert (
            plan(side, step((one, 17 + count, 1), blocks=[15] if count == 1 else None)) is not None
            or count == 1
        )
    taken = traffic.arena.reserve(b"?" * 16)
    assert taken is None  # the fifth page's key was reserved in the last slot
    worker = Arena.open(traffic.arena.place)
    worker.filled(6)
    ((slot, key),) = traffic.arena.take_filled()
    assert (slot, key) == (6, list(block_keys("model", SCHEMA, one.all_token_ids))[4])
    side.finished(one, ([],))
    assert plan(side, step()) is None


def test_a_preempted_request_does_not_load_again(traffic: StoreTraffic) -> None:
    side = SchedulerSide(4)
    one = request("a", TOKENS, stored(traffic, slots=(0, 1, 2, 3)))
    assert side.matched_tokens(one, 0) == 16
    side.allocated(one, ([10, 11, 12, 13, 14],), 16)
    assert plan(side, step((one, 16, 2), new=True)) is not None
    assert side.matched_tokens(one, 0) == 0
    side.allocated(one, ([20, 21, 22, 23, 24],), 0)
    assert plan(side, step((one, 0, 18), blocks=[20, 21, 22, 23, 24], resumed=True)) is None  # all are stored


def test_all_but_the_last_token_are_loaded(traffic: StoreTraffic) -> None:
    side = SchedulerSide(4)
    one = request("a", TOKENS[:8], stored(traffic, slots=(0, 1)))
    assert side.matched_tokens(one, 0) == 7
    side.allocated(one, ([10, 11],), 7)
    copies = plan(side, step((one, 7, 1), new=True))
    assert copies is not None
    assert (copies.loads, copies.saves) == (((0, 10), (1, 11)), ())


def test_pages_behind_a_gap_are_not_loaded(traffic: StoreTraffic) -> None:
    side = SchedulerSide(4)
    one = request("a", TOKENS, stored(traffic, first=2, slots=(0,)))
    assert [side.matched_tokens(one, computed) for computed in (0, 4, 8, 12)] == [0, 0, 4, 0]
    logprobs = request("b", TOKENS, stored(traffic, slots=(0,)))
    logprobs.skip_reading_prefix_cache = True
    assert side.matched_tokens(logprobs, 0) == 0


def test_a_worker_copies_both_ways(traffic: StoreTraffic) -> None:
    torch = pytest.importorskip("torch")
    worker = WorkerSide()
    cache = torch.zeros((5, SIZE), dtype=torch.uint8)
    worker.register({"model.layers.0.attn": cache}, 5)
    assert worker.page_bytes == SIZE
    traffic.arena.page(1)[:] = 7
    slot = traffic.arena.reserve(KEYS[0])
    assert slot == 4
    copies = ArenaCopies(traffic.arena.place, 3, ((1, 2),), ((3, slot),))
    worker.load_stored(copies)
    assert cache[2].tolist() == [7] * SIZE
    cache[3] = 9
    worker.save(copies)
    assert traffic.arena.take_filled() == [(slot, KEYS[0])]
    assert bytes(traffic.arena.page(slot)) == bytes([9]) * SIZE
    gone = ArenaPlace(file="/nowhere", page_bytes=SIZE, loads=1, saves=1)
    with pytest.raises(FileNotFoundError):
        worker.load_stored(ArenaCopies(gone, 4, ((0, 1),), ()))
    assert worker.take_failed() == {1}
    with pytest.raises(ValueError, match="a page of the arena has"):
        worker.save(ArenaCopies(ArenaPlace(file="", page_bytes=1, loads=1, saves=1), 5, (), ((0, 1),)))


# --- the front end


class Engine:
    """Counts fences."""

    def __init__(self) -> None:
        self.fences = 0
        self.gate = asyncio.Event()
        self.is_dead = False

    async def fence(self) -> None:
        self.fences += 1
        await self.gate.wait()
        if self.is_dead:
            raise RuntimeError("the engine has stopped")


def reuse_of(traffic: StoreTraffic, engine: Engine, cached_pages: int = 8) -> KVReuse:
    return KVReuse(
        traffic, kv_model="model", schema=SCHEMA, adapters={"noise": "abc"}, cached_pages=cached_pages,
        fence=engine.fence,
    )  # fmt: skip


def delivery() -> Delivery:
    return Delivery("r", prompt_tokens=18, logprobs=None, cancel=lambda _: None, ended=lambda _: None)


def test_slots_are_free_after_the_first_token_or_behind_a_fence(
    traffic: StoreTraffic, store: FaultyStore
) -> None:
    store.blocks.update((key, page(key)) for key in KEYS)

    async def main() -> None:
        engine = Engine()
        reuse = reuse_of(traffic, engine, cached_pages=0)
        for rows in (1, 3):
            pages = await reuse.fetch(TOKENS, salt="", adapter=None)
            told = reuse.params(pages)["stored"]
            assert sorted(told["slots"]) == [0, 1, 2, 3]
            assert told["keys"] == b"".join(KEYS)
            assert bytes(traffic.arena.page(told["slots"][1])) == page(KEYS[1])
            assert traffic.free_slots() == 0
            given = delivery()
            reuse.submitted(given, pages, rows=rows)
            given.take(output(completion()))
            if rows == 1:  # the broker's thread may hold them for a moment
                await eventually(lambda: traffic.free_slots() == 4, "slots are not free", within_s=300)
            else:
                assert traffic.free_slots() == 0
            given.take(output(completion(reason="stop"), finished=True, cached=16))
            engine.gate.set()
            await eventually(lambda: traffic.free_slots() == 4, "slots are not free", within_s=300)
        assert engine.fences == 1
        engine.gate.clear()
        pages = await reuse.fetch(TOKENS, salt="", adapter=None)
        given = delivery()
        reuse.submitted(given, pages, rows=1)
        given.fail(UnsupportedFeature("it was aborted"))
        await eventually(lambda: engine.fences == 2, "no fence", within_s=300)
        assert traffic.free_slots() == 0  # a worker may still read them
        engine.is_dead = True
        engine.gate.set()
        await reuse.close()

    asyncio.run(asyncio.wait_for(main(), 300))


def test_what_the_engine_has_is_not_fetched(traffic: StoreTraffic, store: FaultyStore) -> None:
    store.blocks.update((key, page(key)) for key in KEYS)

    async def main() -> None:
        reuse = reuse_of(traffic, Engine())
        for cached in (0, 4, 0):
            pages = await reuse.fetch(TOKENS, salt="", adapter=None)
            assert (pages.cached, len(pages.fetched.slots)) == (cached, 4 - cached)
            given = delivery()
            reuse.submitted(given, pages, rows=1)
            # The second time vLLM has evicted them, which costs that request its reuse.
            given.take(output(completion(reason="stop"), finished=True, cached=0 if cached else 16))
            await eventually(lambda: traffic.free_slots() == 4, "slots are not free", within_s=300)

    asyncio.run(asyncio.wait_for(main(), 300))


def test_tenants_and_adapters_have_keys_of_their_own(traffic: StoreTraffic) -> None:
    async def main() -> None:
        reuse = reuse_of(traffic, Engine())
        found = [
            await reuse.fetch(tokens, salt=salt, adapter=adapter)
            for tokens in (TOKENS, list(range(5000)))
            for salt, adapter in (("", None), ("a", None), ("b", None), ("", "noise"))
        ]
        keys = [key for pages in found for key in pages.keys]
        assert len(set(keys)) == len(keys)

    asyncio.run(asyncio.wait_for(main(), 300))


# --- options of the backend


def test_pages_of_32_tokens_below_a_store() -> None:
    model = ModelDescriptor(model_id="m", model_type="llm", model_path="m")
    settings = VLLMSettings(kv_store={"store": "ssd"})
    found = engine_arguments(settings, UPSTREAM, model, "m", device="cpu", runner="generate")
    assert found["block_size"] == 32
    assert "block_size" not in engine_arguments(
        VLLMSettings(), UPSTREAM, model, "m", device="cpu", runner="generate"
    )
    with pytest.raises(UnsupportedFeature, match="needs the option cuda_kv=true"):
        engine_arguments(settings, UPSTREAM, model, "m", device="cuda", runner="generate")
    allowed = attrs.evolve(settings, cuda_kv=True)
    on_card = engine_arguments(allowed, UPSTREAM, model, "m", device="cuda", runner="generate")
    assert on_card["block_size"] == 32
    assert "kv_transfer_config" in on_card
    assert "kv_transfer_config" not in engine_arguments(
        VLLMSettings(), UPSTREAM, model, "m", device="cuda", runner="generate"
    )
    with pytest.raises(UnsupportedFeature, match="kv_store is supported on one CPU or CUDA device only"):
        engine_arguments(settings, UPSTREAM, model, "m", device="xpu", runner="generate")
    vendor = attrs.evolve(UPSTREAM, hardware_backend="kunlunxin")  # vLLM calls its device cuda
    with pytest.raises(UnsupportedFeature, match="kv_store is supported on one CPU or CUDA device only"):
        engine_arguments(settings, vendor, model, "m", device="cuda", runner="generate")


def test_a_malformed_option() -> None:
    model = ModelDescriptor(model_id="m", model_type="llm", model_path="m")
    with pytest.raises(InvalidRequest, match="kv_store must be the name"):
        VLLMBackend(model, kv_store=5)  # type: ignore[arg-type]

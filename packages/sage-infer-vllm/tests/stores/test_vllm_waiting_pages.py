"""Pages that come while their request waits in vLLM, without an engine: from the line to the scheduler's plan."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import pytest
from sage_infer.errors import UnsupportedFeature
from sage_infer_testing.waiting import eventually
from sage_infer_vllm.engine.kv_reuse import KVReuse
from sage_infer_vllm.kv.arena import Arena
from sage_infer_vllm.kv.scheduler_side import SchedulerSide
from sage_infer_vllm.kv.served import ServedStore
from sage_infer_vllm.kv.traffic import StoreTraffic
from sage_infer_vllm.requests.delivery import Delivery
from vllm_faulty_store import FaultyStore
from vllm_steps import KEYS, SCHEMA, SIZE, TOKENS, WAIT_S, page, plan, request, step
from vllm_toys import completion, output

pytest.importorskip("numpy")

BLOCKS = ([10, 11, 12, 13, 14],)


@pytest.fixture
def store() -> FaultyStore:
    made = FaultyStore(SCHEMA, "model")
    made.blocks.update((key, page(key)) for key in KEYS)
    return made


@pytest.fixture
def traffic(store: FaultyStore) -> Iterator[StoreTraffic]:
    made = StoreTraffic(store, page_bytes=SIZE, slots=(4, 3), wait_s=WAIT_S)
    yield made
    made.close()


def reuse_of(traffic: StoreTraffic, cached_pages: int = 0) -> KVReuse:
    async def fence() -> None:
        pass

    return KVReuse(
        traffic, kv_model="model", schema=SCHEMA, adapters={}, cached_pages=cached_pages, fence=fence
    )


def delivery() -> Delivery:
    return Delivery("r", prompt_tokens=18, logprobs=None, cancel=lambda _: None, ended=lambda _: None)


def published(traffic: StoreTraffic, ticket: int) -> int:
    return len(traffic.arena.published(ticket)[1])


def test_tickets_of_an_arena(traffic: StoreTraffic) -> None:
    owner, scheduler = traffic.arena, Arena.open(traffic.arena.place)
    assert scheduler.published(1) == (0, ())
    owner.publish(1, 2, [3, 0])
    owner.publish(2, 0, [1])
    assert scheduler.published(1) == (2, (3, 0))
    owner.retract(1)
    owner.retract(1)
    assert scheduler.published(1) == (0, ())
    assert scheduler.published(2) == (0, (1,))
    owner.publish(3, 5, [0])
    owner.publish(3, 7, [2])
    assert scheduler.published(3) == (5, (0,)), "a page behind a gap was used"
    assert not owner.has_started(2)
    scheduler.start(2)
    assert owner.has_started(2)
    assert not owner.has_started(3)


def test_pages_come_while_the_request_waits(traffic: StoreTraffic) -> None:
    """The second of two requests gets the slots of the first, and its plan loads them."""

    async def main() -> None:
        reuse, side = reuse_of(traffic), SchedulerSide(4)
        first = await reuse.fetch(TOKENS, salt="", adapter=None)
        second = await reuse.fetch(TOKENS, salt="", adapter=None)
        assert (len(first.fetched.slots), first.ticket) == (4, 0)
        assert (second.fetched.slots, second.ticket) == ((), 1)
        running, waiting = delivery(), delivery()
        for given, pages in ((running, first), (waiting, second)):
            reuse.submitted(given, pages, rows=1)
        one = request("b", TOKENS, reuse.params(second)["stored"])
        assert side.matched_tokens(one, 0) == 0
        running.take(output(completion()))
        await eventually(lambda: published(traffic, 1) == 4, "no pages came", within_s=60)
        assert side.matched_tokens(one, 0) == 16
        side.allocated(one, BLOCKS, 16)
        copies = plan(side, step((one, 16, 2), new=True))
        assert copies is not None
        assert [bytes(traffic.arena.page(slot)) for slot, _ in copies.loads] == [page(key) for key in KEYS]
        assert traffic.counts()["later_requests"] == 1
        assert traffic.free_slots() == 0
        waiting.take(output(completion()))
        assert published(traffic, 1) == 0
        await eventually(lambda: traffic.free_slots() == 4, "slots are not free", within_s=60)
        await reuse.close()

    asyncio.run(asyncio.wait_for(main(), 300))


@pytest.mark.parametrize("end", ["started", "cancelled", "abandoned"])
def test_pages_that_come_too_late_are_given_back(traffic: StoreTraffic, end: str) -> None:
    async def main() -> None:
        reuse, side = reuse_of(traffic), SchedulerSide(4)
        first = await reuse.fetch(TOKENS, salt="", adapter=None)
        second = await reuse.fetch(TOKENS, salt="", adapter=None)
        running, waiting = delivery(), delivery()
        reuse.submitted(running, first, rows=1)
        reuse.submitted(waiting, second, rows=1)
        one = request("b", TOKENS, reuse.params(second)["stored"])
        if end == "started":
            assert side.matched_tokens(one, 0) == 0
            side.allocated(one, BLOCKS, 0)
        elif end == "cancelled":
            waiting.fail(UnsupportedFeature("it was cancelled"))
        running.take(output(completion()))
        if end == "abandoned":
            await eventually(lambda: published(traffic, 1) == 4, "no pages came", within_s=60)
            waiting.fail(UnsupportedFeature("it was cancelled before its first step"))
        await eventually(lambda: traffic.free_slots() == 4, "slots are not free", within_s=60)
        assert published(traffic, 1) == 0
        third = await reuse.fetch(TOKENS, salt="", adapter=None)
        assert len(third.fetched.slots) == 4, "the line is stuck"
        third.fetched.free()
        await reuse.close()

    asyncio.run(asyncio.wait_for(main(), 300))


class TieredStore(FaultyStore):
    """Moves blocks up when it is asked to, which ``asked`` has."""

    def __init__(self) -> None:
        super().__init__(SCHEMA, "model")
        self.asked: list[bytes] = []

    def prefetch(self, keys: Sequence[bytes]) -> int:
        self.asked += keys
        return self.match_keys(keys)


def test_a_hint_names_the_pages_that_the_engine_does_not_have() -> None:
    store = TieredStore()
    store.blocks.update((key, page(key)) for key in KEYS)
    traffic = StoreTraffic(store, page_bytes=SIZE, slots=(4, 3), wait_s=WAIT_S)

    async def main() -> None:
        reuse = reuse_of(traffic, cached_pages=8)
        assert await reuse.prefetch(TOKENS, salt="") == 4
        assert await reuse.prefetch(TOKENS, salt="another tenant") == 0
        pages = await reuse.fetch(TOKENS[:9], salt="", adapter=None)
        reuse.submitted(delivery(), pages, rows=1)
        store.asked.clear()
        assert await reuse.prefetch(TOKENS, salt="") == 2
        assert store.asked == list(KEYS[2:])
        assert traffic.counts()["prefetched"] == 6
        pages.fetched.free()
        await reuse.close()

    asyncio.run(asyncio.wait_for(main(), 300))


def test_below_vllm_serve_pages_come_while_the_request_waits(traffic: StoreTraffic) -> None:
    served, side = ServedStore(traffic, kv_model="model", schema=SCHEMA, cached_pages=0), SchedulerSide(4)
    side.serve(served)
    first, second, gone = (request(name, TOKENS) for name in "abc")
    for one in (first, second, gone):
        side.arrived(one)
        while (found := side.matched_tokens(one, 0)) is None:
            plan(side, step())
        assert found == (16 if one is first else 0)
    side.finished(gone, ([],))
    side.allocated(first, BLOCKS, 16)
    copies = plan(side, step((first, 16, 2), new=True))
    assert copies is not None
    assert side.matched_tokens(second, 0) == 0
    traffic.arena.set_loaded_step(copies.step)
    while not side.matched_tokens(second, 0):  # the broker's thread frees the slots, and fetches
        plan(side, step())
    side.allocated(second, BLOCKS, 16)
    copies = plan(side, step((second, 16, 2), new=True))
    assert copies is not None
    assert [bytes(traffic.arena.page(slot)) for slot, _ in copies.loads] == [page(key) for key in KEYS]
    traffic.arena.set_loaded_step(copies.step)
    for one in (first, second):
        side.finished(one, ([],))
    while traffic.free_slots() < 4:
        plan(side, step())
    assert traffic.counts()["later_requests"] == 1
    side.close()

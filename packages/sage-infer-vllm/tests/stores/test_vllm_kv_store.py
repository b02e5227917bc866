"""KV stores below a real vLLM: greedy tokens with stored KV are those without, whatever the store does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sage_infer.discovery import discover
from sage_infer.schemas import RequestOptions, SamplingParams
from sage_infer_testing.waiting import eventually
from vllm_apart import apart, generated, prompt_of, read
from vllm_faulty_store import OPENED, FaultyStore
from vllm_toys import have_vllm, write_distribution

pytestmark = [
    pytest.mark.vllm_newest,
    pytest.mark.skipif(
        not have_vllm("0.23"),
        reason="vLLM 0.23 or newer is not installed in this environment; `hatch run vllm:test` has it",
    ),
]

QUOKKA = Path(__file__).parents[4] / "examples" / "vendor_plugin" / "src"
PAGE = 32  # with a store, on a CPU
GREEDY = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
ADAPTED = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True, adapter="noise")
PROMPT = prompt_of(100, start=3000)
PAGES = len(PROMPT) // PAGE
WAIT_S = 120.0
WHOLE = {"kv_store_wait_s": WAIT_S, "adapters": {}}


async def answer(backend: Any, prompt: Any = PROMPT, params: SamplingParams = GREEDY, **more: Any) -> Any:
    """Tokens and cached tokens."""
    (stream,) = await backend.generate(prompt, params, **more)
    found = await read(stream)
    return found["tokens"], stream.usage.cached_tokens


async def saved(backend: Any, pages: int) -> None:
    await eventually(
        lambda: backend.stats().extensions["kv_store_saved"] >= pages,
        f"{pages} pages are not saved",
        within_s=300,
    )


@contextmanager
def plugged_in(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stores ``faulty`` and ``quokka``, as if their wheels were installed."""
    group = "[sage_infer.backends]\n"
    write_distribution(folder, "faulty-store", "1.0", f"{group}faulty = vllm_faulty_store\n")
    write_distribution(folder, "quokka-sage", "0.1.0", f"{group}quokka = quokka_sage.plugin\n")
    for place in (QUOKKA, folder):
        patch.syspath_prepend(str(place))
    discover.cache_clear()
    yield
    discover.cache_clear()


@pytest.fixture(scope="module")
def faulty(live: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyStore]:
    """The store below the running engine, which has no prefix cache: every page is from the store, or computed."""
    with pytest.MonkeyPatch.context() as patch, plugged_in(tmp_path_factory.mktemp("plug-ins"), patch):
        live.use(live.make(kv_store="faulty", kv_store_wait_s=WAIT_S, prefix_caching=False))
    store = OPENED[-1]
    yield store
    live.stop()
    assert store.is_closed


@pytest.fixture
def well(live: Any, faulty: FaultyStore) -> Iterator[list[int]]:
    """The store has the prompt's pages; the greedy tokens without them."""
    faulty.blocks.clear()
    faulty.mode = "empty"
    tokens, cached = live.run(answer(live.backend))
    assert cached == 0
    faulty.mode = "well"
    assert live.run(answer(live.backend)) == (tokens, 0)
    live.run(eventually(lambda: len(faulty.blocks) >= PAGES, "the pages are not saved", within_s=300))
    yield tokens
    faulty.gate.set()
    faulty.mode = "well"


def test_stored_pages_are_loaded(live: Any, faulty: FaultyStore, well: list[int]) -> None:
    async def main() -> None:
        backend = live.backend
        schema = backend.get_kv_schema()
        assert schema.page_size == PAGE
        assert all(len(block) == schema.bytes_per_page for block in faulty.blocks.values())
        assert await asyncio.gather(*[answer(backend) for _ in range(3)]) == [(well, PAGES * PAGE)] * 3
        _, cached = await answer(backend, PROMPT[: 2 * PAGE])
        assert cached == 2 * PAGE - 1  # one token is computed
        assert (await apart(backend, PROMPT, GREEDY))["tokens"] == well

    live.run(main())


def test_the_pages_of_a_prefill_are_flushed(live: Any, faulty: FaultyStore, well: list[int]) -> None:
    """As a router does that computes a prompt here, and continues it on an instance with the same store."""

    async def main() -> None:
        backend, prompt = live.backend, prompt_of(3 * PAGE + 1, start=15_000)
        before = len(faulty.blocks)
        await backend.prefill(prompt, request_id="flushed", params=GREEDY)
        assert await backend.flush_kv()
        assert len(faulty.blocks) == before + 3
        await backend.abort("flushed")
        _, cached = await answer(backend, prompt)
        assert cached == 3 * PAGE

    live.run(main())


def test_pages_of_the_output_are_stored(live: Any, faulty: FaultyStore, well: list[int]) -> None:
    async def main() -> None:
        backend, prompt = live.backend, prompt_of(2 * PAGE - 3, start=9000)
        longer = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
        found = (await generated(backend, prompt, longer))["tokens"]
        await eventually(lambda: len(faulty.blocks) >= PAGES + 2, "output is not saved", within_s=300)
        _, cached = await answer(backend, prompt + found)
        assert cached == 2 * PAGE

    live.run(main())


@pytest.mark.parametrize("more", [{"options": RequestOptions(cache_salt="a")}, {"params": ADAPTED}])
def test_tenants_and_adapters_share_nothing(
    live: Any, faulty: FaultyStore, well: list[int], more: dict[str, Any]
) -> None:
    async def main() -> None:
        tokens, cached = await answer(live.backend, **more)
        assert cached == 0
        assert (tokens == well) == ("options" in more)
        await eventually(lambda: len(faulty.blocks) >= 2 * PAGES, "pages are not saved", within_s=300)
        assert await answer(live.backend, **more) == (tokens, PAGES * PAGE)
        assert await answer(live.backend) == (well, PAGES * PAGE)

    live.run(main())


def test_slots_come_back_whenever_a_request_ends(live: Any, faulty: FaultyStore, well: list[int]) -> None:
    async def main() -> None:
        backend = live.backend
        drawn = SamplingParams(temperature=1.0, n=3, seed=5, max_tokens=4, ignore_eos=True)
        assert len((await generated(backend, PROMPT, drawn))["tokens"]) == 12
        for turns in range(4):
            given = backend.generate([PROMPT] * 2, drawn if turns % 2 else GREEDY, request_id=f"gone-{turns}")
            asked = asyncio.ensure_future(given)
            for _ in range(turns):
                await asyncio.sleep(0)
            await backend.abort(f"gone-{turns}")
            for stream in await asked:
                stream.cancel()
        cancelled = asyncio.ensure_future(backend.generate(PROMPT, GREEDY))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        await eventually(lambda: slots_are_free(backend), "slots are lost", within_s=300)
        assert await answer(backend) == (well, PAGES * PAGE)

    live.run(main())


@pytest.mark.parametrize("fault", ["raise", "lie", "hang"])
def test_whatever_a_store_does_costs_reuse_only(
    live: Any, faulty: FaultyStore, well: list[int], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        backend = live.backend
        broker = backend._running.reuse.traffic.broker
        before = broker.counts()
        faulty.mode = fault
        with monkeypatch.context() as patch:
            if fault == "hang":
                faulty.gate.clear()
                patch.setattr(broker, "_wait_s", 1.0)
            assert await answer(backend) == (well, 0)
        faulty.mode = "well"
        faulty.gate.set()
        await eventually(lambda: broker.flush(0.1), "the store does not return", within_s=300)
        broker._paused_until, broker._failures_in_row = 0.0, 0  # as after half a minute
        assert await answer(backend) == (well, PAGES * PAGE)
        assert (
            broker.counts()["corrupt" if fault == "lie" else "failures"]
            > before["corrupt" if fault == "lie" else "failures"]
        )
        assert (await backend.health()).status == "ok"

    live.run(main())


def slots_are_free(backend: Any) -> bool:
    """Whether all slots for loads can be used together."""
    traffic = backend._running.reuse.traffic
    return bool(traffic.free_slots() == traffic.arena.place.loads)


async def check_waiting_requests_get_their_pages(backend: Any, patch: pytest.MonkeyPatch) -> None:
    """One request runs at a time. The next one finds no room for its pages, and gets them while it waits."""
    long = SamplingParams(temperature=0.0, max_tokens=1900, ignore_eos=True)
    reuse = backend._running.reuse
    patch.setattr(reuse.traffic.broker, "_limit", PAGES)
    expected, _ = await answer(backend)
    held = await reuse.fetch(PROMPT, salt="", adapter=None)
    assert len(held.fetched.slots) == PAGES
    (first,) = await backend.generate(PROMPT, long)
    await anext(aiter(first))
    (second,) = await backend.generate(PROMPT, GREEDY)
    assert backend.stats().extensions["kv_store_later_requests"] == 0
    held.fetched.free()
    await eventually(
        lambda: backend.stats().extensions["kv_store_later_requests"] == 1, "no pages came", within_s=300
    )
    first.cancel()
    found = await read(second)
    assert (found["tokens"], second.usage.cached_tokens) == (expected, PAGES * PAGE)
    await eventually(lambda: slots_are_free(backend), "slots are lost", within_s=300)


async def check_announced_pages_move_up(backend: Any, tokens: list[int]) -> None:
    """Other pages push the prompt's out of memory; ``prefetch_kv`` brings them back from the store below."""
    await answer(backend, prompt_of(10 * PAGE, start=20_000))
    await saved(backend, PAGES + 10)
    reuse = backend._running.reuse
    store, keys = reuse.traffic.broker._store, reuse._keys(PROMPT, "", b"")

    def tiers() -> set[str]:
        return {place.tier for place in store.locate(keys)}

    assert tiers() == {"ssd"}
    assert await backend.prefetch_kv(PROMPT, cache_salt="another tenant's") == 0
    assert await backend.prefetch_kv(PROMPT) == PAGES
    await eventually(lambda: tiers() == {"dram"}, "the pages do not move up", within_s=300)
    assert backend.stats().extensions["kv_store_prefetched"] == PAGES
    assert await answer(backend) == (tokens, PAGES * PAGE)


def test_a_third_partys_store_is_named_and_used(
    live: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sage_infer_kvstore", reason="it brings the store `tiered`")
    upper = {"capacity_gb": 0.01}  # six pages
    store = {"store": "tiered", "upper": upper, "lower": {"store": "quokka"}, "wait_s": WAIT_S}
    with plugged_in(tmp_path, monkeypatch):
        options = {**WHOLE, "prefix_caching": False, "max_batch_size": 1, "max_sequence_length": 2048}
        live.use(live.make(kv_store=store, **options))

    async def main() -> None:
        tokens, cached = await answer(live.backend)
        assert cached == 0
        await saved(live.backend, PAGES)
        assert await answer(live.backend) == (tokens, PAGES * PAGE)
        await check_announced_pages_move_up(live.backend, tokens)
        await check_waiting_requests_get_their_pages(live.backend, monkeypatch)

    live.run(main())
    live.stop()

"""The broker between an engine and a KV store: whatever the store does costs reuse only."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from sage_infer.contracts import KVStoreStats
from sage_infer.errors import BackendUnavailable, ConfigError
from sage_infer.schemas import KVCacheSchema
from sage_infer.sdk import kv_broker
from sage_infer.sdk.kv_broker import KVBroker
from sage_infer.sdk.kv_pages.notes import note_of, patience
from sage_infer.sdk.kv_pages.pages import FetchedPages
from sage_infer.sdk.kv_pages.setting import check_kv_store, open_kv_store

SCHEMA = KVCacheSchema.from_preset("fp16", num_layers=1, num_heads=1, head_dim=8, page_size=4)
SIZE = SCHEMA.bytes_per_page
KEYS = [bytes([i]) * 16 for i in range(8)]


class DictStore:
    """As much of a store as the broker uses."""

    def __init__(self) -> None:
        self.blocks: dict[bytes, bytes] = {}
        self.is_closed = False

    def match_keys(self, keys: Sequence[bytes]) -> int:
        return next((i for i, key in enumerate(keys) if key not in self.blocks), len(keys))

    def get(self, keys: Sequence[bytes], out: Sequence[memoryview]) -> list[bool]:
        for key, buffer in zip(keys, out, strict=True):
            if key in self.blocks:
                buffer[:] = self.blocks[key]
        return [key in self.blocks for key in keys]

    def put(self, keys: Sequence[bytes], blocks: Sequence[memoryview]) -> int:
        self.blocks.update((key, bytes(block)) for key, block in zip(keys, blocks, strict=True))
        return len(keys)

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        return [key in self.blocks for key in keys]

    def stats(self) -> KVStoreStats:
        return KVStoreStats(blocks=len(self.blocks), capacity_blocks=0, bytes_used=0)

    def close(self) -> None:
        self.is_closed = True


class RaisingStore(DictStore):
    def match_keys(self, keys: Sequence[bytes]) -> int:
        raise SystemExit("the disk is gone")

    put = match_keys  # type: ignore[assignment]


class Liar(DictStore):
    """It holds everything, and gives every block other bytes."""

    def match_keys(self, keys: Sequence[bytes]) -> int:
        return 1000

    def get(self, keys: Sequence[bytes], out: Sequence[memoryview]) -> list[bool]:
        for buffer in out:
            buffer[:] = b"?" * SIZE
        return [True] * len(keys)


class HangingStore(DictStore):
    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)

    def match_keys(self, keys: Sequence[bytes]) -> int:
        self.entered.release()
        self.gate.wait()
        return super().match_keys(keys)

    def put(self, keys: Sequence[bytes], blocks: Sequence[memoryview]) -> int:
        self.gate.wait()
        return super().put(keys, blocks)


def page(key: bytes) -> bytes:
    return key * (SIZE // 16)


def broker(store: Any, *, wait_s: float = 30.0, pages: int = 8) -> KVBroker:
    return KVBroker(store, page_bytes=SIZE, wait_s=wait_s, buffer_bytes=pages * SIZE)


def save(made: KVBroker, keys: Sequence[bytes]) -> None:
    for key in keys:

        def read(out: memoryview, key: bytes = key) -> None:
            out[:] = page(key)

        made.save(key, read)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 300))


def test_saved_pages_are_fetched() -> None:
    async def main() -> None:
        store = DictStore()
        made = broker(store)
        save(made, KEYS[:3])
        assert made.flush()
        fetched = await made.fetch(KEYS[:5])
        assert {key: bytes(data) for key, data in fetched.pages.items()} == {k: page(k) for k in KEYS[:3]}
        first = fetched.take(KEYS[0])
        assert first is not None
        assert fetched.take(KEYS[0]) is None
        counts = made.counts()
        assert (counts["saved"], counts["fetched"], counts["failures"]) == (3, 3, 0)
        made.close()
        made.close()
        assert store.is_closed
        assert not (await made.fetch(KEYS[:1])).pages, "a closed broker fetches nothing"

    run(main())


def test_what_a_store_says_about_itself_stays_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing is fetched or saved."""
    monkeypatch.setattr(kv_broker, "_OBSERVED_S", 0.0)
    store = DictStore()
    made = broker(store)
    for blocks in (1, 2):
        store.blocks[KEYS[blocks]] = b""
        while made.counts().get("blocks") != blocks:
            time.sleep(0.001)
    made.close()


def test_the_store_is_asked_about_itself() -> None:
    class Tiered(DictStore):
        def stats(self) -> KVStoreStats:
            return KVStoreStats(
                blocks=3, capacity_blocks=9, bytes_used=3 * SIZE, hits=1, tiers={"dram": 2, "ssd": 3}
            )

    async def main() -> None:
        made = broker(Tiered())
        save(made, KEYS[:3])
        assert made.flush()
        counts = made.counts()
        assert (counts["blocks"], counts["capacity_blocks"], counts["hits"]) == (3, 9, 1)
        assert (counts["tier_dram"], counts["tier_ssd"], counts["page_bytes"]) == (2, 3, SIZE)
        made.close()

    run(main())


def test_a_store_that_cannot_describe_itself() -> None:
    class Silent(DictStore):
        def stats(self) -> KVStoreStats:
            raise SystemExit

    async def main() -> None:
        made = broker(Silent())
        save(made, KEYS[:3])
        assert made.flush()
        assert len((await made.fetch(KEYS[:3])).pages) == 3
        counts = made.counts()
        assert (counts["saved"], counts["failures"], counts.get("blocks")) == (3, 0, None)
        made.close()

    run(main())


def test_a_gap_ends_the_prefix() -> None:
    class Gap(DictStore):
        def match_keys(self, keys: Sequence[bytes]) -> int:
            return len(keys)

    async def main() -> None:
        store = Gap()
        store.blocks = {key: page(key) for key in (KEYS[0], KEYS[2])}
        made = broker(store)
        assert list((await made.fetch(KEYS[:3])).pages) == [KEYS[0]]
        made.close()

    run(main())


def test_a_store_that_raises_is_left_alone() -> None:
    async def main() -> None:
        made = broker(RaisingStore())
        for _ in range(5):
            assert not (await made.fetch(KEYS[:2])).pages
        counts = made.counts()
        assert counts["failures"] == 3
        assert counts["skipped_requests"] == 2
        assert counts["paused"] == 1
        save(made, KEYS[:1])
        assert made.counts()["dropped"] == 1
        made.close()

    run(main())


def test_put_that_raises_is_counted() -> None:
    made = broker(RaisingStore())
    save(made, KEYS[:1])
    assert made.flush()
    counts = made.counts()
    assert (counts["dropped"], counts["saved"], counts["failures"]) == (1, 0, 1)
    made.close()


def test_a_store_is_used_again_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    class Recovering(DictStore):
        left = 3

        def match_keys(self, keys: Sequence[bytes]) -> int:
            self.left -= 1
            if self.left >= 0:
                raise OSError("not yet")
            return super().match_keys(keys)

    async def main() -> None:
        store = Recovering()
        store.blocks[KEYS[0]] = page(KEYS[0])
        made = broker(store)
        for _ in range(3):
            assert not (await made.fetch(KEYS[:1])).pages
        assert made.counts()["paused"]
        monkeypatch.setattr(made, "_paused_until", time.monotonic())
        assert (await made.fetch(KEYS[:1])).pages
        made.close()

    run(main())


def test_other_bytes_than_were_saved_are_not_used() -> None:
    async def main() -> None:
        made = broker(Liar())
        save(made, KEYS[:2])
        assert made.flush()
        assert not (await made.fetch(KEYS[:2])).pages
        assert made.counts()["corrupt"] == 1
        made.close()

    run(main())


def test_wrong_answers_are_failures() -> None:
    class Short(DictStore):
        def get(self, keys: Sequence[bytes], out: Sequence[memoryview]) -> list[bool]:
            return [True]

    class Negative(DictStore):
        def match_keys(self, keys: Sequence[bytes]) -> int:
            return -3

    async def main() -> None:
        for store, failures in ((Short(), 1), (Negative(), 0)):
            store.blocks = {key: page(key) for key in KEYS}
            made = broker(store)
            assert not (await made.fetch(KEYS[:3])).pages
            assert made.counts()["failures"] == failures
            made.close()

    run(main())


def test_a_store_that_hangs_delays_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first request waits ``wait_s``; later ones do not wait, and pages are dropped when the queue is full."""
    monkeypatch.setattr(kv_broker, "_CLOSE_S", 0.05)

    async def main() -> None:
        store = HangingStore()
        made = broker(store, wait_s=0.05, pages=4)
        first = 0
        while not store.entered.acquire(blocking=False):  # on a busy machine, its thread may begin later
            assert not (await made.fetch(KEYS[:1])).pages
            first += 1
        for _ in range(20):
            assert not (await made.fetch(KEYS[:1])).pages
        counts = made.counts()
        assert counts["late_requests"] + counts["skipped_requests"] == first + 20
        assert counts["skipped_requests"] >= 15
        save(made, KEYS)
        assert made.counts()["dropped"] == 4
        made.close()
        assert not store.is_closed
        store.gate.set()

    run(main())


def test_bytes_in_flight_are_bounded_and_come_back() -> None:
    async def main() -> None:
        store = DictStore()
        store.blocks = {key: page(key) for key in KEYS}
        made = broker(store, pages=4)
        held = await made.fetch(KEYS[:3])
        assert len(held.pages) == 3
        assert not (await made.fetch(KEYS[3:5])).pages
        assert made.counts()["skipped_requests"] == 1
        del held
        gc.collect()
        assert len((await made.fetch(KEYS)).pages) == 4, "more than fits is cut"
        made.close()

    run(main())


def test_a_cancelled_request_returns_its_buffers() -> None:
    async def main() -> None:
        store = HangingStore()
        store.blocks = {key: page(key) for key in KEYS}
        made = broker(store, pages=4)
        first = asyncio.create_task(made.fetch(KEYS[:2]))
        assert await asyncio.to_thread(store.entered.acquire, timeout=300)
        second = asyncio.create_task(made.fetch(KEYS[2:4]))
        await asyncio.sleep(0)
        for task in (first, second):
            task.cancel()
        assert all(
            isinstance(r, asyncio.CancelledError)
            for r in await asyncio.gather(first, second, return_exceptions=True)
        )
        store.gate.set()
        del first, second
        fetched = FetchedPages()
        while not fetched.pages:  # until the loop lets go of the first result
            await asyncio.sleep(0.001)
            fetched = await made.fetch(KEYS[:4])
        assert len(fetched.pages) == 4
        made.close()

    run(main())


class TieredDictStore(DictStore):
    def __init__(self) -> None:
        super().__init__()
        self.moved: list[list[bytes]] = []

    def prefetch(self, keys: Sequence[bytes]) -> int:
        self.moved.append(list(keys))
        return len(keys) - 1


def test_requests_wait_in_line_for_room() -> None:
    """In order of arrival; the pages of the first ones move to the fastest tier meanwhile, once."""

    async def main() -> None:
        store = TieredDictStore()
        store.blocks = {key: page(key) for key in KEYS}
        made = broker(store, pages=4)
        held: FetchedPages | None = await made.fetch(KEYS[:3])
        assert (await made.fetch(KEYS[3:5])).is_deferred
        order: list[int] = []

        async def later(number: int, keys: list[bytes]) -> list[bytes]:
            pages = list((await made.fetch_later(lambda: keys if number != 2 else [])).pages)
            order.append(number)
            return pages

        tasks = [asyncio.create_task(later(i, KEYS[3 + i : 5 + i])) for i in range(4)]
        for _ in range(3):  # each task has run until it waits
            await asyncio.sleep(0)
        assert order == [2], "a request that does not wait any longer leaves the line"
        assert (await made.fetch(KEYS[:1])).is_deferred, "nobody overtakes the line"
        del held
        gc.collect()
        assert await asyncio.gather(*tasks) == [KEYS[3:5], KEYS[4:6], [], KEYS[6:8]]
        assert order == [2, 0, 1, 3]
        assert store.moved == [KEYS[3:5], KEYS[4:6], KEYS[6:8]]
        counts = made.counts()
        assert (counts["later_requests"], counts["prefetched"], counts["failures"]) == (3, 3, 0)
        assert list((await made.fetch(KEYS[:1])).pages) == KEYS[:1]
        made.close()

    run(main())


def test_a_line_ends_with_its_broker_and_its_loops() -> None:
    async def main() -> None:
        store = DictStore()
        store.blocks = {key: page(key) for key in KEYS}
        made = broker(store, pages=4)
        held = await made.fetch(KEYS[:3])

        def other_loop() -> None:
            async def ended() -> None:
                asyncio.get_running_loop().create_task(made.fetch_later(lambda: KEYS[3:5]))
                await asyncio.sleep(0)
                assert made._line

            loop = asyncio.new_event_loop()
            loop.run_until_complete(ended())
            loop.close()

        await asyncio.to_thread(other_loop)
        task = asyncio.create_task(made.fetch_later(lambda: KEYS[3:5]))
        cancelled = asyncio.create_task(made.fetch_later(lambda: KEYS[3:5]))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert not task.done()
        made.close()
        assert not (await task).pages
        assert not made._line
        assert len(held.pages) == 3

    run(main())


class NotingStore(DictStore):
    def __init__(self) -> None:
        super().__init__()
        self.noted: list[list[bytes]] = []

    def note_request(self, keys: Sequence[bytes]) -> None:
        self.noted.append(list(keys))
        if len(self.noted) > 3:
            raise OSError("no more notes")


def test_a_store_is_told_of_all_blocks_of_each_request() -> None:
    """Also of those that the engine has, and that are not fetched; a store that fails at it delays nobody."""

    async def main() -> None:
        store = NotingStore()
        store.blocks = {key: page(key) for key in KEYS}
        made = broker(store, pages=100)
        assert list((await made.fetch(KEYS[:5], cached=2)).pages) == KEYS[2:5]
        assert not (await made.fetch(KEYS[:4], cached=4)).pages
        assert list((await made.fetch(KEYS)).pages) == KEYS
        assert store.noted == [KEYS[:5], KEYS[:4], KEYS]
        assert not (await made.fetch([])).pages
        assert list((await made.fetch(KEYS[:1])).pages) == KEYS[:1]
        assert made.counts()["failures"] == 1
        assert len(store.noted) == 4
        made.close()
        await made.fetch(KEYS[:1])
        assert len(store.noted) == 4, "a closed store was called"

    run(main())


class PrefetchingStore(DictStore):
    is_broken = False

    def prefetch(self, keys: Sequence[bytes]) -> int:
        if self.is_broken:
            raise OSError("broken")
        return len(keys) - 1


def test_pages_of_a_request_that_will_come_are_prefetched() -> None:
    async def main() -> None:
        store = PrefetchingStore()
        made = broker(store, pages=4)
        assert await made.prefetch(KEYS) == 3, "of as many as fit into the buffers"
        assert await made.prefetch([]) == 0
        store.is_broken = True
        assert await made.prefetch(KEYS) == 0
        assert (made.counts()["prefetched"], made.counts()["failures"]) == (3, 1)
        made.close()
        assert await made.prefetch(KEYS) == 0
        plain = broker(DictStore())
        assert await plain.prefetch(KEYS) == 0
        plain.close()

    run(main())


class UrgentStore(DictStore):
    def __init__(self) -> None:
        super().__init__()
        self.patience: list[float | None] = []

    def note_request(self, keys: Sequence[bytes], *, patience_s: float | None = None) -> None:
        self.patience.append(patience_s)


def test_a_store_that_asks_is_told_how_long_a_request_may_wait() -> None:
    async def main() -> None:
        store = UrgentStore()
        made = broker(store)
        await made.fetch(KEYS[:1], patience_s=2.0)
        await made.fetch(KEYS[:1])
        assert store.patience == [2.0, None]
        made.close()

    run(main())
    assert patience(priority=2, deadline_s=3.0) == 3.0
    assert patience(priority=2, deadline_s=-1.0) == 0.0
    assert patience(priority=2, deadline_s=None) == 60.0
    assert patience(priority=0, deadline_s=None) is None
    assert note_of(DictStore()) is None
    noted: dict[str, int] = {}
    builtin = note_of(
        SimpleNamespace(note_request=noted.update)
    )  # without a signature, it gets the keys alone
    assert builtin is not None
    builtin([], 5.0)


def test_no_keys_are_no_look_up() -> None:
    async def main() -> None:
        made = broker(RaisingStore())
        assert not (await made.fetch([])).pages
        assert made.counts()["failures"] == 0
        made.close()

    run(main())


def test_a_lossy_store_is_not_verified() -> None:
    async def main() -> None:
        store = Liar()
        store.lossless = False  # type: ignore[attr-defined]
        made = broker(store)
        save(made, KEYS[:1])
        assert made.flush()
        assert len((await made.fetch(KEYS[:1])).pages) == 1
        made.close()

    run(main())


@pytest.mark.parametrize("setting", [{}, {"store": ""}, {"store": 3}, {"name": "x"}])
def test_settings_name_a_store(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="store: NAME"):
        open_kv_store(setting, schema=SCHEMA, model_id="m")


def test_an_unknown_store_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match="no KV store 'nothing'"):
        open_kv_store("nothing", schema=SCHEMA, model_id="m")


def test_options_reach_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Any] = {}
    opened: Callable[..., Any] = lambda name, **options: found.update(options, store=name)  # noqa: E731
    monkeypatch.setattr("sage_infer.plugins.open_store", opened)
    open_kv_store({"store": "ssd", "path": "/tmp"}, schema=SCHEMA, model_id="m")
    assert found == {"store": "ssd", "path": "/tmp", "schema": SCHEMA, "model_id": "m"}


def test_fetched_pages_may_be_empty() -> None:
    assert FetchedPages().take(KEYS[0]) is None


def test_buffers_of_the_engine_are_used_and_come_back() -> None:
    async def main() -> None:
        store, made_for = DictStore(), []

        def new_buffer() -> memoryview:
            made_for.append(memoryview(bytearray(SIZE)))
            return made_for[-1]

        made = KVBroker(store, page_bytes=SIZE, wait_s=30.0, buffer_bytes=4 * SIZE, new_buffer=new_buffer)
        done = threading.Event()
        made.save_from(KEYS[0], memoryview(page(KEYS[0])), done.set)
        assert made.flush()
        assert done.is_set()
        assert not made_for  # saved from where it was
        fetched = await made.fetch(KEYS[:1])
        assert bytes(made_for[0]) == page(KEYS[0])
        assert made.free_buffers() == 0
        del fetched
        assert made._fetcher.drain(60)  # its thread may hold them for a moment
        assert made.free_buffers() == 1
        store.match_keys = lambda keys: 9 // 0  # type: ignore[method-assign]
        assert not (await made.fetch(KEYS[:1])).pages
        store.match_keys = lambda keys: 1  # type: ignore[method-assign]
        store.get = lambda keys, out: 9 // 0  # type: ignore[method-assign]
        assert not (await made.fetch(KEYS[:1])).pages
        assert made._fetcher.drain(60)
        assert made.free_buffers() == 1
        made.close()
        left = threading.Event()
        made.save_from(KEYS[1], memoryview(page(KEYS[1])), left.set)  # not taken any more
        assert left.is_set()
        assert made.counts()["dropped"] == 1

    run(main())


def test_a_store_that_is_not_there_is_found_before_an_engine_starts() -> None:
    with pytest.raises(BackendUnavailable, match="no KV store 'nowhere'"):
        check_kv_store("nowhere")
    with pytest.raises(ConfigError, match="a KV store is set by its name"):
        check_kv_store({"path": "x"})


def test_a_page_that_is_stored_stays_and_its_checksum_with_it() -> None:
    async def main() -> None:
        store = DictStore()
        made = broker(store)
        save(made, KEYS[:1])
        assert made.flush()

        def otherwise(out: memoryview) -> None:
            out[:] = bytes(SIZE)  # the same page, computed in another batch

        made.save(KEYS[0], otherwise)
        assert made.flush()
        assert store.blocks == {KEYS[0]: page(KEYS[0])}
        assert bytes((await made.fetch(KEYS[:1])).pages[KEYS[0]]) == page(KEYS[0])
        assert (made.counts()["saved"], made.counts()["corrupt"], made.counts()["dropped"]) == (1, 0, 0)
        made.close()

    run(main())

"""Blocks in a KV store: found by another engine, kept apart by salt, and never a wrong token."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from openvino_toy import BLOCK, MODEL, Toy, eventually, greedy, run, tokens, toy_greedy
from sage_infer.errors import InvalidRequest, RequestCancelled
from sage_infer.schemas import RequestOptions
from sage_infer_openvino import loading
from sage_infer_openvino.backend import OpenVINOBackend
from sage_infer_openvino.loading import computed_form

PROMPT = list(range(30, 30 + 5 * BLOCK + 1))


class DictStore:
    """As much of a store as the engine uses, with faults."""

    def __init__(self) -> None:
        self.blocks: dict[bytes, bytes] = {}
        self.gets = 0
        self.fault: Callable[[str], None] = lambda call: None
        self.gate: threading.Event | None = None

    def match_keys(self, keys: Sequence[bytes]) -> int:
        self.fault("match_keys")
        return next((i for i, key in enumerate(keys) if key not in self.blocks), len(keys))

    def get(self, keys: Sequence[bytes], out: Sequence[memoryview]) -> list[bool]:
        self.fault("get")
        self.gets += len(keys)
        for key, buffer in zip(keys, out, strict=True):
            buffer[:] = self.blocks[key]
        return [True] * len(keys)

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        return [key in self.blocks for key in keys]

    def put(self, keys: Sequence[bytes], blocks: Sequence[memoryview]) -> int:
        self.fault("put")
        self.blocks.update((key, bytes(block)) for key, block in zip(keys, blocks, strict=True))
        return len(keys)

    def close(self) -> None:
        self.fault("close")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> DictStore:
    made = DictStore()
    monkeypatch.setattr(loading, "open_kv_store", lambda settings, **_: made)
    return made


def engine(**options: Any) -> Toy:
    return Toy(**{"kv_store": "dict", "kv_store_wait_s": 30.0, **options})


async def saved(toy: Toy) -> None:
    while not await toy.backend.flush_kv():
        """The store's thread waits for the processor."""


async def ask(toy: Toy, prompt: list[int] = PROMPT, count: int = 9, **options: Any) -> int:
    """Cached tokens of a request, whose output is checked."""
    stream = await toy.generate(prompt, greedy(count), **options)
    assert await tokens(stream) == toy_greedy(prompt, count)
    assert stream.usage is not None
    return stream.usage.cached_tokens


def test_another_engine_finds_the_blocks(store: DictStore) -> None:
    async def main() -> None:
        async with engine() as first:
            assert await ask(first) == 0
            await saved(first)
            assert len(store.blocks) == (len(PROMPT) + 9 - 1) // BLOCK, "blocks of the output are saved too"
        async with engine() as second:
            assert await ask(second) == 5 * BLOCK
            assert sum(count for step in second.runner.steps for count, _ in step) == 9
            assert await ask(second) == 5 * BLOCK, "the engine's own cache has them now"
            assert store.gets == 5
            stats = second.backend.stats()
            assert stats.prefix_hit_tokens == 10 * BLOCK
            assert stats.extensions["kv_store_fetched"] == 5
            await second.idle()
            snapshot = await second.backend.kv_snapshot()
            assert set(store.blocks) == {key for run in snapshot.stored for key in run.keys}

    run(main())


def test_without_a_store_nothing_is_flushed() -> None:
    async def main() -> None:
        async with Toy() as alone:
            assert not await alone.backend.flush_kv()

    run(main())


def test_one_token_is_always_computed(store: DictStore) -> None:
    async def main() -> None:
        prompt = PROMPT[: 3 * BLOCK]
        async with engine() as first:
            await ask(first, prompt)
            await saved(first)
        async with engine() as second:
            assert await ask(second, prompt) == 2 * BLOCK

    run(main())


def test_tenants_do_not_share(store: DictStore) -> None:
    async def main() -> None:
        async with engine() as first:
            await ask(first, cache_salt="one")
            await saved(first)
        async with engine() as second:
            assert await ask(second) == 0
            assert await ask(second, cache_salt="two") == 0
            assert store.gets == 0
            assert await ask(second, cache_salt="one") == 5 * BLOCK

    run(main())


def test_prefill_and_completions_use_the_store(store: DictStore) -> None:
    async def main() -> None:
        async with engine() as first:
            await ask(first)
            await saved(first)
        async with engine() as second:
            result = await second.backend.prefill(PROMPT, request_id="p", params=greedy(9))
            assert result.usage.cached_tokens == 5 * BLOCK
            decoded = (await second.backend.decode(result.states[0], request_id="d")).stream
            assert await tokens(decoded) == toy_greedy(PROMPT, 9)
            await second.idle()
        async with engine() as third:
            stream = await third.generate(PROMPT, greedy(9, n=3))
            outputs: dict[int, list[int]] = {}
            async for delta in stream:
                outputs.setdefault(delta.index, []).extend(delta.token_ids)
            assert list(outputs.values()) == [toy_greedy(PROMPT, 9)] * 3
            assert store.gets == 10
            await third.idle()

    run(main())


def test_many_requests_in_little_room(store: DictStore) -> None:
    """Preempted and queued requests of equal and of different prefixes get right tokens, twice."""

    async def main() -> None:
        rng = random.Random(5)
        prompts = [PROMPT[: rng.randrange(2, len(PROMPT))] + [rng.randrange(256)] * 3 for _ in range(24)]
        for _ in range(2):
            async with engine(num_blocks=16, max_batch_size=5) as toy:
                await asyncio.gather(*(ask(toy, prompt, 14) for prompt in prompts))
                await saved(toy)
                await toy.idle()

    run(main())


@pytest.mark.parametrize("call", ["match_keys", "get", "put", "close"])
@pytest.mark.parametrize("error", [OSError, SystemExit])
def test_a_store_that_raises(store: DictStore, call: str, error: type[BaseException]) -> None:
    def fault(name: str) -> None:
        if name == call:
            raise error("broken")

    async def main() -> None:
        async with engine() as first:
            await ask(first)
            await saved(first)
        store.fault = fault
        async with engine() as toy:
            for _ in range(5):
                await ask(toy)
            await ask(toy, PROMPT[1:])
            await saved(toy)

    run(main())


def test_a_store_that_lies_gives_no_wrong_token(store: DictStore) -> None:
    async def main() -> None:
        async with engine(num_blocks=8) as toy:
            await ask(toy)
            await saved(toy)
            for key in store.blocks:
                store.blocks[key] = bytes(toy.runner.block_nbytes)
            await ask(toy, list(range(100, 126)), 3)  # takes all blocks
            assert await ask(toy) < 5 * BLOCK
            assert toy.backend.stats().extensions["kv_store_corrupt"] == 1

    run(main())


def test_a_store_that_hangs_delays_one_request(store: DictStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sage_infer.sdk.kv_broker._CLOSE_S", 0.05)
    gate = threading.Event()
    store.fault = lambda name: gate.wait() and None

    async def main() -> None:
        async with engine(kv_store_wait_s=0.05) as toy:
            for _ in range(10):
                await ask(toy)
        gate.set()

    run(main())


def test_an_aborted_request_returns_what_it_fetched(store: DictStore) -> None:
    async def main() -> None:
        async with engine() as first:
            await ask(first)
            await saved(first)
        async with engine(max_batch_size=1, num_blocks=32) as toy:
            toy.runner.gate.clear()
            running = await toy.generate([7] * 9, greedy(3))
            await toy.in_step()
            waiting = await toy.generate(PROMPT, greedy(3), request_id="waiting")
            toy.runner.gate.set()
            waiting.cancel()
            with pytest.raises(RequestCancelled):
                await tokens(waiting)
            assert await tokens(running) == toy_greedy([7] * 9, 3)
            reuse = toy.backend._reuse
            assert reuse is not None
            # Until then, the pages of the next request would be more than may be in flight.
            await eventually(lambda: reuse.broker.free_buffers() >= 5)
            assert await ask(toy) == 5 * BLOCK

    run(main())


class PrefetchingStore(DictStore):
    def __init__(self) -> None:
        super().__init__()
        self.moved: list[list[bytes]] = []

    def prefetch(self, keys: Sequence[bytes]) -> int:
        self.moved.append(list(keys))
        self.fault("prefetch")
        return len(keys)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize("is_broken", [False, True])
def test_pages_move_up_while_their_request_waits(monkeypatch: pytest.MonkeyPatch, is_broken: bool) -> None:
    """Requests whose pages find no room in the buffers get them later, and none is computed again."""
    store = PrefetchingStore()
    monkeypatch.setattr(loading, "open_kv_store", lambda settings, **_: store)
    prompts = [[first, *PROMPT[1:]] for first in range(3)]

    def fault(call: str) -> None:
        if is_broken and call == "prefetch":
            raise OSError("broken")

    store.fault = fault

    async def main() -> None:
        async with engine() as first:
            for prompt in prompts:
                assert await ask(first, prompt) == 0
            await saved(first)
        async with engine(max_batch_size=1, num_blocks=32) as toy:
            toy.runner.gate.clear()
            running = await toy.generate([7] * 9, greedy(3))
            await toy.in_step()
            waiting = [await toy.generate(prompt, greedy(9)) for prompt in prompts]
            await eventually(lambda: len(store.moved) == 1)
            stats = toy.backend.stats()
            assert (stats.running, stats.waiting) == (1, 3), (
                "its step has not ended, and its pages are moving"
            )
            assert store.gets == 5, "there is room for the pages of one request"
            assert len(store.moved[0]) == 5, "of the next one, which fit beside them"

            step, reuse, started = toy.runner.step, toy.backend._reuse, []
            assert reuse is not None

            def checked(batch: Any) -> Any:
                """While a request runs, the pages of the next one are fetched."""
                first = batch[0].token_ids[0] if batch[0].past_len == 5 * BLOCK else None
                if first == PROMPT[5 * BLOCK] and len(started) < 3:
                    started.append(first)
                    wait_for(lambda: len(reuse.later) == max(0, 2 - len(started)))
                return step(batch)

            monkeypatch.setattr(toy.runner, "step", checked)
            toy.runner.gate.set()
            assert await tokens(running) == toy_greedy([7] * 9, 3)
            for prompt, stream in zip(prompts, waiting, strict=True):
                assert await tokens(stream) == toy_greedy(prompt, 9)
                assert stream.usage is not None
                assert stream.usage.cached_tokens == 5 * BLOCK
            assert len(started) == 3
            assert store.gets == 15
            counts = toy.backend.stats().extensions
            assert counts["kv_store_later_requests"] == 2
            assert counts["kv_store_prefetched"] == (0 if is_broken else 10)
            assert len(store.moved) == 2
            await toy.idle()

    run(main())


def test_pages_of_a_request_that_will_come_move_up(monkeypatch: pytest.MonkeyPatch) -> None:
    store = PrefetchingStore()
    monkeypatch.setattr(loading, "open_kv_store", lambda settings, **_: store)

    async def main() -> None:
        async with engine() as first:
            assert await ask(first) == 0
            await saved(first)
        async with engine() as toy:
            assert await toy.backend.prefetch_kv(PROMPT) == 5
            assert await toy.backend.prefetch_kv(PROMPT[: 2 * BLOCK]) == 1, "the last token is computed"
            assert await toy.backend.prefetch_kv([]) == 0
            assert len(set(map(tuple, store.moved))) == 2
            assert await toy.backend.prefetch_kv(PROMPT, cache_salt="other") == 5
            assert store.moved[-1] != store.moved[0]
            assert await ask(toy) == 5 * BLOCK
            assert await toy.backend.prefetch_kv(PROMPT) == 0, "the engine has them"
            with pytest.raises(InvalidRequest, match="not in the vocabulary"):
                await toy.backend.prefetch_kv([10**9])
        async with engine(kv_store=None) as toy:
            assert await toy.backend.prefetch_kv(PROMPT) == 0

    run(main())


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, None), ({"priority": 1}, 60.0), ({"deadline": 500.0}, 500.0)],
)
def test_the_store_is_told_how_long_a_request_may_wait(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], expected: float | None
) -> None:
    told: list[float | None] = []

    class NotedStore(DictStore):
        def note_request(self, keys: Sequence[bytes], *, patience_s: float | None = None) -> None:
            told.append(patience_s)

    monkeypatch.setattr(loading, "open_kv_store", lambda settings, **_: NotedStore())

    async def main() -> None:
        async with engine() as toy:
            await ask(toy, **options)

    run(main())
    (found,) = told
    assert found == expected or (found is not None and expected == 500.0 and 100.0 < found <= 500.0)


def test_a_request_that_ends_in_the_queue_fetches_nothing(store: DictStore) -> None:
    async def main() -> None:
        async with engine() as first:
            await ask(first)
            await saved(first)
        async with engine(max_batch_size=1, num_blocks=32) as toy:
            toy.runner.gate.clear()
            running = await toy.generate([7] * 9, greedy(3))
            await toy.in_step()
            fetched = await toy.generate(PROMPT, greedy(3), request_id="fetched")
            waiting = [await toy.generate([i, *PROMPT[1:]], greedy(3)) for i in range(3)]
            for stream in waiting:
                stream.cancel()
            toy.runner.gate.set()
            for stream in waiting:
                with pytest.raises(RequestCancelled):
                    await tokens(stream)
            assert await tokens(running) == toy_greedy([7] * 9, 3)
            assert await tokens(fetched) == toy_greedy(PROMPT, 3)
            reuse = toy.backend._reuse
            assert reuse is not None
            await eventually(lambda: not reuse.later)
            assert not reuse.broker._line
            assert store.gets == 5

    run(main())


def test_without_prefix_caching_it_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="set prefix_caching to true"):
        Toy(kv_store="paged", prefix_caching=False)


def test_the_option_is_checked() -> None:
    with pytest.raises(InvalidRequest, match="kv_store must be the name"):
        Toy(kv_store=3)


def test_what_changes_the_kv_changes_the_keys() -> None:
    def form(**options: Any) -> str:
        return computed_form("abc", OpenVINOBackend(MODEL, **options)._settings)

    assert form() == "abc"
    forms = [form(), form(precision="bf16"), form(dynamic_quantization=True), form(device="GPU.0")]
    assert len(set(forms)) == 4


def test_options_of_a_request_reach_the_keys(store: DictStore) -> None:
    async def main() -> None:
        async with engine() as toy:
            options = RequestOptions(cache_salt="tenant")
            (stream,) = await toy.backend.generate(PROMPT, greedy(1), options=options)
            await tokens(stream)
            await saved(toy)
            salted = set(store.blocks)
            await ask(toy, count=1)
            await saved(toy)
            assert len(store.blocks) == 2 * len(salted)

    run(main())

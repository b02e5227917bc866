"""KV events and snapshots agree, in any sequence of requests."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import Any

import pytest
from openvino_toy import BLOCK, Toy, eventually, greedy, run, tokens, toy_greedy
from sage_infer.contracts import KVEvents, KVEventSource, KVSnapshot, KVStored, block_keys
from sage_infer.errors import EngineDead, UnsupportedFeature
from sage_infer_openvino.engine.kv_events import KVEventLog

Held = dict[bytes, tuple[bytes | None, tuple[int, ...], bytes]]
PROMPT = list(range(30, 43))


def pages(stored: Iterable[KVStored]) -> Held:
    held: Held = {}
    for run_ in stored:
        assert len(run_.token_ids) == BLOCK * len(run_.keys)
        for i, key in enumerate(run_.keys):
            parent = run_.keys[i - 1] if i else run_.parent
            held[key] = parent, run_.token_ids[i * BLOCK : (i + 1) * BLOCK], run_.salt
    return held


class Reader:
    """Keeps up what is held by events, and takes a snapshot where it sees a gap."""

    def __init__(self, backend: KVEventSource) -> None:
        self.backend = backend
        self.seq = self.gaps = 0
        self.held: Held = {}
        self.read = asyncio.Event()
        self.read.set()

    def take(self, snapshot: KVSnapshot) -> None:
        self.held, self.seq = pages(snapshot.stored), snapshot.seq

    async def follow(self) -> None:
        self.take(await self.backend.kv_snapshot())
        async for event in self.backend.kv_events(self.seq):
            await self.read.wait()
            if event.seq <= self.seq:
                continue  # older than a snapshot taken meanwhile
            if event.seq != self.seq + 1:
                self.gaps += 1
                self.take(await self.backend.kv_snapshot())
                continue
            self.apply(event)

    def apply(self, event: KVEvents) -> None:
        for key in event.removed:
            del self.held[key]  # what was never stored is not removed
        fresh = pages(event.stored)
        assert not set(fresh) & set(self.held), "stored twice"
        self.held.update(fresh)
        self.seq = event.seq


async def check(toy: Toy, readers: list[Reader]) -> None:
    """Once all events have arrived, every reader holds what the snapshot holds."""
    snapshot = await toy.backend.kv_snapshot()
    await eventually(lambda: all(reader.seq >= snapshot.seq for reader in readers))
    for reader in readers:
        assert reader.seq == snapshot.seq
        assert reader.held == pages(snapshot.stored)


@pytest.mark.parametrize("seed", range(6))
def test_events_and_snapshots_agree(seed: int) -> None:
    """Random prompts with shared beginnings and salts, in few blocks, some given up, with two readers."""

    async def main() -> None:
        numbers = random.Random(seed)
        async with Toy(num_blocks=24) as toy:
            readers = [Reader(toy.backend), Reader(toy.backend)]
            tasks = [asyncio.ensure_future(reader.follow()) for reader in readers]
            for _ in range(12):
                streams = []
                for _ in range(numbers.randrange(1, 5)):
                    prompt = [numbers.randrange(3)] * BLOCK + [9] * numbers.randrange(1, 20)
                    salt = numbers.choice(["", "", "a", "b"])
                    streams.append(
                        await toy.generate(prompt, greedy(numbers.randrange(1, 16)), cache_salt=salt)
                    )
                if numbers.random() < 0.3:
                    streams.pop().cancel()
                await asyncio.gather(*map(tokens, streams))
                await toy.idle()
                await check(toy, readers)
            assert readers[0].gaps == readers[1].gaps == 0
            assert 0 < len(readers[0].held) <= 24
            keys = {len(reader.held) for reader in readers}
            assert len(keys) == 1
        await asyncio.gather(*tasks)  # close ends them

    run(main())


def test_events_name_parents_tokens_and_salts() -> None:
    async def main() -> None:
        async with Toy() as toy:
            for salt in ("", "tenant"):
                await tokens(await toy.generate(PROMPT, greedy(1), cache_salt=salt))
            snapshot = await toy.backend.kv_snapshot()
            fingerprint, schema = "toy-weights", toy.backend.get_kv_schema()
            expected: Held = {}
            for salt in (b"", b"tenant"):
                keys = list(block_keys(fingerprint, schema, PROMPT, salt=salt))
                for i, key in enumerate(keys):
                    expected[key] = (
                        keys[i - 1] if i else None,
                        tuple(PROMPT[i * BLOCK : (i + 1) * BLOCK]),
                        salt,
                    )
            assert pages(snapshot.stored) == expected
            assert len(snapshot.stored) == 2  # a run each
            assert snapshot.generation == toy.backend.describe().generation

    run(main())


def test_a_slow_reader_sees_a_gap_and_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KVEventLog.__init__, "__kwdefaults__", {"kept_bytes": 2000})

    async def main() -> None:
        async with Toy(num_blocks=12) as toy:
            slow, quick = Reader(toy.backend), Reader(toy.backend)
            tasks = [asyncio.ensure_future(reader.follow()) for reader in (slow, quick)]
            await asyncio.sleep(0)
            slow.read.clear()
            for number in range(30):
                await tokens(await toy.generate([number] * 9, greedy(3)))
                await check(toy, [quick])
            slow.read.set()
            await check(toy, [slow, quick])
            assert slow.gaps > 0
            await tokens(await toy.generate([99] * 9, greedy(3)))
            await check(toy, [slow, quick])
        await asyncio.gather(*tasks)

    run(main())


def test_requests_share_kv_only_under_one_salt() -> None:
    async def main() -> None:
        async with Toy() as toy:

            async def cached(salt: str) -> int | None:
                stream = await toy.generate(PROMPT, greedy(3), cache_salt=salt)
                assert await tokens(stream) == toy_greedy(PROMPT, 3)
                assert stream.usage is not None
                return stream.usage.cached_tokens

            assert [await cached(salt) for salt in ("", "a", "b", "a", "", "b")] == [0, 0, 0, 12, 12, 12]

    run(main())


def test_without_prefix_caching_there_are_none() -> None:
    async def main() -> None:
        async with Toy(prefix_caching=False) as toy:
            features = toy.backend.get_capability().features
            assert not {"kv_events", "cache_salt", "prefix_caching"} & set(features)
            with pytest.raises(UnsupportedFeature, match="require prefix_caching"):
                await toy.backend.kv_snapshot()
            with pytest.raises(UnsupportedFeature, match="feature cache_salt"):
                await toy.generate(PROMPT, greedy(1), cache_salt="a")
        with pytest.raises(EngineDead):
            toy.backend.kv_events(0)

    run(main())


def test_readers_may_be_in_several_event_loops_and_leave() -> None:
    async def main() -> None:
        async with Toy() as toy:
            reading = asyncio.Event()
            here = asyncio.get_running_loop()

            async def first_event() -> Any:
                here.call_soon_threadsafe(reading.set)
                async for event in toy.backend.kv_events(0):
                    return event.seq
                return None

            elsewhere = asyncio.ensure_future(asyncio.to_thread(asyncio.run, first_event()))
            leaving = asyncio.ensure_future(first_event())
            await reading.wait()
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            await tokens(await toy.generate(PROMPT, greedy(2)))
            assert await elsewhere == 1

    run(main())

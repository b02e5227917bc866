"""KV events: reports about an engine's cached blocks."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import struct
from collections.abc import Iterable
from typing import Any

import pytest
from sage_infer.compat import wait_for
from sage_infer.contracts import KVEvents, KVEventSource, KVSnapshot, KVStored

from sage_infer_testing.features import when_claimed
from sage_infer_testing.kits.generation.base import GenerationSuite
from sage_infer_testing.reading import generate_one, greedy
from sage_infer_testing.shape import shape_problems
from sage_infer_testing.waiting import eventually

__all__ = ["EventTests"]

_PAGES = 3  # of each prompt here
_DIGITS = 8  # tokens at the start of a prompt that encode its number
_MOST_TOKENS = 4096  # of KV that a test fills to cause evictions

Held = dict[bytes, tuple[bytes | None, tuple[int, ...]]]


class EventTests(GenerationSuite, kit=True):
    """Tests of ``kv_snapshot`` and ``kv_events``, if they are claimed."""

    async def fresh_prompt(self, backend: Any, number: int) -> list[int]:
        """Return token ids of a few pages with a unique first page."""
        ids = await self.first_prompt_ids(backend)
        size = backend.get_kv_schema().page_size
        length = min(_PAGES * size + 1, backend.get_capability().max_sequence_length - 4)
        if length <= size:
            pytest.skip(f"a page of {size} tokens does not fit into the sequence limit")
        first = [ids[number // len(ids) ** place % len(ids)] for place in range(_DIGITS)]
        rest = [ids[(at * at + number) % len(ids)] for at in range(length)]
        return [*first, *rest][:length]

    def pages(self, backend: Any, stored: Iterable[KVStored]) -> Held:
        """Return each block with its parent and tokens; fail if a run is inconsistent."""
        __tracebackhide__ = True
        size, held = backend.get_kv_schema().page_size, {}
        for run in stored:
            assert len(run.token_ids) == size * len(run.keys), (
                f"{len(run.keys)} blocks of {size} tokens, and {len(run.token_ids)} token ids"
            )
            for index, key in enumerate(run.keys):
                parent = run.keys[index - 1] if index else run.parent
                tokens = run.token_ids[index * size : (index + 1) * size]
                held[key] = (parent, tokens)
                self.is_named_right(backend, run, key, parent, tokens)
        return held

    def is_named_right(
        self, backend: Any, run: KVStored, key: bytes, parent: bytes | None, tokens: tuple[int, ...]
    ) -> None:
        """Fail unless a block without salt and adapter has the key of ``block_keys``."""
        __tracebackhide__ = True
        if run.salt or run.adapter:
            return
        if parent is None and backend.get_capability().supports("reports"):
            parent = bytes.fromhex(backend.describe().key_space)
        if parent is not None:
            packed = struct.pack(f"<{len(tokens)}q", *tokens)
            expected = hashlib.blake2b(parent + packed, digest_size=16).digest()
            assert key == expected, f"the block of {tokens} after {parent.hex()} is named {key.hex()}"

    def apply(self, backend: Any, held: Held, event: KVEvents) -> None:
        """Apply an event to the held blocks."""
        if event.cleared:
            held.clear()
        for key in event.removed:
            held.pop(key, None)
        held.update(self.pages(backend, event.stored))

    async def follow(self, backend: Any, since: int, events: list[KVEvents]) -> None:
        """Collect events until the backend is closed, or this task is cancelled."""
        async for event in backend.kv_events(since):
            events.append(event)

    @contextlib.asynccontextmanager
    async def followed(self, backend: Any) -> Any:
        """A snapshot, and a growing list of the events after it."""
        snapshot = await backend.kv_snapshot()
        events: list[KVEvents] = []
        reading = asyncio.ensure_future(self.follow(backend, snapshot.seq, events))
        try:
            yield snapshot, events
        finally:
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading

    async def caught_up(self, backend: Any, snapshot: KVSnapshot, events: list[KVEvents]) -> KVSnapshot:
        """Return a new snapshot after all events before it have arrived."""
        later: KVSnapshot = await backend.kv_snapshot()

        def arrived() -> bool:
            return (events[-1].seq if events else snapshot.seq) >= later.seq

        await eventually(arrived, f"the events up to {later.seq} did not arrive", within_s=self.settle_s)
        return later

    @when_claimed("kv_events")
    async def test_a_snapshot_and_events_are_the_next_snapshot(self, backend: Any) -> None:
        """A snapshot with all events applied equals a later one; ``seq`` has no gaps and the generation is constant.

        How to fix: number the events under the lock that protects the index of blocks, and take snapshots under it,
        too.
        """
        problems = shape_problems(backend, KVEventSource)
        assert not problems, f"not a KVEventSource: {'; '.join(problems)}"
        async with self.followed(backend) as (snapshot, events):
            assert isinstance(snapshot, KVSnapshot), f"kv_snapshot() returned a {type(snapshot).__name__}"
            for number in range(3):
                await generate_one(backend, await self.fresh_prompt(backend, number), greedy(2))
            await self.idle(backend)
            later = await self.caught_up(backend, snapshot, events)
        assert events, "no event for three new prompts"
        seqs = [event.seq for event in events]
        assert seqs == list(range(snapshot.seq + 1, snapshot.seq + 1 + len(events))), (
            f"seq after {snapshot.seq}: {seqs}"
        )
        generations = {snapshot.generation, later.generation, *(event.generation for event in events)}
        assert len(generations) == 1, f"one instance has the generations {generations}"
        held = self.pages(backend, snapshot.stored)
        for event in events:
            if event.seq <= later.seq:
                self.apply(backend, held, event)
        now = self.pages(backend, later.stored)
        assert held == now, f"{len(held)} blocks by events, {len(now)} in the snapshot"

    @when_claimed("kv_events")
    async def test_computed_blocks_are_stored(self, backend: Any) -> None:
        """The full blocks of a new prompt are in the next snapshot, with their tokens.

        How to fix: report each block when it is full and reusable.
        """
        prompt = await self.fresh_prompt(backend, 1000)
        await generate_one(backend, prompt, greedy(2))
        await self.idle(backend)
        held = self.pages(backend, (await backend.kv_snapshot()).stored)
        size = backend.get_kv_schema().page_size
        for start in range(0, len(prompt) - size, size):
            page = tuple(prompt[start : start + size])
            assert any(tokens == page for _, tokens in held.values()), (
                f"tokens {start} to {start + size} of a prompt that was computed are in no block"
            )

    @when_claimed("kv_events")
    async def test_evicted_blocks_are_removed(self, backend: Any) -> None:
        """Evicted blocks are reported as removed, and are in no later snapshot.

        How to fix: report the key when the block is reused for other tokens.
        """
        total, size = backend.stats().kv_blocks_total, backend.get_kv_schema().page_size
        if total * size > _MOST_TOKENS:
            pytest.skip(f"{total} KV blocks of {size} tokens are too many to fill in a test")
        prompts = total // _PAGES + 2
        async with self.followed(backend) as (snapshot, events):
            for number in range(2000, 2000 + prompts):
                await generate_one(backend, await self.fresh_prompt(backend, number), greedy(1))
                if any(event.removed or event.cleared for event in events):
                    break
            else:
                pytest.fail(f"{prompts} prompts of {_PAGES} pages in {total} blocks removed nothing")
            await self.idle(backend)
            later = await self.caught_up(backend, snapshot, events)
        stored: set[bytes] = set()
        for event in events:
            stored -= set(event.removed)
            stored |= {key for run in event.stored for key in run.keys}
        gone = {key for event in events for key in event.removed} - stored
        assert gone.isdisjoint(self.pages(backend, later.stored)), "a removed block is in a later snapshot"

    @when_claimed("kv_events")
    async def test_close_ends_the_events(self, backend: Any) -> None:
        """The iteration over events ends when the backend is closed.

        How to fix: wake the readers in ``close`` and return from the generator.
        """
        fresh = await self._started()
        try:
            reading = asyncio.ensure_future(self.follow(fresh, (await fresh.kv_snapshot()).seq, []))
            await asyncio.sleep(0)
        finally:
            await fresh.close()
        await wait_for(reading, self.settle_s)

"""The kit for KV stores that report their changes."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any, ClassVar

from sage_infer.contracts import KVStoreEvent, ObservableKVStore

from sage_infer_testing.kits.kv.store import KVStoreContract
from sage_infer_testing.waiting import eventually

__all__ = ["ObservableKVStoreContract"]

Make = Callable[[int], Any]


class _Watch:
    """A subscriber that replays events."""

    def __init__(self, store: Any) -> None:
        self.events: list[KVStoreEvent] = []
        self._lock = threading.Lock()
        self.stop: Callable[[], None] = store.subscribe(self._take)

    def _take(self, event: KVStoreEvent) -> None:
        with self._lock:
            self.events.append(event)

    def keys(self, kind: str) -> list[bytes]:
        """Keys of all events of a kind, in order."""
        with self._lock:
            return [key for event in self.events if event.kind == kind for key in event.keys]

    def contents(self) -> set[bytes]:
        """What the events say is stored."""
        found: set[tuple[bytes, str]] = set()
        with self._lock:
            for event in self.events:
                if event.kind == "cleared":
                    found.clear()
                for key in event.keys:
                    (found.add if event.kind == "stored" else found.discard)((key, event.tier))
        return {key for key, _ in found}


class ObservableKVStoreContract(KVStoreContract, kit=True):
    """Guarantees of an ``ObservableKVStore``, and all those of a ``KVStore``. Override ``open_store``."""

    protocol: ClassVar[type] = ObservableKVStore

    async def until(self, condition: Callable[[], bool], what: Callable[[], str]) -> None:
        """Wait for events, which may come from another thread."""
        await eventually(condition, what, within_s=self.settle_s)

    async def test_stored_blocks_are_reported(self, make_store: Make) -> None:
        """A block that ``put`` stores is in one ``stored`` event; a block that is stored already is in none.

        How to fix: call the subscribers where a block enters the index, not where ``put`` is called.
        """
        store, keys = make_store(8), self.keys(4)
        watch = _Watch(store)
        self.fill(store, keys[:3])
        self.fill(store, keys)
        await self.until(
            lambda: keys[3] in watch.keys("stored"), lambda: f"block 3 was put; reported: {watch.events}"
        )
        assert sorted(watch.keys("stored")) == sorted(keys), (
            f"4 blocks were put once; reported: {watch.events}"
        )
        assert all(isinstance(event, KVStoreEvent) for event in watch.events), (
            f"not KVStoreEvents: {watch.events}"
        )

    async def test_removed_blocks_are_reported(self, make_store: Make) -> None:
        """Evicted blocks are in ``removed`` events, by ``evict`` and by ``put`` into a full store.

        How to fix: call the subscribers where a block leaves the index, for whatever reason.
        """
        store = make_store(2)
        size = self.capacity(store, 2)
        keys = self.keys(size + 1)
        self.fill(store, keys[:size])
        watch = _Watch(store)
        self.fill(store, keys[size:])
        await self.until(
            lambda: len(watch.keys("removed")) == 1, lambda: f"put() evicted one: {watch.events}"
        )
        store.evict(1)
        await self.until(
            lambda: len(watch.keys("removed")) == 2, lambda: f"evict(1) after it: {watch.events}"
        )
        gone = [key for key, held in zip(keys, store.contains(keys), strict=True) if not held]
        assert sorted(watch.keys("removed")) == sorted(gone), f"{len(gone)} blocks are gone: {watch.events}"

    async def test_events_add_up_to_the_contents(self, make_store: Make) -> None:
        """Replaying the events of any operations yields the contents of the store.

        How to fix: report every change once and in order, under the store's lock.
        """
        store = make_store(4)
        self.capacity(store, 4)
        watch, draw, keys = _Watch(store), random.Random(7), self.keys(9)
        for _ in range(60):
            if draw.random() < 0.2:
                store.evict(draw.randint(1, 3))
            else:
                self.fill(store, draw.sample(keys, draw.randint(1, 3)))
        held = {key for key, here in zip(keys, store.contains(keys), strict=True) if here}
        await self.until(
            lambda: watch.contents() == held,
            lambda: f"{len(held)} blocks are stored; the events add up to {len(watch.contents())}",
        )

    async def test_a_subscription_ends(self, make_store: Make) -> None:
        """After the function that ``subscribe`` returned was called, its callback gets nothing; others still do.

        How to fix: remove this subscription alone; calling the function twice is harmless.
        """
        store, keys = make_store(8), self.keys(2)
        ended, other = _Watch(store), _Watch(store)
        ended.stop()
        ended.stop()
        self.fill(store, keys)
        await self.until(
            lambda: sorted(other.keys("stored")) == sorted(keys), lambda: f"the other one got {other.events}"
        )
        assert not ended.events, f"reported after the end of the subscription: {ended.events}"

"""Pages between a ``KVStore`` and an arena, for the process that owns both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from attrs import define
from sage_infer.sdk.kv_broker import KVBroker
from sage_infer.sdk.kv_pages.pages import FetchedPages
from sage_infer.sdk.kv_pages.setting import open_kv_store

from sage_infer_vllm.kv.arena import Arena

if TYPE_CHECKING:
    from sage_infer.contracts import KVStore
    from sage_infer.schemas import KVCacheSchema

__all__ = ["Fetched", "StoreTraffic", "arena_slots", "open_traffic"]

_SHARE_IN_FLIGHT = 4  # of the KV cache's pages may be on their way from the store
_SHARE_TO_SAVE = 8
_STEPS_TO_SAVE = 2  # pages of that many of the largest steps fit at least


def arena_slots(*, blocks: int, page_size: int, sequence_tokens: int, step_tokens: int) -> tuple[int, int]:
    """Slots for loads and for saves.

    Args:
        blocks: pages of the KV cache.
        page_size: tokens per page.
        sequence_tokens: limit of a sequence.
        step_tokens: limit of a step.
    """
    loads = max(blocks // _SHARE_IN_FLIGHT, -(-sequence_tokens // page_size))
    saves = max(blocks // _SHARE_TO_SAVE, _STEPS_TO_SAVE * (step_tokens // page_size), 1)
    return max(1, min(loads, blocks)), max(1, min(saves, blocks))


@define(eq=False)
class Fetched:
    """Pages at the start of a sequence of keys, in slots of the arena. ``free`` returns the slots."""

    slots: tuple[int, ...]
    _pages: FetchedPages | None

    @property
    def is_deferred(self) -> bool:
        """Whether ``StoreTraffic.fetch_later`` may find more."""
        return self._pages is not None and self._pages.is_deferred

    def free(self) -> None:
        """Safe to call twice."""
        self._pages = None


class StoreTraffic:
    """Fetches pages into the arena, and saves what workers put there. ``fetch`` runs in an event loop.

    Args:
        store: it is closed with this object.
        page_bytes: size of a page.
        slots: those for loads, and those for saves.
        wait_s: how long a request waits for its pages.

    Raises:
        OutOfMemory, UnsupportedFeature: see ``Arena.create``.
    """

    def __init__(self, store: KVStore, *, page_bytes: int, slots: tuple[int, int], wait_s: float) -> None:
        loads, saves = slots
        self.arena, self._memory = Arena.create(page_bytes=page_bytes, loads=loads, saves=saves)
        self._unused = list(range(loads))
        self._slot_at = {self._address(slot): slot for slot in range(loads)}
        self.broker = KVBroker(
            store,
            page_bytes=page_bytes,
            wait_s=wait_s,
            buffer_bytes=loads * page_bytes,
            new_buffer=self._new_buffer,
        )

    async def fetch(
        self, keys: Sequence[bytes], *, cached: int = 0, patience_s: float | None = None
    ) -> Fetched:
        """The pages of the longest prefix of ``keys[cached:]`` that the store holds, as ``KVBroker.fetch`` says."""
        pages = await self.broker.fetch(keys, cached=cached, patience_s=patience_s)
        found = [pages.pages[key] for key in keys[cached : cached + len(pages.pages)]]
        return Fetched(tuple(self._slot_of(page) for page in found), pages)

    async def fetch_later(self, wanted: Callable[[], Sequence[bytes]]) -> Fetched:
        """The pages of a request whose ``fetch`` was deferred, as ``KVBroker.fetch_later`` says."""
        pages = await self.broker.fetch_later(wanted)
        return Fetched(tuple(map(self._slot_of, pages.pages.values())), pages)

    def collect(self) -> None:
        """Queue the pages for the store that workers have completed."""
        for slot, key in self.arena.take_filled():
            self.broker.save_from(key, self.arena.page(slot).data, partial(self.arena.free, slot))

    def free_slots(self) -> int:
        """Slots for loads that no page is in."""
        return len(self._unused) + self.broker.free_buffers()

    def counts(self) -> dict[str, float]:
        """``KVBroker.counts``, with the pages that found no slot among the dropped ones."""
        found, arena = self.broker.counts(), self.arena.counts()
        return {**found, "dropped": found["dropped"] + arena["unsaved"]}

    def close(self) -> None:
        """Save what is complete, and close the store. Safe to call twice."""
        self.collect()
        self.broker.close()
        self._memory.close()

    def _new_buffer(self) -> memoryview:
        view: memoryview = self.arena.page(self._unused.pop()).data
        return view

    def _address(self, slot: int) -> int:
        return int(self.arena.page(slot).ctypes.data)

    def _slot_of(self, page: memoryview) -> int:
        import numpy as np

        return self._slot_at[int(np.frombuffer(page, np.uint8).ctypes.data)]


def open_traffic(
    setting: str | Mapping[str, Any],
    *,
    kv_model: str,
    weights_id: str,
    schema: KVCacheSchema,
    blocks: int,
    sequence_tokens: int,
    step_tokens: int,
    wait_s: float,
) -> StoreTraffic:
    """Open the store that a setting names, with shared memory between it and the workers.

    Args:
        setting: see ``open_kv_store``.
        kv_model: name of the weights and of how they are computed.
        weights_id: see ``open_kv_store``.
        schema: of the KV cache.
        blocks: pages of the KV cache.
        sequence_tokens: limit of a sequence.
        step_tokens: limit of a step.
        wait_s: how long a request waits for its pages.

    Raises:
        BackendUnavailable, ConfigError: see ``open_kv_store``.
        OutOfMemory, UnsupportedFeature: see ``Arena.create``.
    """
    slots = arena_slots(
        blocks=blocks, page_size=schema.page_size, sequence_tokens=sequence_tokens, step_tokens=step_tokens
    )
    store = open_kv_store(setting, schema=schema, model_id=kv_model, weights_id=weights_id)
    try:
        return StoreTraffic(store, page_bytes=schema.bytes_per_page, slots=slots, wait_s=wait_s)
    except BaseException:
        store.close()
        raise

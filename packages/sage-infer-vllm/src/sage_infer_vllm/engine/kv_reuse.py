"""KV of prompts from a store: fetched before a request is submitted, so that the engine never waits for it.

A request that finds no room for its pages is submitted without, and gets them while it waits for its turn.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

from attrs import define
from sage_infer.contracts import block_keys, root_key
from sage_infer.schemas import KVCacheSchema

from sage_infer_vllm.kv.recent import RecentKeys
from sage_infer_vllm.kv.traffic import Fetched, StoreTraffic
from sage_infer_vllm.requests.delivery import Delivery

__all__ = ["KVReuse", "PromptPages"]

_INLINE_TOKENS = 4096  # more are hashed in a thread


@define(eq=False)
class PromptPages:
    """The stored pages of one prompt.

    Attributes:
        keys: of its full pages.
        root: parent of the first page's key.
        extra: input of each page's key besides its tokens.
        cached: pages at the start that the engine is assumed to have.
        fetched: the pages behind them.
        ticket: the number under which they may still come; 0 if they do not.
    """

    keys: list[bytes]
    root: bytes
    extra: bytes
    cached: int
    fetched: Fetched
    ticket: int = 0


class KVReuse:
    """The KV store of one running engine. Used in one event loop.

    Args:
        traffic: it is closed with this object.
        kv_model: name of the weights and of how they are computed.
        schema: of the KV cache.
        adapters: content of each adapter, by name.
        cached_pages: how many pages ``RecentKeys`` assumes to be in vLLM's own cache; 0 without prefix caching.
        fence: returns when the engine has dropped aborted requests, and its workers have ended all steps so far.
    """

    def __init__(
        self,
        traffic: StoreTraffic,
        *,
        kv_model: str,
        schema: KVCacheSchema,
        adapters: Mapping[str, str],
        cached_pages: int,
        fence: Callable[[], Awaitable[object]],
    ) -> None:
        self.traffic = traffic
        self._kv_model = kv_model
        self._schema = schema
        self._adapters = adapters
        self._fence = fence
        self._recent = RecentKeys(cached_pages)
        self._tasks: set[asyncio.Task[None]] = set()
        self._tickets = itertools.count(1)

    async def fetch(
        self, tokens: Sequence[int], *, salt: str, adapter: str | None, patience_s: float | None = None
    ) -> PromptPages:
        """The stored pages of a prompt; none where the store does not answer in time.

        ``patience_s``: how long its request may wait for its first token, for the store's policy.
        """
        extra = b"" if adapter is None else f"adapter {self._adapters[adapter]}".encode()
        keys = await self._keys_of(tokens, salt, extra)
        cached = self._recent.leading(keys)
        fetched = await self.traffic.fetch(keys, cached=cached, patience_s=patience_s)
        root = root_key(self._kv_model, self._schema, salt.encode())
        ticket = next(self._tickets) if fetched.is_deferred else 0
        return PromptPages(keys, root, extra, cached, fetched, ticket)

    async def prefetch(self, tokens: Sequence[int], *, salt: str) -> int:
        """Move the stored pages of a prompt that will come to the store's fastest tier; returns how many there are."""
        keys = await self._keys_of(tokens, salt, b"")
        return await self.traffic.broker.prefetch(keys[self._recent.leading(keys) :])

    def params(self, pages: PromptPages) -> dict[str, Any]:
        """Parameters that make the engine load these pages, and save those that it completes."""
        return {
            "stored": {
                "arena": self.traffic.arena.place.as_params(),
                "keys": b"".join(pages.keys),
                "root": pages.root,
                "extra": pages.extra,
                "first": pages.cached,
                "slots": list(pages.fetched.slots),
                "ticket": pages.ticket,
            }
        }

    def submitted(self, delivery: Delivery, pages: PromptPages, *, rows: int) -> None:
        """The engine has the request; its slots are freed when no worker reads them any more.

        Args:
            rows: completions, each of which may load the pages.
        """
        self._recent.use(pages.keys)

        def free() -> None:
            if rows == 1 and delivery.has_output:
                self._free(pages)
            else:
                self.abandon(pages)

        if rows == 1:
            delivery.loaded = free
        delivery.closed = lambda: self._closed(delivery, pages, None if rows == 1 else free)
        if pages.ticket and rows == 1:
            self._spawn(self._fetch_later(delivery, pages))

    async def _fetch_later(self, delivery: Delivery, pages: PromptPages) -> None:
        """Publish the pages of a request for the scheduler, if they come before its turn."""
        arena, keys = self.traffic.arena, pages.keys[pages.cached :]

        def waits() -> bool:
            return not (delivery.has_output or delivery.has_ended() or arena.has_started(pages.ticket))

        fetched = await self.traffic.fetch_later(lambda: keys if waits() else [])
        if waits():
            pages.fetched = fetched
            arena.publish(pages.ticket, pages.cached, fetched.slots)
        else:
            fetched.free()

    def abandon(self, pages: PromptPages) -> None:
        """The request has ended, perhaps before its pages were loaded."""
        if pages.fetched.slots:
            self._spawn(self._free_later(pages))

    async def _free_later(self, pages: PromptPages) -> None:
        try:
            await self._fence()
        except Exception:
            return  # the engine has stopped; the arena is closed with it
        self._free(pages)

    def _free(self, pages: PromptPages) -> None:
        """Free the slots, which no worker reads any more."""
        if pages.ticket:
            self.traffic.arena.retract(pages.ticket)
        pages.fetched.free()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _closed(self, delivery: Delivery, pages: PromptPages, free: Callable[[], None] | None) -> None:
        if free is not None:
            free()
        if delivery.has_output and delivery.usage().cached_tokens < pages.cached * self._schema.page_size:
            self._recent.forget(pages.keys)  # vLLM has dropped some

    async def _keys_of(self, tokens: Sequence[int], salt: str, extra: bytes) -> list[bytes]:
        if len(tokens) < _INLINE_TOKENS:
            return self._keys(tokens, salt, extra)
        return await asyncio.to_thread(self._keys, tokens, salt, extra)

    def _keys(self, tokens: Sequence[int], salt: str, extra: bytes) -> list[bytes]:
        extras = [extra] * (len(tokens) // self._schema.page_size) if extra else ()
        return list(block_keys(self._kv_model, self._schema, tokens, salt=salt.encode(), extras=extras))

    # --- the engine

    def collect(self) -> None:
        """Take the pages that the engine has completed; call it after each step."""
        self.traffic.collect()

    async def flush(self) -> bool:
        """Wait until the pages that the engine has completed are in the store; False if it is slow."""
        self.collect()
        return await asyncio.to_thread(self.traffic.broker.flush)

    def counts(self) -> dict[str, float]:
        return self.traffic.counts()

    async def close(self) -> None:
        """Save what is complete, and close the store. Call it when the engine has ended."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.to_thread(self.traffic.close)

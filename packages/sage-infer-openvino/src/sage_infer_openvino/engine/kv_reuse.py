"""Pages of requests in a KV store: fetched before a request starts, saved when a block is full."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np
from attrs import field, frozen
from sage_infer.contracts import KeyChain
from sage_infer.sdk.kv_broker import KVBroker
from sage_infer.sdk.kv_pages.notes import patience

from sage_infer_openvino.engine.block_pool import BlockPool
from sage_infer_openvino.engine.page_store import NewKeyChain
from sage_infer_openvino.engine.paged_runner import PagedRunner
from sage_infer_openvino.engine.sequence import EngineRequest

__all__ = ["KVReuse"]

_INLINE_TOKENS = 4096  # more are hashed in a thread


@frozen
class KVReuse:
    """The ``PageStore`` of one engine."""

    broker: KVBroker
    runner: PagedRunner
    key_chain: NewKeyChain
    later: set[asyncio.Task[None]] = field(factory=set)

    async def fetch(self, requests: Sequence[EngineRequest], pool: BlockPool) -> None:
        """Give each request the stored pages that follow the blocks which the engine has cached."""
        await asyncio.gather(*(self._fetch(request, pool) for request in requests))

    async def prefetch(self, tokens: Sequence[int], salt: bytes, pool: BlockPool) -> int:
        """Move the stored pages of a prompt that will come to the store's fastest tier; returns how many there are."""
        keys = await _extended(self.key_chain(salt), tokens[:-1])
        return await self.broker.prefetch(keys[_leading(pool, keys) :])

    async def _fetch(self, request: EngineRequest, pool: BlockPool) -> None:
        sequence = request.sequences[0]
        chain = self.key_chain(request.salt)
        keys = await _extended(chain, sequence.tokens[:-1])  # at least one token must be computed
        sequence.key_chain = chain  # the engine thread, which has not seen it yet, adds what follows
        left = None if request.deadline is None else request.deadline - time.perf_counter()
        request.fetched = await self.broker.fetch(
            keys,
            cached=_leading(pool, keys),
            patience_s=patience(priority=request.priority, deadline_s=left),
        )
        if request.fetched.is_deferred:
            task = asyncio.create_task(self._fetch_later(request, list(keys), pool))
            self.later.add(task)
            task.add_done_callback(self.later.discard)

    async def _fetch_later(self, request: EngineRequest, keys: list[bytes], pool: BlockPool) -> None:
        """Fetch the pages of a request while it waits in the engine's queue, which it does not leave later for it."""

        def wanted() -> list[bytes]:
            return keys[_leading(pool, keys) :] if request.is_waiting else []

        request.fetched = await self.broker.fetch_later(wanted)
        if not request.is_waiting:
            request.fetched = None

    def load(self, block: int, page: memoryview) -> None:
        self.runner.write_block(block, page)

    def save(self, key: bytes, block: int) -> None:
        self.broker.save(key, lambda out: self.runner.read_block(block, np.frombuffer(out, np.uint8)))


async def _extended(chain: KeyChain, tokens: Sequence[int]) -> Sequence[bytes]:
    if len(tokens) < _INLINE_TOKENS:
        return chain.extend(tokens)
    return await asyncio.to_thread(chain.extend, tokens)


def _leading(pool: BlockPool, keys: Sequence[bytes]) -> int:
    """How many blocks at the start the engine has cached."""
    return next((i for i, key in enumerate(keys) if pool.find(key) is None), len(keys))

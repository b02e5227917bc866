"""Pages of requests in a KV store: fetched before a request is submitted, saved when a block is full."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from attrs import frozen
from sage_infer.sdk.kv_broker import KVBroker

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

    async def fetch(self, requests: Sequence[EngineRequest], pool: BlockPool) -> None:
        """Give each request the stored pages that follow the blocks which the engine has cached."""
        await asyncio.gather(*(self._fetch(request, pool) for request in requests))

    async def _fetch(self, request: EngineRequest, pool: BlockPool) -> None:
        sequence = request.sequences[0]
        tokens = sequence.tokens[:-1]  # at least one token must be computed
        chain = self.key_chain(request.salt)
        if len(tokens) < _INLINE_TOKENS:
            keys = chain.extend(tokens)
        else:
            keys = await asyncio.to_thread(chain.extend, tokens)
        sequence.key_chain = chain  # the engine thread, which has not seen it yet, adds what follows
        cached = next((i for i, key in enumerate(keys) if pool.find(key) is None), len(keys))
        request.fetched = await self.broker.fetch(keys, cached=cached)

    def load(self, block: int, page: memoryview) -> None:
        self.runner.write_block(block, page)

    def save(self, key: bytes, block: int) -> None:
        self.broker.save(key, lambda out: self.runner.read_block(block, np.frombuffer(out, np.uint8)))

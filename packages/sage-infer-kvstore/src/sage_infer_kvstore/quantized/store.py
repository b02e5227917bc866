"""The quantized store: blocks of floats in fewer bits, in any other store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from attrs import evolve
from sage_infer.contracts import KVStoreStats, block_keys
from sage_infer.schemas import KVCacheSchema
from sage_infer.sdk.kv_pages.notes import note_of
from sage_infer.sdk.kv_pages.setting import open_kv_store

from sage_infer_kvstore.blocks import checked_buffers
from sage_infer_kvstore.quantized.codec import PageCodec

__all__ = ["QuantizedStore"]


class QuantizedStore:
    """A ``KVStore`` that rounds blocks before it puts them into another store. What comes back is not exact.

    Args:
        lower: the store below: its name, or ``{store: NAME, …}`` with its options.
        dtype: int8 (default), int4, fp8_e4m3 or fp8_e5m2. ``PageCodec`` states the errors.
        granularity: what shares a scale: token_head (default; a head of a token), head (a head of the page) or channel
            (a channel of a head of the page).

    Raises:
        UnsupportedFeature: the model's pages are not plain floats.
        ConfigError: wrong options.
    """

    lossless = False

    def __init__(
        self,
        *,
        schema: KVCacheSchema,
        model_id: str,
        lower: str | Mapping[str, Any],
        dtype: str = "int8",
        granularity: str = "token_head",
    ) -> None:
        self._schema, self._model_id = schema, model_id
        self._codec = PageCodec(schema, dtype=dtype, granularity=granularity)
        self._lower = open_kv_store(lower, schema=self._codec.schema, model_id=model_id)
        self._note = note_of(self._lower)
        self._size = self._codec.schema.bytes_per_page
        self._refused = 0  # blocks with numbers that are not finite

    @property
    def schema(self) -> KVCacheSchema:
        return self._schema

    def note_request(self, keys: Sequence[bytes], *, patience_s: float | None = None) -> None:
        """Pass on which blocks a request has to a lower store whose policy learns from it."""
        if self._note is not None:
            self._note(keys, patience_s)

    def note_weights(self, weights_id: str) -> None:
        """Pass on which weights the blocks belong to, to a lower store that keeps it."""
        note = getattr(self._lower, "note_weights", None)
        if note is not None:
            note(weights_id)

    def match(self, tokens: Sequence[int]) -> int:
        keys = list(block_keys(self._model_id, self._schema, tokens))
        return self.match_keys(keys) * self._schema.page_size

    def match_keys(self, keys: Sequence[bytes]) -> int:
        return self._lower.match_keys(keys)

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        return self._lower.contains(keys)

    def get(self, keys: Sequence[bytes], out: Sequence[memoryview]) -> list[bool]:
        buffers = checked_buffers(self._schema, keys, out)
        pages = [np.empty(self._size, np.uint8) for _ in keys]
        found = self._lower.get(keys, [page.data for page in pages])
        for page, buffer, hit in zip(pages, buffers, found, strict=True):
            if hit:
                self._codec.decode(page, buffer)
        return found

    def put(self, keys: Sequence[bytes], blocks: Sequence[memoryview]) -> int:
        buffers = checked_buffers(self._schema, keys, blocks)
        given: dict[bytes, memoryview] = {}
        for key, buffer in zip(keys, buffers, strict=True):
            page = np.empty(self._size, np.uint8)
            if self._codec.encode(buffer, page):
                given[key] = page.data
            else:
                self._refused += 1
        self._lower.put(list(given), list(given.values()))
        return sum(self._lower.contains(keys))

    def pin(self, keys: Sequence[bytes], *, lease_s: float | None = None) -> list[bool]:
        return self._lower.pin(keys, lease_s=lease_s)

    def unpin(self, keys: Sequence[bytes]) -> None:
        self._lower.unpin(keys)

    def evict(self, count: int) -> int:
        return self._lower.evict(count)

    def stats(self) -> KVStoreStats:
        below = self._lower.stats()
        return evolve(below, dropped=below.dropped + self._refused)

    def close(self) -> None:
        self._lower.close()

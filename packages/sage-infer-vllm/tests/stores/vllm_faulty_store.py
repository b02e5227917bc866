"""A plug-in with the KV store ``faulty``, which does what a test tells it to do."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from sage_infer import hookimpl
from sage_infer.contracts import KVStoreStats
from sage_infer.schemas import KVCacheSchema
from sage_infer.specs import KVStoreSpec

__all__ = ["OPENED", "FaultyStore"]

SAGE_INFER_CONTRACT = "1.0"

OPENED: list[FaultyStore] = []


@hookimpl
def sage_infer_kv_stores() -> list[KVStoreSpec]:
    return [
        KVStoreSpec(name="faulty", factory="vllm_faulty_store:FaultyStore", summary="does what a test says")
    ]


class FaultyStore:
    """Blocks in a ``dict``. ``mode``: well, empty (takes and has nothing), raise, lie, hang (until ``gate``)."""

    def __init__(self, schema: KVCacheSchema, model_id: str) -> None:
        self.schema = schema
        self.model_id = model_id
        self.mode = "well"
        self.gate = threading.Event()
        self.gate.set()
        self.blocks: dict[bytes, bytes] = {}
        self.is_closed = False
        OPENED.append(self)

    def match(self, tokens: Sequence[int]) -> int:
        return 0

    def match_keys(self, keys: Sequence[bytes]) -> int:
        self._act()
        if self.mode == "lie":
            return len(keys)
        return next((i for i, found in enumerate(self.contains(keys)) if not found), len(keys))

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        return [self.mode != "empty" and key in self.blocks for key in keys]

    def get(self, keys: Sequence[bytes], out: Sequence[memoryview]) -> list[bool]:
        self._act()
        for key, buffer in zip(keys, out, strict=True):
            buffer[:] = bytes(len(buffer)) if self.mode == "lie" else self.blocks[key]
        return [True] * len(keys)

    def put(self, keys: Sequence[bytes], blocks: Sequence[memoryview]) -> int:
        self._act()
        if self.mode == "empty":
            return 0
        self.blocks.update((key, bytes(block)) for key, block in zip(keys, blocks, strict=True))
        return len(keys)

    def pin(self, keys: Sequence[bytes], *, lease_s: float | None = None) -> list[bool]:
        return self.contains(keys)

    def unpin(self, keys: Sequence[bytes]) -> None:
        """Nothing is ever evicted."""

    def evict(self, count: int) -> int:
        return 0

    def stats(self) -> KVStoreStats:
        return KVStoreStats(blocks=len(self.blocks), capacity_blocks=0, bytes_used=0)

    def close(self) -> None:
        self.is_closed = True

    def _act(self) -> Any:
        if self.mode == "raise":
            raise SystemExit("the disk is gone")
        if self.mode == "hang":
            self.gate.wait()

"""A store with two tiers: half of the blocks in memory, the others on a disk that is made up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import evolve
from sage_infer.contracts import KVPlace, KVStoreStats
from sage_infer.schemas import KVCacheSchema

from kit_reference.store import ReferenceStore

__all__ = ["ReferenceTieredStore"]

LOAD_S = 0.001  # until a block of the disk can be read


class ReferenceTieredStore(ReferenceStore):
    """``fast`` are the keys of the blocks in memory, the first to go first."""

    def __init__(self, model_id: str, schema: KVCacheSchema, capacity: int) -> None:
        super().__init__(model_id, schema, capacity)
        self.fast: list[bytes] = []

    def keep(self, key: bytes, block: memoryview) -> None:
        super().keep(key, block)
        self.promote(key)

    def forget(self, key: bytes) -> None:
        super().forget(key)
        if key in self.fast:
            self.fast.remove(key)

    def promote(self, key: bytes) -> None:
        if key in self.fast:
            self.fast.remove(key)
        self.fast = [*self.fast, key][-max(1, self.capacity // 2) :]

    def locate(self, keys: Sequence[bytes]) -> list[KVPlace | None]:
        with self.lock:
            return [self.place(key) for key in keys]

    def place(self, key: bytes) -> KVPlace | None:
        if key not in self.blocks:
            return None
        return KVPlace(tier="dram", seconds=0.0) if key in self.fast else KVPlace(tier="ssd", seconds=LOAD_S)

    def prefetch(self, keys: Sequence[bytes], *, deadline_s: float | None = None) -> int:
        with self.lock:
            places = dict(zip(keys, self.locate(keys), strict=True))
            wanted = [k for k, p in places.items() if p and (deadline_s is None or p.seconds <= deadline_s)]
            for key in wanted:
                self.promote(key)
            return len(wanted)

    def stats(self) -> KVStoreStats:
        with self.lock:
            tiers: dict[str, Any] = {"dram": len(self.fast), "ssd": len(self.blocks) - len(self.fast)}
            return evolve(super().stats(), tiers=tiers)

    def close(self) -> None:
        super().close()
        self.fast.clear()

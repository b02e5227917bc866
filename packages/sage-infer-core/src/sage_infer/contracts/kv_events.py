"""Contract of engines that report their cached KV blocks, for cache-aware routing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol, runtime_checkable

from attrs import frozen

from sage_infer.schemas.kv_chunk import MemoryTier

__all__ = ["KVEventSource", "KVEvents", "KVSnapshot", "KVStored"]


@frozen(kw_only=True)
class KVStored:
    """Consecutive blocks of a sequence in an engine's cache; each block is the parent of the next.

    Attributes:
        parent: key of the block before the first one; None at the start of a sequence.
        keys: keys of the blocks, as returned by ``block_keys``.
        token_ids: token ids of the blocks, concatenated.
        tier: memory tier of the blocks.
        salt: salt that is hashed into the keys.
        adapter: LoRA adapter that the blocks were computed with; empty for none.
    """

    parent: bytes | None
    keys: tuple[bytes, ...]
    token_ids: tuple[int, ...]
    tier: MemoryTier = "hbm"
    salt: bytes = b""
    adapter: str = ""


@frozen(kw_only=True)
class KVEvents:
    """Changes since the previous event.

    Attributes:
        generation: of the instance's descriptor; after a change, take a new snapshot.
        seq: incremented by one per event; after a gap, take a new snapshot.
        stored: blocks that were added.
        removed: keys of blocks that were removed.
        cleared: whether all earlier blocks were removed, before ``stored`` was added.
    """

    generation: int
    seq: int
    stored: tuple[KVStored, ...] = ()
    removed: tuple[bytes, ...] = ()
    cleared: bool = False


@frozen(kw_only=True)
class KVSnapshot:
    """All blocks in the engine's cache at one moment.

    Attributes:
        generation: of the instance's descriptor.
        seq: the last event that the snapshot includes.
        stored: the blocks, parents before their children.
    """

    generation: int
    seq: int
    stored: tuple[KVStored, ...] = ()


@runtime_checkable
class KVEventSource(Protocol):
    """Additional methods of a backend that claims ``kv_events``."""

    async def kv_snapshot(self) -> KVSnapshot: ...
    def kv_events(self, since: int) -> AsyncIterator[KVEvents]:
        """Yield events after ``since`` (the ``seq`` of a snapshot or event) until the backend is closed.

        A reader that is too slow, or whose ``since`` is no longer buffered, sees a gap in ``seq``. Several
        readers are allowed.
        """
        ...

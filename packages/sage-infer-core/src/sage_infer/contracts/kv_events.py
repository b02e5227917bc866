"""Contract of an engine that reports which KV it holds: the basis of cache-aware routing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol, runtime_checkable

from attrs import frozen

from sage_infer.schemas.kv_chunk import MemoryTier

__all__ = ["KVEventSource", "KVEvents", "KVSnapshot", "KVStored"]


@frozen(kw_only=True)
class KVStored:
    """A run of blocks that an engine holds, each the parent of the next.

    Attributes:
        parent: key of the block before the first; None at the start of a sequence.
        keys: keys of the blocks, as ``block_keys`` names them.
        token_ids: the blocks' tokens, one block after another.
        tier: where they lie.
        salt: what was folded into the keys, as the engine was given it.
        adapter: LoRA adapter that they were computed with; empty for none.
    """

    parent: bytes | None
    keys: tuple[bytes, ...]
    token_ids: tuple[int, ...]
    tier: MemoryTier = "hbm"
    salt: bytes = b""
    adapter: str = ""


@frozen(kw_only=True)
class KVEvents:
    """Changes since the last one. ``seq`` grows by one; a gap or a new generation means: take a snapshot."""

    generation: int
    seq: int
    stored: tuple[KVStored, ...] = ()
    removed: tuple[bytes, ...] = ()
    cleared: bool = False


@frozen(kw_only=True)
class KVSnapshot:
    """Everything that the engine holds, as of the event ``seq``."""

    generation: int
    seq: int
    stored: tuple[KVStored, ...] = ()


@runtime_checkable
class KVEventSource(Protocol):
    """Additional methods of a backend that claims ``kv_events``."""

    async def kv_snapshot(self) -> KVSnapshot: ...
    def kv_events(self, since: int) -> AsyncIterator[KVEvents]:
        """Events after ``since`` (the ``seq`` of a snapshot or event), as they come, until the backend is
        closed.

        A reader that is too slow, or whose ``since`` is no longer kept, sees a gap in ``seq``. Several may
        read.
        """
        ...

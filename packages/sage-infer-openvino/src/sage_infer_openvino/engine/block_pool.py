"""The KV block pool: ref counts, and cached contents of free blocks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

__all__ = ["BlockPool"]


class BlockPool:
    """Allocates blocks, and shares cached blocks by the key of their content. Cached blocks are immutable.

    A block with ref count 0 keeps its content and key until it is reallocated, least recently freed first.
    ``on_removed`` is then called with the key.
    """

    def __init__(self, total: int, on_removed: Callable[[bytes], None] | None = None) -> None:
        self.total = total
        self._on_removed = on_removed
        self._holders = [0] * total
        self._empty = list(range(total - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # free but cached, next to be evicted first
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def free(self) -> int:
        """Free blocks."""
        return len(self._empty) + len(self._cached)

    @property
    def cached(self) -> int:
        """Free blocks that are still cached."""
        return len(self._cached)

    def allocate(self, count: int) -> list[int]:
        """Allocate ``count`` writable blocks; the caller has checked availability."""
        taken = self._empty[max(len(self._empty) - count, 0) :]
        del self._empty[len(self._empty) - len(taken) :]
        while len(taken) < count:
            block, _ = self._cached.popitem(last=False)
            key = self._key_of.pop(block)
            del self._block_of[key]
            if self._on_removed is not None:
                self._on_removed(key)
            taken.append(block)
        for block in taken:
            self._holders[block] = 1
        return taken

    def find(self, key: bytes) -> int | None:
        """The cached block with this key."""
        return self._block_of.get(key)

    def ref_count(self, block: int) -> int:
        """Ref count of the block."""
        return self._holders[block]

    def share(self, block: int) -> None:
        """Add a reference to a cached block."""
        self._holders[block] += 1
        self._cached.pop(block, None)

    def publish(self, block: int, key: bytes) -> bool:
        """Cache a referenced block; it is full and will not be written again.

        Returns False if it, or another block with the same content, is already cached.
        """
        if key in self._block_of or block in self._key_of:
            return False
        self._block_of[key] = block
        self._key_of[block] = key
        return True

    def release(self, blocks: list[int]) -> None:
        """Release a sequence's blocks; the last ones are evicted first."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if block in self._key_of:
                    self._cached[block] = None
                else:
                    self._empty.append(block)
        blocks.clear()

"""The KV blocks: how many hold each, and what the free ones still contain."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

__all__ = ["BlockPool"]


class BlockPool:
    """Blocks are found by the key of their content, and shared; what is found is never written again.

    A block that nobody holds keeps its content, and its key, until it is taken for something else: least recently
    given back first. ``on_removed`` is then called with the key.
    """

    def __init__(self, total: int, on_removed: Callable[[bytes], None] | None = None) -> None:
        self.total = total
        self._on_removed = on_removed
        self._holders = [0] * total
        self._empty = list(range(total - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # free, and found by key; next to be taken first
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._empty) + len(self._cached)

    @property
    def cached(self) -> int:
        """Those of them that can still be found."""
        return len(self._cached)

    def take(self, count: int) -> list[int]:
        """``count`` blocks to write to; the caller has checked that there are as many."""
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
        """The block of this content."""
        return self._block_of.get(key)

    def holders(self, block: int) -> int:
        """How many sequences hold it."""
        return self._holders[block]

    def share(self, block: int) -> None:
        """Hold a block that was found."""
        self._holders[block] += 1
        self._cached.pop(block, None)

    def publish(self, block: int, key: bytes) -> bool:
        """Let a held block be found; it is full and will not be written again.

        False where it is found already, or another one of the same content is.
        """
        if key in self._block_of or block in self._key_of:
            return False
        self._block_of[key] = block
        self._key_of[block] = key
        return True

    def give_back(self, blocks: list[int]) -> None:
        """Let go of a sequence's blocks; its last ones will be the first to be taken."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if block in self._key_of:
                    self._cached[block] = None
                else:
                    self._empty.append(block)
        blocks.clear()

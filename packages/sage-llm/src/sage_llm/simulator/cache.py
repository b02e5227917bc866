"""The KV blocks of one simulated instance: pinned ones, cached ones, and lower tiers.

Blocks of running requests are pinned. When a request ends, its blocks become cached ones, the last block of its prompt
first in line for eviction. What leaves device memory moves to the next tier, if there is one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from sage_llm.simulator.directory import Directory

__all__ = ["BlockCache", "Found"]


class Found(NamedTuple):
    """Leading blocks of a prompt that an instance holds.

    Attributes:
        device: blocks in device memory.
        tiers: further blocks in each lower tier.
    """

    device: int
    tiers: tuple[int, ...] = ()


class BlockCache:
    """Blocks of an instance.

    Args:
        slot: the instance's slot, for events.
        capacity: blocks of device memory.
        lower: blocks of each lower tier, faster tiers first.
        directory: receives an event for each stored and removed block.
    """

    def __init__(self, slot: int, capacity: int, lower: Sequence[int], directory: Directory) -> None:
        self.slot, self.capacity = slot, capacity
        self._directory = directory
        self._pins: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # cached blocks, the next victim first
        self._anonymous = 0  # blocks of running requests that no other request can share
        self._lower: tuple[tuple[int, OrderedDict[int, None]], ...] = tuple(
            (blocks, OrderedDict()) for blocks in lower
        )

    @property
    def used(self) -> int:
        """Blocks that running requests occupy."""
        return len(self._pins) + self._anonymous

    @property
    def cached(self) -> int:
        """Blocks that hold a prefix and can be evicted."""
        return len(self._idle)

    def find(self, keys: Sequence[int]) -> Found:
        """Return how many leading blocks are held, and where."""
        pins, idle = self._pins, self._idle
        device = 0
        for key in keys:
            if key not in pins and key not in idle:
                break
            device += 1
        if not self._lower or device == len(keys):
            return Found(device, (0,) * len(self._lower))
        counts = [0] * len(self._lower)
        for key in keys[device:]:
            if key in pins or key in idle:
                counts[0] += 1  # behind a gap; it costs at most a load
                continue
            for tier, (_, held) in enumerate(self._lower):
                if key in held:
                    counts[tier] += 1
                    break
            else:
                break
        return Found(device, tuple(counts))

    def fits(self, keys: Sequence[int], blocks: int) -> bool:
        """Return whether a request of ``blocks`` blocks, those of ``keys`` included, can begin now."""
        pins = self._pins
        shared = sum(1 for key in keys if key in pins) if pins else 0
        return self.used + blocks - shared <= self.capacity

    def begin(self, keys: Sequence[int], blocks: int) -> None:
        """Pin the blocks of a request that begins; cached blocks make room for new ones."""
        pins, idle = self._pins, self._idle
        new = []
        for key in keys:
            count = pins.get(key)
            if count is not None:
                pins[key] = count + 1
            else:
                pins[key] = 1
                if key in idle:
                    del idle[key]
                else:
                    new.append(key)
        self._anonymous += blocks - len(keys)
        excess = len(pins) + len(idle) + self._anonymous - self.capacity
        if excess > 0:
            self._evict(excess)
        if new:
            self._directory.stored(self.slot, 0, new)

    def end(self, keys: Sequence[int], blocks: int) -> None:
        """Release the blocks of a request that has ended; the full blocks of its prompt stay cached."""
        pins, idle = self._pins, self._idle
        self._anonymous -= blocks - len(keys)
        for key in reversed(keys):
            count = pins[key] - 1
            if count:
                pins[key] = count
            else:
                del pins[key]
                idle[key] = None

    def _evict(self, count: int) -> None:
        for _ in range(count):
            key, _ = self._idle.popitem(last=False)
            self._directory.removed(self.slot, 0, key)
            self._demote(key, 0)

    def _demote(self, key: int, tier: int) -> None:
        """Move a block to a lower tier, which may push its own oldest one down."""
        if tier >= len(self._lower):
            return
        blocks, held = self._lower[tier]
        if key in held:
            held.move_to_end(key)
            return
        held[key] = None
        self._directory.stored(self.slot, tier + 1, (key,))
        if len(held) > blocks:
            oldest, _ = held.popitem(last=False)
            self._directory.removed(self.slot, tier + 1, oldest)
            self._demote(oldest, tier + 1)

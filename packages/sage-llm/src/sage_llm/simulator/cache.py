"""The KV blocks of one simulated instance: pinned ones, cached ones, and lower tiers.

Blocks of running requests are pinned. When a request ends, its blocks become cached ones, the last block of its prompt
used before the first one. What leaves device memory moves to the next tier, if there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import NamedTuple

from attrs import define, field

from sage_llm.simulator.directory import Directory
from sage_llm.simulator.eviction import Eviction

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
        eviction: returns the eviction policy of a tier by its number, 0 for device memory.
    """

    def __init__(
        self,
        slot: int,
        capacity: int,
        lower: Sequence[int],
        directory: Directory,
        eviction: Callable[[int], Eviction],
    ) -> None:
        self.slot, self.capacity = slot, capacity
        self._directory = directory
        self._pins: dict[int, int] = {}
        self._idle: set[int] = set()  # cached blocks
        self._eviction = eviction(0)
        # Blocks that the policy knows: those of ended requests, also if they are pinned again.
        self._known: set[int] = set()
        self._anonymous = 0  # blocks of running requests that no other request can share
        self._lower = tuple(_Tier(blocks, eviction(tier)) for tier, blocks in enumerate(lower, 1))

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
            for tier, lower in enumerate(self._lower):
                if key in lower.held:
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

    def begin(self, keys: Sequence[int], blocks: int, now: float) -> None:
        """Pin the blocks of a request that begins; cached blocks make room for new ones."""
        pins, idle = self._pins, self._idle
        self._eviction.asked(keys, now)
        for lower in self._lower:
            lower.eviction.asked(keys, now)
        new = []
        for key in keys:
            count = pins.get(key)
            if count is not None:
                pins[key] = count + 1
            else:
                pins[key] = 1
                if key in idle:
                    idle.remove(key)
                else:
                    new.append(key)
        self._anonymous += blocks - len(keys)
        excess = len(pins) + len(idle) + self._anonymous - self.capacity
        if excess > 0:
            self._evict(excess, now)
        if new:
            self._directory.stored(self.slot, 0, new)

    def end(self, keys: Sequence[int], blocks: int, now: float) -> None:
        """Release the blocks of a request that has ended; the full blocks of its prompt stay cached."""
        pins, idle, known, eviction = self._pins, self._idle, self._known, self._eviction
        self._anonymous -= blocks - len(keys)
        for key in reversed(keys):
            count = pins[key] - 1
            if count:
                pins[key] = count
            else:
                del pins[key]
                idle.add(key)
            if key in known:
                eviction.used(key, now)
            else:
                known.add(key)
                eviction.add(key, now)

    def _evict(self, count: int, now: float) -> None:
        idle = self._idle
        for key in list(islice((key for key in self._eviction.order(now) if key in idle), count)):
            idle.remove(key)
            self._known.remove(key)
            self._eviction.remove(key)
            self._directory.removed(self.slot, 0, key)
            self._demote(key, 0, now)

    def _demote(self, key: int, tier: int, now: float) -> None:
        """Move a block to a lower tier, which may push one of its own down."""
        if tier >= len(self._lower):
            return
        lower = self._lower[tier]
        if key in lower.held:
            lower.eviction.used(key, now)
            return
        lower.held.add(key)
        lower.eviction.add(key, now)
        self._directory.stored(self.slot, tier + 1, (key,))
        if len(lower.held) > lower.blocks:
            victim = next(lower.eviction.order(now))
            lower.held.remove(victim)
            lower.eviction.remove(victim)
            self._directory.removed(self.slot, tier + 1, victim)
            self._demote(victim, tier + 1, now)


@define(eq=False)
class _Tier:
    blocks: int
    eviction: Eviction
    held: set[int] = field(factory=set)

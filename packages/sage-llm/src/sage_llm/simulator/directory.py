"""Which instances hold which blocks, as a gateway knows it: the mappings that policies read."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

__all__ = ["Directory"]


class Directory:
    """Holders of blocks by tier, from the events of the simulated instances.

    Args:
        tiers: number of tiers, device memory included.
        delay_s: time from an event to its arrival here.
    """

    def __init__(self, tiers: int, delay_s: float = 0.0) -> None:
        self.tiers: tuple[dict[int, int], ...] = tuple({} for _ in range(tiers))
        self._delay = delay_s
        self._under_way: deque[tuple[float, int, int, tuple[int, ...], bool]] = deque()
        self.now = 0.0
        self._masks: dict[int, int] = {}  # equal masks share one object

    def stored(self, slot: int, tier: int, keys: Sequence[int]) -> None:
        """An instance holds further blocks."""
        if self._delay:
            self._under_way.append((self.now + self._delay, slot, tier, tuple(keys), True))
        else:
            self._store(slot, tier, keys)

    def removed(self, slot: int, tier: int, key: int) -> None:
        """An instance no longer holds a block."""
        if self._delay:
            self._under_way.append((self.now + self._delay, slot, tier, (key,), False))
        else:
            self._remove(slot, tier, key)

    def advance(self, now: float) -> None:
        """Apply the events that have arrived by ``now``."""
        self.now = now
        while self._under_way and self._under_way[0][0] <= now:
            _, slot, tier, keys, is_stored = self._under_way.popleft()
            if is_stored:
                self._store(slot, tier, keys)
            else:
                for key in keys:
                    self._remove(slot, tier, key)

    def clear(self, slot: int) -> None:
        """Forget an instance, whose memory is gone."""
        self._under_way = deque(event for event in self._under_way if event[1] != slot)
        keep = ~(1 << slot)
        for holders in self.tiers:
            for key in [key for key, mask in holders.items() if not mask & keep]:
                del holders[key]
            for key, mask in holders.items():
                holders[key] = mask & keep

    def _store(self, slot: int, tier: int, keys: Sequence[int]) -> None:
        holders, bit, masks = self.tiers[tier], 1 << slot, self._masks
        if len(masks) > 65_536:
            masks.clear()
        for key in keys:
            mask = holders.get(key, 0) | bit
            holders[key] = masks.setdefault(mask, mask)

    def _remove(self, slot: int, tier: int, key: int) -> None:
        holders = self.tiers[tier]
        mask = holders.get(key, 0) & ~(1 << slot)
        if mask:
            holders[key] = mask
        else:
            holders.pop(key, None)

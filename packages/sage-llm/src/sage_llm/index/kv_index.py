"""Which instances hold which KV blocks, kept up to date by events or predicted from our own placements.

Per tier, a dictionary maps the key of a block to the mask of the instances that hold it. Its size is bounded from the
start: above the bound, the blocks used longest ago are forgotten, which costs cache hits and nothing else.

An instance's bit is trusted only while its events are complete. After a gap in the sequence, a new generation or a
cleared cache, the bit is invalid until the old bits have been removed (``sweep``, in small steps) and a snapshot of the
instance has been applied. Until then the instance is placed by its load only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from attrs import define, field
from sage_infer.contracts.kv_events import KVEvents, KVSnapshot, KVStored

from sage_llm.index.keys import engine_key, next_keys, prompt_keys, root_key
from sage_llm.index.predicted import Predicted
from sage_llm.types import KVView

__all__ = ["BYTES_PER_KEY", "KVIndex"]

BYTES_PER_KEY = 96
"""Upper bound of the bytes that an entry of a dictionary takes: 30 to 60 in its table, depending on how full it is, 32
for the key. Measured by ``benchmarks/scheduler.py``."""

_TIERS = {"hbm": 0, "dram": 1, "ssd": 2}
_SWEEP = 4096
_MAX_MASKS = 65_536
_CHECK = 256  # entries added between two checks of the bound


@define
class _Source:
    """An instance that reports its blocks."""

    generation: int
    model: str
    block: int
    space: str
    seq: int = -1
    synced: bool = False
    swept: bool = False
    predicted: Predicted | None = field(default=None)


class KVIndex:
    """Holders of KV blocks by tier.

    Args:
        max_bytes: bound of the index's memory.
    """

    def __init__(self, *, max_bytes: int = 256 << 20) -> None:
        if max_bytes < BYTES_PER_KEY * 1024:
            raise ValueError(f"max_bytes must be at least {BYTES_PER_KEY * 1024}, not {max_bytes}")
        self._max_entries = max_bytes // BYTES_PER_KEY
        self._tiers: tuple[dict[int, int], ...] = ({}, {}, {})
        self._engine_keys: dict[str, dict[int, int]] = {}
        self._masks: dict[int, int] = {}  # equal masks share one object
        self._sources: dict[int, _Source] = {}
        self._blocks: dict[str, int] = {}
        self._retired = 0  # bits to be removed by the present sweep
        self._next_retired = 0  # bits to be removed by the next one
        self._sweep: Iterator[tuple[dict[int, int], int]] | None = None
        self._sweep_left = 0
        self._valid: int | None = 0
        self._unchecked = 0  # entries added since the bound was checked
        self.evicted = 0

    # --- what snapshots use

    @property
    def device(self) -> KVView:
        """Holders of blocks in device memory."""
        return self._tiers[0]

    @property
    def lower(self) -> tuple[KVView, ...]:
        """Holders of blocks in the host's memory and on disk; empty while no instance has reported any."""
        return self._tiers[1:] if self._tiers[1] or self._tiers[2] else ()

    def valid(self) -> int:
        """Return the mask of the instances whose bits can be trusted."""
        if self._valid is None:
            self._valid = 0
            for slot, source in self._sources.items():
                if source.synced or (source.predicted and source.swept and source.predicted.trusted):
                    self._valid |= 1 << slot
        return self._valid

    def block(self, model: str) -> int:
        """Return the number of tokens per key of a model: the block size of its first instance; 0 if none has KV."""
        return self._blocks.get(model, 0)

    def __len__(self) -> int:
        return sum(map(len, self._tiers))

    @property
    def used_bytes(self) -> int:
        """Upper bound of the memory in use."""
        return self._entries() * BYTES_PER_KEY

    def _entries(self) -> int:
        return len(self) + sum(map(len, self._engine_keys.values()))

    # --- instances

    def add(
        self, slot: int, generation: int, model: str, block: int, *, key_space: str | None, events: bool
    ) -> None:
        """Add an instance, or its next generation.

        Args:
            block: tokens per KV block of the instance.
            key_space: its key space; instances with the same one share engine keys. None for an unknown one.
            events: whether it reports its blocks. If not, or if its blocks have another size than those of the
                model's first instance, its blocks are predicted from placements (``predict``).
        """
        self.remove(slot)
        common = self._blocks.setdefault(model, block)
        space = key_space or f"slot {slot}"
        source = _Source(generation, model, block, f"{space} {model}")
        if not events or block != common:
            source.predicted = Predicted()
        self._sources[slot] = source
        self._progress()

    def keys(
        self, model: str, tokens: Sequence[int], *, salt: bytes = b"", adapter: str = ""
    ) -> tuple[int, ...]:
        """Return the keys of a prompt for this index; none if no instance of the model has KV.

        Args:
            salt: the request's ``cache_salt`` as UTF-8; requests with different salts share no key.
        """
        block = self._blocks.get(model, 0)
        if not block:
            return ()
        return prompt_keys(tokens, block, root_key(model, salt=salt, adapter=adapter, block=block))

    def remove(self, slot: int) -> None:
        """Forget an instance and what it holds."""
        source = self._sources.pop(slot, None)
        if source is not None:
            if all(other.space != source.space for other in self._sources.values()):
                self._engine_keys.pop(source.space, None)
            self._retire(slot)

    def _retire(self, slot: int) -> None:
        self._valid = None
        if self._sweep is None:
            self._retired |= 1 << slot
        else:
            self._next_retired |= 1 << slot
        self.sweep(_SWEEP)

    # --- events

    def resync(self) -> list[int]:
        """Return the slots whose snapshot should be taken and applied now."""
        return [
            s
            for s, source in self._sources.items()
            if source.swept and not source.synced and not source.predicted
        ]

    def apply(self, slot: int, snapshot: KVSnapshot) -> bool:
        """Apply a snapshot of an instance. Returns whether it was applied.

        It is not applied if it is from another generation, or if the instance's earlier bits are not swept yet.
        """
        source = self._sources.get(slot)
        if source is None or source.generation != snapshot.generation or not source.swept or source.predicted:
            return False
        source.seq, source.synced, self._valid = snapshot.seq, True, None
        for stored in snapshot.stored:
            self._store(slot, source, stored)
        return True

    def events(self, slot: int, events: KVEvents) -> bool:
        """Apply events of an instance. Returns False if a snapshot is needed first (``resync``).

        Events that a snapshot already includes, and those of other generations, are ignored.
        """
        source = self._sources.get(slot)
        if source is None or source.generation != events.generation or source.predicted:
            return True
        if not source.synced:
            return False
        if events.seq <= source.seq:
            return True
        if events.seq != source.seq + 1 or events.cleared:
            source.synced = source.swept = False
            self._retire(slot)
            return False
        source.seq = events.seq
        bit = 1 << slot
        known = self._engine_keys.get(source.space, {})
        for removed in events.removed:
            short = engine_key(removed)
            key = known.get(short)
            if key is not None and not self._clear(key, bit):
                del known[short]
        for stored in events.stored:
            self._store(slot, source, stored)
        return True

    def _store(self, slot: int, source: _Source, stored: KVStored) -> None:
        tier = _TIERS.get(stored.tier)
        known = self._engine_keys.setdefault(source.space, {})
        if stored.parent is None:
            parent: int | None = root_key(
                source.model, salt=stored.salt, adapter=stored.adapter, block=source.block
            )
        else:
            parent = known.get(engine_key(stored.parent))
        if tier is None or parent is None:
            return  # a remote block, or a continuation of a block that was forgotten
        keys = next_keys(stored.token_ids, source.block, parent)
        for theirs, key in zip(stored.keys, keys, strict=False):
            known[engine_key(theirs)] = key
        self._set(self._tiers[tier], keys, 1 << slot)

    def _set(self, holders: dict[int, int], keys: Sequence[int], bit: int) -> None:
        masks, get = self._masks, holders.get
        if len(masks) > _MAX_MASKS:
            masks.clear()
        for key in reversed(keys):  # the first block last, so that it is forgotten last
            mask = get(key, 0) | bit
            holders[key] = masks.setdefault(mask, mask)
        self._unchecked += len(keys)
        if self._unchecked >= _CHECK:
            self._unchecked = 0
            self._bound()

    def _clear(self, key: int, bit: int) -> bool:
        """Remove a holder in all tiers. Returns whether the block still has another one."""
        held = False
        for holders in self._tiers:
            mask = holders.get(key, 0)
            if mask & bit:
                mask &= ~bit
                if mask:
                    holders[key] = mask
                else:
                    del holders[key]
            held = held or bool(mask)
        return held

    # --- instances without events

    def predict(self, slot: int, keys: Sequence[int], capacity: int) -> None:
        """Assume that an instance without events holds the blocks of a prompt that was dispatched to it.

        Args:
            capacity: blocks of the model's common size that the instance can hold.
        """
        source = self._sources.get(slot)
        if source is None or source.predicted is None or not source.swept:
            return
        self._set(self._tiers[0], keys, 1 << slot)
        for key in source.predicted.hold(keys, capacity):
            self._clear(key, 1 << slot)

    def observe(self, slot: int, expected: int, cached: int) -> None:
        """Compare the expected number of cached prompt tokens with the number that the instance has reported.

        Below 70 % agreement the instance is placed by its load only, until it is above 80 % again.
        """
        source = self._sources.get(slot)
        if source is not None and source.predicted is not None:
            source.predicted.observe(expected, cached)
            self._valid = None

    # --- bounds

    def touch(self, keys: Sequence[int]) -> None:
        """Mark blocks as used now. Call it with the keys of each dispatched prompt."""
        if self._entries() * 2 < self._max_entries:
            return  # nothing will be forgotten soon
        for holders in self._tiers:
            if holders:
                pop = holders.pop
                for key in reversed(keys):
                    mask = pop(key, 0)
                    if mask:
                        holders[key] = mask

    def _bound(self) -> None:
        while self._entries() > self._max_entries:
            largest = max((*self._tiers, *self._engine_keys.values()), key=len)
            batch = list(islice(largest, max(1, len(largest) // 64)))
            for key in batch:
                del largest[key]
            self.evicted += len(batch)

    def sweep(self, limit: int = _SWEEP) -> int:
        """Remove bits of removed or untrusted instances from at most ``limit`` entries.

        Returns the number of entries left to look at, 0 if all is clean. Call it until then, between requests.
        """
        if self._sweep is None:
            if not self._retired:
                self._progress()
                return 0
            copies = [(holders, list(holders)) for holders in self._tiers]
            self._sweep = ((holders, key) for holders, keys in copies for key in keys)
            self._sweep_left = len(self)
        keep = ~self._retired
        for holders, key in islice(self._sweep, limit):
            mask = holders.get(key, 0)
            if mask & ~keep:
                if mask & keep:
                    holders[key] = mask & keep
                else:
                    del holders[key]
        self._sweep_left = max(self._sweep_left - limit, 0)
        if not self._sweep_left:
            self._sweep = None
            self._retired, self._next_retired = self._next_retired, 0
            self._progress()
        return self._sweep_left or (len(self) if self._retired else 0)

    def _progress(self) -> None:
        """Note for which instances the old bits are gone."""
        self._valid = None
        pending = self._retired | self._next_retired
        for slot, source in self._sources.items():
            if not pending >> slot & 1:
                source.swept = True

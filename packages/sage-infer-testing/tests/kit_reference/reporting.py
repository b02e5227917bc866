"""Identity, load and KV events of the reference engine."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from sage_infer.contracts import EngineStats, KVEvents, KVSnapshot, KVStored, block_keys, key_space
from sage_infer.errors import EngineDead
from sage_infer.schemas import CapabilityDescriptor, InstanceDescriptor, InstanceReport

from kit_reference.request import SCHEMA, Request

__all__ = ["PrefixCache", "Reports"]


class PrefixCache:
    """Which blocks were computed, least recently used first, and the events of that."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.blocks: OrderedDict[bytes, KVStored] = OrderedDict()
        self.events: list[KVEvents] = []
        self.generation = 0
        self.changed = asyncio.Event()

    def take(self, name: str, prompt: Sequence[int], salt: bytes) -> int:
        """Add a prompt's blocks; returns how many tokens of its prefix were there."""
        size, hits, stored, parent = SCHEMA.page_size, 0, [], None
        for index, key in enumerate(block_keys(name, SCHEMA, prompt[:-1], salt=salt)):
            if key in self.blocks:
                hits += hits == index
                self.blocks.move_to_end(key)
            else:
                tokens = tuple(prompt[index * size : (index + 1) * size])
                self.blocks[key] = KVStored(parent=parent, keys=(key,), token_ids=tokens, salt=salt)
                stored.append(self.blocks[key])
            parent = key
        removed = [self.blocks.popitem(last=False)[0] for _ in range(len(self.blocks) - self.capacity)]
        if stored or removed:
            self.tell(tuple(stored), tuple(removed))
        return hits * size

    def tell(self, stored: tuple[KVStored, ...], removed: tuple[bytes, ...]) -> None:
        event = KVEvents(generation=self.generation, seq=len(self.events) + 1, stored=stored, removed=removed)
        self.events.append(event)
        self.wake()

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Reports:
    """What a backend with ``reports`` and ``kv_events`` has; the engine mixes it in."""

    name: str
    state: str
    total: int
    free: list[int]
    running: list[Request]
    waiting: list[Request]
    counts: Mapping[str, int]
    cache: PrefixCache
    reported = 0

    def get_capability(self) -> CapabilityDescriptor:
        raise NotImplementedError

    def gauges(self) -> dict[str, Any]:
        now = time.monotonic()
        sequences = [s for r in self.running for s in r.sequences]
        return {
            "running": len(self.running), "waiting": len(self.waiting),
            "waiting_prompt_tokens": sum(len(r.prompt) for r in self.waiting),
            "running_context_tokens": sum(s.computed for s in sequences),
            "oldest_wait_s": max((now - r.accepted for r in self.waiting), default=0.0),
            "kv_blocks_total": self.total, "kv_blocks_free": len(self.free), **self.counts,
        }  # fmt: skip

    def stats(self) -> EngineStats:
        return EngineStats(**self.gauges())

    def describe(self) -> InstanceDescriptor:
        if self.state != "ok":
            raise EngineDead("the engine has stopped; open a new one")
        return InstanceDescriptor(
            instance_id=f"{self.name}-{id(self):x}", generation=self.cache.generation, model_ids=(self.name,),
            capability=self.get_capability(), key_space=key_space(self.name, SCHEMA), addresses=("inproc:",),
        )  # fmt: skip

    def report(self) -> InstanceReport:
        identity = self.describe()
        self.reported += 1
        return InstanceReport(
            instance_id=identity.instance_id, generation=identity.generation, seq=self.reported,
            taken_at=time.monotonic(), state="ready", **self.gauges(),
        )  # fmt: skip

    async def kv_snapshot(self) -> KVSnapshot:
        return KVSnapshot(
            generation=self.cache.generation, seq=len(self.cache.events), stored=tuple(self.cache.blocks.values())
        )  # fmt: skip

    async def kv_events(self, since: int) -> AsyncIterator[KVEvents]:
        while self.state == "ok":
            changed = self.cache.changed
            for event in self.cache.events[since:]:
                since = event.seq
                yield event
            if changed is self.cache.changed:
                await changed.wait()

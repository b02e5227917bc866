"""The choice of the block that leaves a private arena, by a policy other than that of the index."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from sage_infer_kvstore.paged.index import BlockIndex
from sage_infer_kvstore.policies.base import Policy, Request

__all__ = ["Choice"]


class Choice:
    """Keeps a policy informed of an index, and lets it choose. Every call needs the lock of the index."""

    def __init__(self, policy: Policy, index: BlockIndex) -> None:
        self._policy, self._index = policy, index
        self._spared: Collection[bytes] = ()
        index.choose = self._choose

    def asked(self, keys: Sequence[bytes], request: Request) -> None:
        """A request has a prompt of these blocks."""
        self._policy.asked(keys, time.monotonic(), request)

    @contextmanager
    def sparing(self, keys: Collection[bytes]) -> Iterator[None]:
        """Choose none of these blocks meanwhile: they are written together."""
        self._spared = keys
        try:
            yield
        finally:
            self._spared = ()

    def stored(self, keys: Sequence[bytes]) -> None:
        """These blocks were committed."""
        now = time.monotonic()
        for key in keys:
            self._policy.add(key, now)

    def used(self, keys: Sequence[bytes]) -> None:
        """These blocks were read or written again; those that are not held are ignored."""
        now = time.monotonic()
        for key in keys:
            self._policy.used(key, now)

    def dropped(self, keys: Sequence[bytes]) -> None:
        """Blocks may have been dropped without being chosen."""
        for key in keys:
            if not self._index.held(key):
                self._policy.remove(key)

    def _choose(self) -> int:
        """The slot of the first unpinned block in the policy's order; 0 if there is none."""
        index, found, gone = self._index, 0, []
        for key in self._policy.order(time.monotonic()):
            slot = index.held(key)
            if slot and (index.fields.pins[slot] or key in self._spared):
                continue
            gone.append(key)
            if slot:
                found = slot
                break
        for key in gone:  # those before the chosen one were dropped by the index itself
            self._policy.remove(key)
        return found

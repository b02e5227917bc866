"""What a store asks of a policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

__all__ = ["Policy"]


class Policy(Protocol):
    """Knows the blocks that a store may evict, and orders them. ``now`` is in seconds and never falls."""

    def asked(self, keys: Sequence[bytes], now: float) -> None:
        """A request has a prompt of these blocks, in this order; they may be in the store or not."""
        ...

    def add(self, key: bytes, now: float) -> None:
        """A block entered the store."""
        ...

    def used(self, key: bytes, now: float) -> None:
        """A block was read or written again; ignored if it is not in the store."""
        ...

    def remove(self, key: bytes) -> None:
        """A block left the store; ignored if it is not in the store."""
        ...

    def order(self, now: float) -> Iterator[bytes]:
        """All blocks in the store, in the order of eviction. The caller may stop early; nothing changes meanwhile."""
        ...

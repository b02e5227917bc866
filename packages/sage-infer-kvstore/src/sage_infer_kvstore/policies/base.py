"""What a store asks of a policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from attrs import frozen

__all__ = ["Policy", "Request"]


@frozen
class Request:
    """What a store learns about a request besides its blocks.

    Attributes:
        patience_s: seconds that it may wait for its first token: its deadline, or what its priority stands for; None if
            the engine does not tell.
    """

    patience_s: float | None = None


class Policy(Protocol):
    """Knows the blocks that a store may evict, and orders them. ``now`` is in seconds and never falls.

    A policy learns a block's depth in its prompt, and with it the cost to compute it again, from ``asked``; it learns
    how urgent the requests are that use a block from ``Request``. It gets a request before its blocks are read or
    written.
    """

    def asked(self, keys: Sequence[bytes], now: float, request: Request | None = None) -> None:
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

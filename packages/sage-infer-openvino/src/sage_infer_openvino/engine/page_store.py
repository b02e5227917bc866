"""What the scheduler needs of KV outside the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sage_infer.contracts import KeyChain

__all__ = ["NewKeyChain", "PageStore"]

NewKeyChain = Callable[[bytes], KeyChain]
"""An empty chain of keys with this salt; each key identifies a block and its whole prefix."""


class PageStore(Protocol):
    """Pages outside the engine, in the engine thread."""

    def load(self, block: int, page: memoryview) -> None:
        """Write a page's bytes to a block."""
        ...

    def save(self, key: bytes, block: int) -> None:
        """Copy a block, which is full, to the store."""
        ...

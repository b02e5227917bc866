"""Which pages an engine's own cache is assumed to have."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

__all__ = ["RecentKeys"]


class RecentKeys:
    """The most recently used pages, ``limit`` of them. A wrong assumption costs one request its reuse."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._keys: OrderedDict[bytes, None] = OrderedDict()

    def leading(self, keys: Sequence[bytes]) -> int:
        """How many keys at the start of ``keys`` are among them."""
        return next((i for i, key in enumerate(keys) if key not in self._keys), len(keys))

    def use(self, keys: Iterable[bytes]) -> None:
        """An engine has these pages, or computes them now."""
        for key in keys:
            self._keys[key] = None
            self._keys.move_to_end(key)
        while len(self._keys) > self._limit:
            self._keys.popitem(last=False)

    def forget(self, keys: Iterable[bytes]) -> None:
        """The engine did not have some of these."""
        for key in keys:
            self._keys.pop(key, None)

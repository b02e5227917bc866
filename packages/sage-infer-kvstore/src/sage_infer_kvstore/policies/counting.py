"""Policies by the uses of each block alone: ``lru`` and ``hotness``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from sage_infer_kvstore.policies.base import Request

__all__ = ["Hotness", "LeastRecentlyUsed"]


class LeastRecentlyUsed:
    """The block that was used longest ago leaves first."""

    def __init__(self) -> None:
        self._keys: OrderedDict[bytes, None] = OrderedDict()

    def asked(self, keys: Sequence[bytes], now: float, request: Request | None = None) -> None:
        pass

    def add(self, key: bytes, now: float) -> None:
        self._keys[key] = None
        self._keys.move_to_end(key)

    def used(self, key: bytes, now: float) -> None:
        if key in self._keys:
            self._keys.move_to_end(key)

    def remove(self, key: bytes) -> None:
        self._keys.pop(key, None)

    def order(self, now: float) -> Iterator[bytes]:
        return iter(self._keys)


class Hotness:
    """The block with the fewest uses leaves first, the least recently used among equals.

    Uses are counted in classes of powers of two up to ``2**classes``, and all are halved after as many uses as there
    are blocks times ``age``, so that what was hot once does not stay for ever.
    """

    def __init__(self, classes: int = 4, age: int = 8) -> None:
        self._classes: list[OrderedDict[bytes, None]] = [OrderedDict() for _ in range(classes + 1)]
        self._uses: dict[bytes, int] = {}
        self._age = age
        self._since = 0

    def asked(self, keys: Sequence[bytes], now: float, request: Request | None = None) -> None:
        pass

    def add(self, key: bytes, now: float) -> None:
        self.remove(key)
        self._uses[key] = 1
        self._classes[0][key] = None

    def used(self, key: bytes, now: float) -> None:
        if key not in self._uses:
            return
        self._classes[self._class_of(key)].pop(key)
        self._uses[key] = min(self._uses[key] + 1, 2 ** (len(self._classes) - 1))
        self._classes[self._class_of(key)][key] = None
        self._since += 1
        if self._since >= self._age * len(self._uses):
            self._halve()

    def remove(self, key: bytes) -> None:
        if key in self._uses:
            del self._classes[self._class_of(key)][key]
            del self._uses[key]

    def order(self, now: float) -> Iterator[bytes]:
        for keys in self._classes:
            yield from keys

    def _class_of(self, key: bytes) -> int:
        return self._uses[key].bit_length() - 1

    def _halve(self) -> None:
        self._since = 0
        ordered = [key for keys in self._classes for key in keys]
        for keys in self._classes:
            keys.clear()
        for key in ordered:
            self._uses[key] = max(1, self._uses[key] // 2)
            self._classes[self._class_of(key)][key] = None

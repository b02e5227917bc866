"""Which cached blocks leave a tier first: the least recently used ones, or those that a policy of KV stores names.

The policies of stores are the live objects, found by their name among the installed plug-ins.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from sage_infer.errors import ConfigError, InvalidRequest
from sage_infer.factories import call_path
from sage_infer.plugins import list_plugins

__all__ = ["Eviction", "LeastRecentlyUsed", "check_eviction", "eviction_of"]

_LRU = "lru"


class Eviction(Protocol):
    """Knows the blocks of one tier of one instance, and orders them. ``now`` is in seconds and never falls."""

    def asked(self, keys: Sequence[Any], now: float) -> None:
        """A request has a prompt of these blocks, in this order; they may be in the tier or not."""
        ...

    def add(self, key: Any, now: float) -> None:
        """A block entered the tier."""
        ...

    def used(self, key: Any, now: float) -> None:
        """A block in the tier was used again."""
        ...

    def remove(self, key: Any) -> None:
        """A block left the tier."""
        ...

    def order(self, now: float) -> Iterator[Any]:
        """All blocks in the tier, the next victim first."""
        ...


class LeastRecentlyUsed:
    """The block that was used longest ago leaves first, as in engines."""

    def __init__(self) -> None:
        self._keys: OrderedDict[Any, None] = OrderedDict()

    def asked(self, keys: Sequence[Any], now: float) -> None:
        pass

    def add(self, key: Any, now: float) -> None:
        self._keys[key] = None
        self._keys.move_to_end(key)

    def used(self, key: Any, now: float) -> None:
        self._keys.move_to_end(key)

    def remove(self, key: Any) -> None:
        del self._keys[key]

    def order(self, now: float) -> Iterator[Any]:
        return iter(self._keys)


def eviction_of(text: str, tier: int, page_size: int) -> Eviction:
    """Return a new policy for a tier (0 is device memory) of blocks of ``page_size`` tokens.

    Args:
        text: one name for all tiers, or one for each tier with ``/`` between them, of which the last one also applies
            to further tiers: ``lru/reuse``.

    Raises:
        InvalidRequest: no installed KV store has a policy of this name.
    """
    names = text.split("/")
    name = names[min(tier, len(names) - 1)].strip()
    if name == _LRU:
        return LeastRecentlyUsed()
    errors = []
    for path, title in _factories().items():
        try:
            found: Eviction = call_path(path, name, page_size, what=title)
        except ConfigError as error:
            errors.append(f"{title}: {error.message}")
        else:
            return found
    known = "; ".join(errors) or "other policies are those of KV stores: pip install sage-infer-kvstore"
    raise InvalidRequest(f"no eviction policy {name!r}: the simulator has {_LRU}; {known}")


def check_eviction(text: str) -> None:
    """Check each name of ``eviction_of``.

    Raises:
        InvalidRequest: no installed KV store has a policy of this name.
    """
    for tier in range(text.count("/") + 1):
        eviction_of(text, tier, 1)


def _factories() -> dict[str, str]:
    """Factories of policies, with the names of the plug-ins that have them."""
    rows = (row for row in list_plugins("store") if row.kind == "store" and row.state != "disabled")
    return {row.spec.eviction: row.title for row in rows if getattr(row.spec, "eviction", None)}

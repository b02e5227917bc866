"""Pages on their way between a ``KVBroker`` and its store, and how many there were."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, frozen

__all__ = ["Counts", "FetchedPages", "Save"]


class FetchedPages:
    """Pages of one request in buffers of the broker. Dropping the object returns the buffers.

    ``is_deferred`` means that pages of other requests were in the way: ``KVBroker.fetch_later`` waits for them.
    """

    def __init__(self, pages: dict[bytes, memoryview] | None = None, *, is_deferred: bool = False) -> None:
        self.pages = pages or {}
        self.is_deferred = is_deferred

    def take(self, key: bytes) -> memoryview | None:
        """The page of this key, once."""
        return self.pages.pop(key, None)


@define
class Counts:
    """What the broker reports, in pages where nothing else is said."""

    fetched: int = 0
    saved: int = 0
    dropped: int = 0  # not saved: the queue was full, or the store did not take them
    corrupt: int = 0
    skipped_requests: int = 0  # not looked up: too many bytes in flight, or the store is left alone
    late_requests: int = 0
    later_requests: int = 0  # that got their pages while they waited
    prefetched: int = 0  # in the fastest tier of the store, or on their way there, while their request waited
    failures: int = 0


@frozen
class Save:
    """A page that waits for the store. ``done`` is called when its buffer is no longer read."""

    key: bytes
    buffer: memoryview
    done: Callable[[], object]

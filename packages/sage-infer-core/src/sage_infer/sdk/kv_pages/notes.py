"""What a KV store learns about requests, through the optional method ``note_request``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Note", "note_of", "patience"]

Note = Callable[[Sequence[bytes], float | None], None]
"""Called with the blocks of a prompt, and with the patience of its request."""

_LATER_S = 60.0  # patience of requests behind others


def patience(*, priority: int, deadline_s: float | None) -> float | None:
    """Seconds that a request may wait for its first token: its deadline, a minute if others are ahead of it by their
    priority, and else None: unknown.
    """
    if deadline_s is not None:
        return max(deadline_s, 0.0)
    return _LATER_S if priority > 0 else None


def note_of(store: Any) -> Note | None:
    """The method ``note_request`` of a store, which may lack the argument ``patience_s``; None if it has none."""
    method = getattr(store, "note_request", None)
    if method is None:
        return None
    try:
        takes_patience = "patience_s" in inspect.signature(method).parameters
    except (TypeError, ValueError):
        takes_patience = False

    def note(keys: Sequence[bytes], patience_s: float | None) -> None:
        if takes_patience:
            method(keys, patience_s=patience_s)
        else:
            method(keys)

    return note

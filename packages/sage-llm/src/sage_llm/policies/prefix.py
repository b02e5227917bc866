"""Search of cached prefixes: how many leading blocks of a prompt do instances hold?

The search assumes that an instance that holds a block also holds the blocks before it. Engines evict the last blocks of
a sequence first, so this is nearly always true; otherwise an estimate is wrong, never a result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["deepest"]


def deepest(
    get: Callable[[int, int], int], keys: Sequence[int], mask: int, *, low: int = 0, high: int | None = None
) -> int:
    """Return the largest number of leading blocks that one instance of ``mask`` holds.

    Args:
        get: ``KVView.get``.
        keys: keys of the prompt's blocks.
        mask: instances to consider.
        low: number of blocks that are known to be held.
        high: upper bound of the result; the default is the number of keys.
    """
    top = len(keys) if high is None else high
    # Gallop up from the known depth: most prompts share a short prefix with others or nearly all with one.
    step = 1
    while low < top:
        probe = low + step
        if probe > top:  # ``min`` would cost as much as the look-up
            probe = top
        if get(keys[probe - 1], 0) & mask:
            low = probe
            step *= 2
        else:
            top = probe - 1
            break
    while low < top:
        middle = (low + top + 1) // 2
        if get(keys[middle - 1], 0) & mask:
            low = middle
        else:
            top = middle - 1
    return low

"""Upper bounds of the hit rate, computed with the whole trace known."""

from __future__ import annotations

import heapq
from array import array
from typing import Any

from attrs import asdict, frozen

from sage_llm.simulator.traces import Trace

__all__ = ["Bounds", "bounds_of"]

_NEVER = 2**62


@frozen(kw_only=True)
class Bounds:
    """Hit rates that no policy exceeds: shares of the prompts' blocks.

    Attributes:
        blocks: size of the cache.
        unlimited: hit rate of one cache without a limit.
        belady: hit rate of one cache of ``blocks`` blocks that evicts the block whose next use is furthest.
    """

    blocks: int
    unlimited: float
    belady: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def bounds_of(trace: Trace, blocks: int) -> Bounds:
    """Return the bounds for a cache of so many blocks; memory grows with the trace's number of blocks."""
    total = trace.summary.blocks
    return Bounds(blocks=blocks, unlimited=_unlimited(trace) / total, belady=_belady(trace, blocks) / total)


def _unlimited(trace: Trace) -> int:
    seen: set[int] = set()
    hits = 0
    for row in trace.rows():
        for key in row.keys:
            if key not in seen:
                break
            hits += 1
        seen.update(row.keys)
    return hits


def _belady(trace: Trace, blocks: int) -> int:
    uses = array("q")  # of each use of a block, the number of the request that uses it next
    last: dict[int, int] = {}  # place in ``uses`` of a block's last use
    for number, row in enumerate(trace.rows()):
        for key in row.keys:
            before = last.get(key)
            if before is not None:
                uses[before] = number
            last[key] = len(uses)
            uses.append(_NEVER)
    last.clear()
    held: dict[int, int] = {}  # next use by block
    furthest: list[tuple[int, int]] = []
    hits = place = 0
    for row in trace.rows():
        found = True
        for key in row.keys:
            found = found and key in held
            hits += found
        for key in row.keys:
            following = uses[place]
            place += 1
            if following == _NEVER:
                held.pop(key, None)  # it is not worth a place
                continue
            held[key] = following
            heapq.heappush(furthest, (-following, key))
        while len(held) > blocks:
            when, key = heapq.heappop(furthest)
            if held.get(key) == -when:
                del held[key]
        if len(furthest) > 4 * blocks + 1024:
            furthest = [(-following, key) for key, following in held.items()]
            heapq.heapify(furthest)
    return hits

"""Reserves: which running requests are paused so that a reserve returns to its owner."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from sage_llm.policies.base import RELEASE_S, blocks_needed, can_take, eligible
from sage_llm.policies.preempt import RunningView, fewest, latest_first
from sage_llm.types import RequestView, Snapshot, slots

__all__ = ["borrowers"]


def borrowers(
    request: RequestView,
    running: Sequence[RunningView],
    snapshot: Snapshot,
    allowed: Callable[[Iterable[str]], Iterator[str]],
) -> tuple[str, ...]:
    """Return the requests to pause for a waiting one that is within its reserve; empty if it should wait.

    They run on one instance, and are as few as possible: those of the largest band first, of these the latest ones.

    Args:
        running: requests that can be paused.
        allowed: of the ids of running requests, those that are not within a reserve of their own, in the same order.
    """
    group, mask = eligible(request, snapshot)
    if group is None or request.kind != "generate":
        return ()
    found: tuple[str, ...] = ()
    for slot in slots(mask):
        view = snapshot.instances[slot]
        if view is None:
            continue
        if can_take(request, view, blocks_needed(request, view)):
            return ()  # it is about to be dispatched
        if view.queued_tokens > view.chunk + RELEASE_S * view.rate:
            continue  # its place would not begin sooner
        here = {one.id: one for one in latest_first([one for one in running if one.slot == slot])}
        chosen = fewest(request, [here[name] for name in allowed(here)], view)
        if chosen and (not found or len(chosen) < len(found)):
            found = chosen
    return found

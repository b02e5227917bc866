"""Preemption: which running requests are paused so that a more urgent one begins in time."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from sage_llm.policies.base import RELEASE_S, blocks_needed, eligible
from sage_llm.types import InstanceView, RequestView, Snapshot, slots

__all__ = ["RunningView", "fewest", "latest_first", "victims"]

_UNKNOWN = 0.5  # share of the target that is waited where the speed of an instance is unknown


@frozen
class RunningView:
    """A running request that can be paused and continued exactly.

    Attributes:
        id: id of the request.
        slot: instance that it runs on.
        band: priority band; requests of smaller bands may take its place.
        since: time of its dispatch.
        blocks: KV blocks reserved for it.
    """

    id: str
    slot: int
    band: int
    since: float
    blocks: int


def victims(
    request: RequestView,
    running: Sequence[RunningView],
    snapshot: Snapshot,
    left_tokens: float,
) -> tuple[str, ...]:
    """Return the requests to pause for a waiting one; empty if it should wait.

    Nothing is paused for a request without a TTFT target, or if a running request is expected to end before the
    target. The victims run on one instance, are of larger bands, and are as few as possible: those of the largest band
    first, of these the latest ones.

    Args:
        running: requests that can be paused.
        left_tokens: expected output tokens until the first of the running requests ends by itself.
    """
    group, mask = eligible(request, snapshot)
    if group is None or request.slo_ttft is None or request.kind != "generate":
        return ()
    found: tuple[str, ...] = ()
    waited = snapshot.now - request.arrived
    for slot in slots(mask):
        view = snapshot.instances[slot]
        if view is None or waited + _natural_s(view, left_tokens, request.slo_ttft) <= request.slo_ttft:
            continue
        if view.queued_tokens > view.chunk + RELEASE_S * view.rate:
            continue  # its place would not begin sooner
        lower = [one for one in running if one.slot == slot and one.band > request.band]
        chosen = fewest(request, latest_first(lower), view)
        if chosen and (not found or len(chosen) < len(found)):
            found = chosen
    return found


def _natural_s(view: InstanceView, left_tokens: float, target: float) -> float:
    """Expected time until a request ends on an instance by itself."""
    if view.decode_rate <= 0:
        return target * _UNKNOWN
    return left_tokens * max(view.running, 1) / view.decode_rate


def latest_first(running: Sequence[RunningView]) -> list[RunningView]:
    """Those of the largest band first, of these the latest ones."""
    return sorted(running, key=lambda one: (-one.band, -one.since, one.id))


def fewest(request: RequestView, running: Sequence[RunningView], view: InstanceView) -> tuple[str, ...]:
    """The first of ``running`` that make room on their instance together.

    Empty if there are too few, or if room is not what is missing.
    """
    places = view.open - view.max_batch + 1 if view.max_batch else 0
    blocks = blocks_needed(request, view) - (view.kv_total - view.kv_reserved) if view.kv_total else 0
    if (view.open_limit and view.open >= view.open_limit) or (places <= 0 and blocks <= 0):
        return ()
    chosen: list[str] = []
    for one in running:
        chosen.append(one.id)
        places -= 1
        blocks -= one.blocks
        if places <= 0 and blocks <= 0:
            return tuple(chosen)
    return ()

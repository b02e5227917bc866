"""Placement by load, in turn, or by session: policies that a reader knows from other routers."""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen, validators
from xxhash import xxh3_64_intdigest

from sage_llm.policies.base import decide, eligible, nowhere
from sage_llm.policies.kv_cost import KVCost
from sage_llm.policies.search import Search, cached_tokens
from sage_llm.types import Decision, Group, InstanceView, RequestView, Snapshot, slots

__all__ = ["Adaptive", "Affinity", "LeastTokens", "PowerOfTwo", "RoundRobin"]


@frozen(kw_only=True)
class RoundRobin:
    """Each instance in turn, passing over those that cannot take a request now."""

    name: ClassVar[str] = "round-robin"

    def place(self, request: RequestView, snapshot: Snapshot) -> Decision:
        _, mask = eligible(request, snapshot)
        views = _fitting(request, snapshot, mask)
        if not views:
            return nowhere(self.name, request, snapshot)
        start = snapshot.decisions % len(views)
        turn = [*views[start:], *views[:start]]
        return _first(self.name, request, snapshot, turn)


@frozen(kw_only=True)
class LeastTokens:
    """The instance whose queue of prompt tokens is computed first; of equal ones, the one with the smaller batch."""

    name: ClassVar[str] = "least-tokens"

    def place(self, request: RequestView, snapshot: Snapshot) -> Decision:
        group, mask = eligible(request, snapshot)
        views = _fitting(request, snapshot, mask, group)
        if not views:
            return nowhere(self.name, request, snapshot)
        views.sort(key=lambda view: (view.queue_s, view.running, view.slot))
        return _first(self.name, request, snapshot, views)


@frozen(kw_only=True)
class PowerOfTwo:
    """The cheaper of two instances drawn by the request's id: uncached and queued tokens with equal weight.

    It needs no fresh view of all instances, so many gateways with old reports do not all choose the same one.
    """

    name: ClassVar[str] = "power-of-two"

    def place(self, request: RequestView, snapshot: Snapshot) -> Decision:
        group, mask = eligible(request, snapshot)
        if group is None or not mask:
            return nowhere(self.name, request, snapshot)
        first = _draw(mask, f"{request.id}/0")
        second = _draw(mask & ~(1 << first) or mask, f"{request.id}/1")
        search = Search(request, snapshot, group, mask)
        for slot in dict.fromkeys((first, second)):
            search.consider((slot,), request.prompt_tokens - cached_tokens(request, snapshot, slot))
        best = search.candidates()
        if not best:  # neither can ever hold it
            return KVCost(alpha=1.0).place(request, snapshot)
        if best[0].cost == best[-1].cost and best[0].slot != first:
            best = best[::-1]  # equal ones as they were drawn
        return decide(
            self.name, request, _view(snapshot, best[0].slot), uncached=best[0].uncached, candidates=best
        )


@frozen(kw_only=True)
class Affinity:
    """The instance of the session's last request, else one chosen by a hash; the least loaded one if that is behind.

    Requests without a session are hashed by their first KV block, so that equal beginnings meet.

    Attributes:
        max_wait_s: seconds that the chosen instance's queue may be longer than the shortest one.
    """

    name: ClassVar[str] = "affinity"

    max_wait_s: float = field(default=2.0, validator=validators.ge(0))

    def place(self, request: RequestView, snapshot: Snapshot) -> Decision:
        group, mask = eligible(request, snapshot)
        views = _fitting(request, snapshot, mask)
        if group is None or not views:
            return nowhere(self.name, request, snapshot)
        last = snapshot.places.get(request.session, -1) if request.session else -1
        home = next((view for view in views if view.slot == last), None)
        if home is None:
            key = request.session or (str(request.keys[0]) if request.keys else request.tenant or request.id)
            home = max(views, key=lambda view: xxh3_64_intdigest(f"{key}@{view.instance_id}".encode()))
        shortest = min(view.queue_s for view in views)
        if home.queue_s > shortest + self.max_wait_s or (home.open_limit and home.open >= home.open_limit):
            home = min(views, key=lambda view: (view.queue_s, view.slot))
        return _first(self.name, request, snapshot, [home])


@frozen(kw_only=True)
class Adaptive:
    """Per request the policy that its situation asks for.

    Old reports: ``power-of-two``. A cached prefix: ``kv-cost``. Otherwise ``least-tokens``.

    Attributes:
        stale_s: age of reports in seconds above which they are old.
        min_tokens: cached tokens from which on a prefix counts.
    """

    name: ClassVar[str] = "adaptive"

    stale_s: float = field(default=1.0, validator=validators.gt(0))
    min_tokens: int = field(default=64, validator=validators.ge(0))

    def place(self, request: RequestView, snapshot: Snapshot) -> Decision:
        group, mask = eligible(request, snapshot)
        reported = [
            view.reported_at
            for slot in (group.least if group is not None else ())
            if (view := snapshot.instances[slot]) is not None and view.reported_at
        ]
        if reported and snapshot.now - max(reported) > self.stale_s:
            return PowerOfTwo().place(request, snapshot)
        first = max(-(-self.min_tokens // request.block), 1)
        if (
            len(request.keys) >= first
            and snapshot.kv.get(request.keys[first - 1], 0) & mask & snapshot.kv_valid
        ):
            return KVCost().place(request, snapshot)
        return LeastTokens().place(request, snapshot)


def _view(snapshot: Snapshot, slot: int) -> InstanceView:
    view = snapshot.instances[slot]
    assert view is not None  # masks contain only used slots
    return view


def _fitting(
    request: RequestView, snapshot: Snapshot, mask: int, group: Group | None = None
) -> list[InstanceView]:
    """Instances of a mask that can hold the request at all; only the least loaded ones if a group is given."""
    chosen = [slot for slot in group.least if mask >> slot & 1] if group is not None else []
    search = Search(request, snapshot, Group(), mask)
    for slot in chosen or slots(mask):
        search.consider((slot,), request.prompt_tokens)
    return [_view(snapshot, slot) for slot in sorted(c.slot for c in search.candidates())]


def _first(policy: str, request: RequestView, snapshot: Snapshot, views: list[InstanceView]) -> Decision:
    """The decision for the first instance that can take the request now; else for the first one."""
    tried = []
    for view in views[:16]:
        uncached = max(request.prompt_tokens - cached_tokens(request, snapshot, view.slot), 1)
        decision = decide(policy, request, view, uncached=uncached)
        if decision.kind == "dispatch":
            return decision
        tried.append(decision)
    return tried[0]


def _draw(mask: int, seed: str) -> int:
    """A slot of a mask, drawn by a hash."""
    start = xxh3_64_intdigest(seed.encode()) % mask.bit_length()
    rest = mask >> start << start or mask
    return (rest & -rest).bit_length() - 1

"""Placement by price and by distance."""

from __future__ import annotations

from typing import ClassVar

import attrs
from attrs import field, frozen, validators

from sage_llm.policies.base import decide, eligible, nowhere
from sage_llm.policies.kv_cost import KVCost
from sage_llm.policies.search import Search
from sage_llm.types import Candidate, Decision, InstanceView, RequestView, Snapshot

__all__ = ["Cost", "Topology"]

_ANY = 1e9  # slack that keeps every candidate


@frozen(kw_only=True)
class Cost:
    """The cheapest instance, in money, of those that are expected to meet the request's targets.

    The price of a request is ``cost_per_hour/3600 · (uncached/rate + output/decode rate)``. If no instance meets the
    targets, or none has a price, the decision is that of ``kv-cost``.

    Attributes:
        ttft_s: TTFT target in seconds of requests without one.
    """

    name: ClassVar[str] = "cost"

    ttft_s: float = field(default=10.0, validator=validators.gt(0))

    def place(self, request: RequestView, snapshot: Snapshot) -> Decision:
        group, mask = eligible(request, snapshot)
        if group is None or not mask:
            return nowhere(self.name, request, snapshot)
        alpha = KVCost().weight(group.rho)
        found = Search(request, snapshot, group, mask, alpha, slack_s=_ANY).run().candidates()
        target = request.slo_ttft or self.ttft_s
        priced = []
        for candidate in found:
            view = snapshot.instances[candidate.slot]
            assert view is not None  # candidates are slots of the group
            ttft = view.queue_s + candidate.uncached / view.rate + candidate.wait_kv_s
            if view.cost_per_hour and ttft <= target and _meets_tpot(request, view):
                priced.append(candidate._replace(cost=_price(request, candidate, view)))
        best = tuple(sorted(priced)[:4])
        if not best:
            return attrs.evolve(KVCost().place(request, snapshot), policy=self.name)
        view = snapshot.instances[best[0].slot]
        assert view is not None
        return decide(
            self.name, request, view, uncached=best[0].uncached, candidates=best, alpha=alpha, rho=group.rho
        )


def _meets_tpot(request: RequestView, view: InstanceView) -> bool:
    if request.slo_tpot is None or not view.step.base_s:
        return True
    return view.step.predict(0, view.running + 1, view.context_tokens) <= request.slo_tpot


def _price(request: RequestView, candidate: Candidate, view: InstanceView) -> float:
    decode = request.out_q50 / view.decode_rate if view.decode_rate else 0.0
    return view.cost_per_hour / 3600.0 * (candidate.uncached / view.rate + decode)


@frozen(kw_only=True)
class Topology:
    """``kv-cost`` with a price for distance, so that traffic stays on this host, rack and zone while they keep up.

    An instance's host is that of its descriptor; rack and zone are its labels ``rack`` and ``zone``.

    Attributes:
        host: name of this host; empty ignores hosts.
        rack: name of this rack; empty ignores racks.
        zone: name of this zone; empty ignores zones.
        host_s: seconds added for another host.
        rack_s: seconds added for another rack.
        zone_s: seconds added for another zone.
    """

    name: ClassVar[str] = "topology"

    host: str = ""
    rack: str = ""
    zone: str = ""
    host_s: float = field(default=0.01, validator=validators.ge(0))
    rack_s: float = field(default=0.05, validator=validators.ge(0))
    zone_s: float = field(default=0.5, validator=validators.ge(0))

    def distance_s(self, view: InstanceView) -> float:
        """Return the seconds added for an instance."""
        away = self.host_s if self.host and view.host != self.host else 0.0
        if self.rack and view.labels.get("rack", self.rack) != self.rack:
            away += self.rack_s
        if self.zone and view.labels.get("zone", self.zone) != self.zone:
            away += self.zone_s
        return away

    def place(self, request: RequestView, snapshot: Snapshot) -> Decision:
        group, mask = eligible(request, snapshot)
        if group is None or not mask:
            return nowhere(self.name, request, snapshot)
        alpha = KVCost().weight(group.rho)
        farthest = self.host_s + self.rack_s + self.zone_s
        moved = []
        search = Search(request, snapshot, group, mask, alpha, (0.75, 0.25), farthest)
        for candidate in search.run().candidates():
            view = snapshot.instances[candidate.slot]
            assert view is not None  # candidates are slots of the group
            moved.append(candidate._replace(cost=candidate.cost + self.distance_s(view)))
        best = tuple(sorted(moved)[:4])
        if not best:
            return nowhere(self.name, request, snapshot)
        view = snapshot.instances[best[0].slot]
        assert view is not None
        return decide(
            self.name, request, view, uncached=best[0].uncached, candidates=best, alpha=alpha, rho=group.rho
        )

"""Placement by price and by distance."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import ClassVar

import attrs
from attrs import field, frozen, validators

from sage_llm.policies.base import decide, eligible, nowhere
from sage_llm.policies.kv_cost import KVCost
from sage_llm.policies.search import Search
from sage_llm.types import Decision, InstanceView, RequestView, Snapshot

__all__ = ["Cost", "Topology"]

_ANY = 1e9  # slack that keeps every candidate


def _prices(text: str) -> str:
    for part in text.split():
        pattern, equals, price = part.rpartition("=")
        try:
            valid = bool(pattern and equals) and 0 <= float(price) < float("inf")
        except ValueError:
            valid = False
        if not valid:
            raise ValueError(f"'prices' must be PATTERN=PRICE PATTERN=PRICE, not {text!r}")
    return text


@frozen(kw_only=True)
class Cost:
    """The cheapest instance, in money, of those that are expected to meet the request's targets.

    The price of a request is ``cost_per_hour/3600 · (uncached/rate + output/decode rate)``. If no instance meets the
    targets, or none has a price, the decision is that of ``kv-cost``.

    Attributes:
        prices: prices per hour by patterns of instance ids, such as ``big/*=8 small/*=1``; the first match counts. An
            instance that states its own ``cost_per_hour`` has that one.
        ttft_s: TTFT target in seconds of requests without one.
    """

    name: ClassVar[str] = "cost"

    prices: str = field(default="", converter=_prices)
    ttft_s: float = field(default=10.0, validator=validators.gt(0))

    def per_hour(self, view: InstanceView) -> float:
        """Return the price of an instance per hour; 0 if unknown."""
        if view.cost_per_hour:
            return view.cost_per_hour
        for part in self.prices.split():
            pattern, _, price = part.rpartition("=")
            if fnmatchcase(view.instance_id, pattern):
                return float(price)
        return 0.0

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
            per_hour = self.per_hour(view)
            if per_hour and ttft <= target and _meets_tpot(request, view):
                decode = request.out_q50 / view.decode_rate if view.decode_rate else 0.0
                price = per_hour / 3600.0 * (candidate.uncached / view.rate + decode)
                priced.append(candidate._replace(cost=price))
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


@frozen(kw_only=True)
class Topology:
    """``kv-cost`` with a price for distance: traffic stays on near hosts while they keep up.

    Attributes:
        near: patterns of the names of near hosts, separated by spaces, such as ``node-1 rack7-*``; empty: all.
        far_s: seconds added to the cost of an instance on another host.
    """

    name: ClassVar[str] = "topology"

    near: str = ""
    far_s: float = field(default=0.05, validator=validators.ge(0))

    def distance_s(self, view: InstanceView) -> float:
        """Return the seconds added for an instance."""
        patterns = self.near.split()
        near = not patterns or any(fnmatchcase(view.host, pattern) for pattern in patterns)
        return 0.0 if near else self.far_s

    def place(self, request: RequestView, snapshot: Snapshot) -> Decision:
        group, mask = eligible(request, snapshot)
        if group is None or not mask:
            return nowhere(self.name, request, snapshot)
        alpha = KVCost().weight(group.rho)
        moved = []
        search = Search(request, snapshot, group, mask, alpha, (0.75, 0.25), self.far_s)
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

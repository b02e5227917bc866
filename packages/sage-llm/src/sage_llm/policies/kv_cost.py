"""Placement by the cost of what must be computed and of what is queued before it: the default."""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen, validators

from sage_llm.policies.base import decide, eligible, nowhere
from sage_llm.policies.search import Search
from sage_llm.types import Decision, RequestView, Snapshot

__all__ = ["KVCost"]


@frozen(kw_only=True)
class KVCost:
    """Choose the instance with the least ``α·uncached/rate + queued/rate + wait for KV blocks``.

    ``α = clamp(1/(1−ρ), 1, alpha_max)``, where ρ is the load of the last 20 s: a token computed again delays each
    request behind it, so it costs more the busier the cluster is. Tokens that are loaded from a lower tier count
    ``1 − credit`` tokens.

    An instance on which the predicted step would break the TPOT target of a running request, or that is at its limit
    of open requests, is chosen only if there is no other.

    Attributes:
        alpha: fixed weight of tokens to compute; 0 derives it from the load.
        alpha_max: largest weight derived from the load.
        credit_dram: share of a token's cost saved if its KV is in the host's memory, 0 to 1.
        credit_ssd: share saved if its KV is on the instance's disk, 0 to 1.
    """

    name: ClassVar[str] = "kv-cost"

    alpha: float = field(default=0.0, validator=validators.ge(0))
    alpha_max: float = field(default=8.0, validator=validators.ge(1))
    credit_dram: float = field(default=0.75, validator=[validators.ge(0), validators.le(1)])
    credit_ssd: float = field(default=0.25, validator=[validators.ge(0), validators.le(1)])

    def weight(self, rho: float) -> float:
        """Return α for a load ρ."""
        if self.alpha:
            return self.alpha
        if rho >= 1.0:
            return self.alpha_max
        return min(1.0 / (1.0 - rho), self.alpha_max) if rho > 0.0 else 1.0

    def place(self, request: RequestView, snapshot: Snapshot) -> Decision:
        group, mask = eligible(request, snapshot)
        if group is None or not mask:
            return nowhere(self.name, request, snapshot)
        alpha = self.weight(group.rho)
        credits = (self.credit_dram, self.credit_ssd)
        best = Search(request, snapshot, group, mask, alpha, credits).run().candidates(4)
        if not best:
            return nowhere(self.name, request, snapshot)
        view = snapshot.instances[best[0].slot]
        assert view is not None  # candidates are slots of the group
        return decide(
            self.name, request, view, uncached=best[0].uncached, candidates=best, alpha=alpha, rho=group.rho
        )

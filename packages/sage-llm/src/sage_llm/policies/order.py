"""Orders in which waiting requests are dispatched.

Each policy returns a key that depends on the request and its arrival, not on the time waited: a request that waits
longer moves forward because newer ones get larger keys. Bands, ageing and tenants are applied by ``WaitingQueue``, as
far as the policy asks for them.
"""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen, validators

from sage_llm.policies.base import eligible
from sage_llm.policies.prefix import deepest
from sage_llm.types import RequestView, Snapshot

__all__ = ["SLO", "Balanced", "FIFO", "FairShare", "Priority", "ShortestUncached", "latest_start", "work_s"]

_AGEING_S = 30.0
_TTFT_S = 10.0


def latest_start(request: RequestView, work: float, default_ttft_s: float) -> float:
    """Return the latest time at which a request must be dispatched to meet all its targets.

    Args:
        work: expected duration of its prefill.
        default_ttft_s: target of a request without deadline and TTFT target.
    """
    times = []
    if request.slo_ttft is not None:
        times.append(request.arrived + request.slo_ttft - work)
    if request.deadline is not None:
        tail = request.out_q50 * (request.slo_tpot or 0.0)
        times.append(request.deadline - max(work + tail, request.left_s))
    return min(times) if times else request.arrived + default_ttft_s - work


def work_s(request: RequestView, snapshot: Snapshot) -> float:
    """Return the expected duration of a request's prefill on the instance that holds most of its prefix."""
    group, mask = eligible(request, snapshot)
    if group is None or not mask:
        return 0.0
    depth = deepest(snapshot.kv.get, request.keys, mask & snapshot.kv_valid) if request.keys else 0
    return max(request.prompt_tokens - depth * request.block, 1) * group.size / (group.rate or 1.0)


@frozen(kw_only=True)
class FIFO:
    """First come, first served; ignores bands and tenants.

    Attributes:
        ageing_s: seconds of waiting after which no other request passes one that does not fit.
    """

    name: ClassVar[str] = "fifo"

    ageing_s: float = field(default=_AGEING_S, validator=validators.gt(0))
    by_band: bool = field(default=False, init=False)
    by_tenant: bool = field(default=False, init=False)

    def key(self, request: RequestView, snapshot: Snapshot) -> float:
        return request.arrived


@frozen(kw_only=True)
class Priority:
    """Smaller bands first, in order of arrival within a band.

    Attributes:
        ageing_s: seconds of waiting after which a request moves up by one band.
    """

    name: ClassVar[str] = "priority"

    ageing_s: float = field(default=_AGEING_S, validator=validators.gt(0))
    by_band: bool = field(default=True, init=False)
    by_tenant: bool = field(default=False, init=False)

    def key(self, request: RequestView, snapshot: Snapshot) -> float:
        return request.arrived


@frozen(kw_only=True)
class SLO:
    """Earliest latest start first: deadline or TTFT target, less the request's own work.

    Attributes:
        ttft_s: TTFT target in seconds of requests without any target.
        ageing_s: seconds of waiting after which a request moves up by one band.
    """

    name: ClassVar[str] = "slo"

    ttft_s: float = field(default=_TTFT_S, validator=validators.gt(0))
    ageing_s: float = field(default=_AGEING_S, validator=validators.gt(0))
    by_band: bool = field(default=True, init=False)
    by_tenant: bool = field(default=False, init=False)

    def key(self, request: RequestView, snapshot: Snapshot) -> float:
        return latest_start(request, work_s(request, snapshot), self.ttft_s)


@frozen(kw_only=True)
class FairShare:
    """Equal service for the tenants of a band, in order of arrival within a tenant.

    Attributes:
        ageing_s: seconds of waiting after which a request moves up by one band.
    """

    name: ClassVar[str] = "fair-share"

    ageing_s: float = field(default=_AGEING_S, validator=validators.gt(0))
    by_band: bool = field(default=True, init=False)
    by_tenant: bool = field(default=True, init=False)

    def key(self, request: RequestView, snapshot: Snapshot) -> float:
        return request.arrived


@frozen(kw_only=True)
class ShortestUncached:
    """Least work first, where cached prefixes are no work: ``uncached/rate − patience·waited``.

    Attributes:
        patience: seconds of work that one second of waiting outweighs.
        ageing_s: seconds of waiting after which a request moves up by one band.
    """

    name: ClassVar[str] = "shortest-uncached"

    patience: float = field(default=0.3, validator=validators.gt(0))
    ageing_s: float = field(default=_AGEING_S, validator=validators.gt(0))
    by_band: bool = field(default=True, init=False)
    by_tenant: bool = field(default=False, init=False)

    def key(self, request: RequestView, snapshot: Snapshot) -> float:
        return request.since + work_s(request, snapshot) / self.patience


@frozen(kw_only=True)
class Balanced:
    """Bands, then fair share between tenants, then the earlier of latest start and shortest uncached: the default.

    Requests of a chain with a deadline are ordered by their latest start as if all others had the target ``ttft_s``, so
    that they pass those with more time. They are never ahead of requests that arrived ``ttft_s`` before their chain.

    Attributes:
        patience: seconds of work that one second of waiting outweighs.
        ttft_s: TTFT target in seconds of requests without any target.
        ageing_s: seconds of waiting after which a request moves up by one band.
    """

    name: ClassVar[str] = "balanced"

    patience: float = field(default=0.3, validator=validators.gt(0))
    ttft_s: float = field(default=_TTFT_S, validator=validators.gt(0))
    ageing_s: float = field(default=_AGEING_S, validator=validators.gt(0))
    by_band: bool = field(default=True, init=False)
    by_tenant: bool = field(default=True, init=False)

    def key(self, request: RequestView, snapshot: Snapshot) -> float:
        work = work_s(request, snapshot)
        start = latest_start(request, work, self.ttft_s)
        if request.chain_since is not None and request.deadline is not None:
            start = max(start, request.chain_since) - self.ttft_s
        return min(start, request.since + work / self.patience)

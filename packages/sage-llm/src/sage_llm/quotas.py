"""Quotas of tenants: ceilings above which their requests are refused, and reserves that others leave free."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import define, field, frozen, validators

from sage_llm.policies.base import tokens_reserved
from sage_llm.types import Decision, Group, InstanceView, RequestView, slots

__all__ = ["DEFAULT", "QuotaTable", "TenantQuota", "leaves_room"]

DEFAULT = "*"
"""Name of the quota of tenants that have none of their own."""

_WEIGHT = 0.2  # of a new duration in the mean
_FIRST_S = 1.0  # Retry-After of a tenant of which no request has ended
_SHORTEST_S = 0.1
_MAX_IDLE = 4096  # tenants without a quota of their own whose durations are remembered


@frozen(kw_only=True)
class TenantQuota:
    """Quota of one tenant, for all models together.

    Attributes:
        weight: share of the tenant relative to others.
        max_requests: maximum number of accepted requests that have not ended; 0 for no limit.
        max_kv_tokens: maximum number of tokens that these requests reserve KV for; 0 for no limit.
        reserved_requests: places in the batches of a model that other tenants leave free.
        reserved_kv_tokens: tokens of KV of a model that other tenants leave free.
    """

    weight: float = field(default=1.0, validator=validators.gt(0))
    max_requests: int = field(default=0, validator=validators.ge(0))
    max_kv_tokens: int = field(default=0, validator=validators.ge(0))
    reserved_requests: int = field(default=0, validator=validators.ge(0))
    reserved_kv_tokens: int = field(default=0, validator=validators.ge(0))


@define
class _Use:
    requests: int = 0
    tokens: int = 0
    running: int = 0
    running_tokens: int = 0
    duration_s: float = 0.0


@define
class _Open:
    tenant: str
    tokens: int
    since: float
    runs: bool = False


class QuotaTable:
    """What each tenant uses, derived from its open requests.

    Args:
        quotas: quotas by tenant; ``"*"`` applies to each tenant without one, and reserves nothing.
    """

    def __init__(self, quotas: Mapping[str, TenantQuota] | None = None) -> None:
        self.quotas = dict(quotas or {})
        self._default = self.quotas.pop(DEFAULT, TenantQuota())
        self._reserving = {
            name: quota
            for name, quota in self.quotas.items()
            if quota.reserved_requests or quota.reserved_kv_tokens
        }
        self._use: dict[str, _Use] = {}
        self._open: dict[str, _Open] = {}

    def quota(self, tenant: str) -> TenantQuota:
        return self.quotas.get(tenant, self._default)

    def used(self, tenant: str) -> tuple[int, int]:
        """Number of open requests of a tenant, and the tokens that they reserve."""
        use = self._use.get(tenant)
        return (use.requests, use.tokens) if use is not None else (0, 0)

    # --- events

    def enters(self, request: RequestView, now: float) -> None:
        """A request is accepted; a second call has no effect."""
        if request.id in self._open:
            return
        tokens = tokens_reserved(request)
        self._open[request.id] = _Open(request.tenant, tokens, now)
        use = self._use.setdefault(request.tenant, _Use())
        use.requests += 1
        use.tokens += tokens

    def runs(self, request_id: str, *, runs: bool) -> None:
        """A request was dispatched, or has left its instance."""
        opened = self._open.get(request_id)
        if opened is None or opened.runs == runs:
            return
        opened.runs = runs
        use = self._use[opened.tenant]
        use.running += 1 if runs else -1
        use.running_tokens += opened.tokens if runs else -opened.tokens

    def leaves(self, request_id: str, now: float) -> None:
        """A request has ended; a second call has no effect."""
        self.runs(request_id, runs=False)
        opened = self._open.pop(request_id, None)
        if opened is None:
            return
        use, took = self._use[opened.tenant], now - opened.since
        use.duration_s += _WEIGHT * (took - use.duration_s) if use.duration_s else took
        use.requests -= 1
        use.tokens -= opened.tokens
        if not use.requests and len(self._use) > _MAX_IDLE and opened.tenant not in self.quotas:
            del self._use[opened.tenant]

    # --- decisions

    def admit(self, request: RequestView) -> Decision | None:
        """Refuse a request above its tenant's ceiling; None if it is below."""
        quota, use = self.quota(request.tenant), self._use.get(request.tenant, _Use())
        tokens = tokens_reserved(request)
        name = f"tenant {request.tenant!r}"
        if quota.max_kv_tokens and tokens > quota.max_kv_tokens:
            message = (
                f"the request reserves KV for {tokens} tokens, {name} may use {quota.max_kv_tokens}; shorten the "
                "prompt or lower max_tokens"
            )
            return Decision("refuse", request.id, policy="quota", reason="too_large", message=message)
        if quota.max_requests and use.requests >= quota.max_requests:
            wait = use.duration_s / use.requests
            what = f"{name} has {use.requests} open request{'s' if use.requests > 1 else ''}"
            return self._refuse(request, what, quota.max_requests, wait)
        missing = use.tokens + tokens - quota.max_kv_tokens
        if quota.max_kv_tokens and missing > 0:
            wait = use.duration_s * missing / use.tokens
            what = f"{name} uses KV for {use.tokens} tokens, and the request needs {tokens} more"
            return self._refuse(request, what, quota.max_kv_tokens, wait)
        return None

    def _refuse(self, request: RequestView, what: str, limit: int, wait: float) -> Decision:
        retry = max(wait, _SHORTEST_S) if wait else _FIRST_S
        return Decision(
            "refuse",
            request.id,
            policy="quota",
            reason="quota",
            message=f"{what}; its quota is {limit}; retry in {retry:.1f} s",
            retry_after=retry,
        )

    def has_room(
        self, request: RequestView, group: Group, instances: tuple[InstanceView | None, ...]
    ) -> bool:
        """Whether a request may be dispatched without using what is reserved for other tenants."""
        if not self._reserving or request.kind != "generate":
            return True
        own, use = self.quota(request.tenant), self._use.get(request.tenant, _Use())
        tokens = tokens_reserved(request)
        if use.running < own.reserved_requests or use.running_tokens + tokens <= own.reserved_kv_tokens:
            return True
        places = kept = 0
        for name, quota in self._reserving.items():
            if name != request.tenant:
                used = self._use.get(name, _Use())
                places += max(quota.reserved_requests - used.running, 0)
                kept += max(quota.reserved_kv_tokens - used.running_tokens, 0)
        return leaves_room(request, group, instances, places=places, kv_tokens=kept)


def leaves_room(
    request: RequestView,
    group: Group,
    instances: tuple[InstanceView | None, ...],
    *,
    places: int,
    kv_tokens: int,
) -> bool:
    """Whether a model has ``places`` in its batches and KV for ``kv_tokens`` left after a request is dispatched.

    Always true while the model serves no request, so that reserves above its capacity stop nobody for ever.
    """
    views = [view for slot in slots(group.mask) if (view := instances[slot]) is not None]
    if not any(view.open for view in views):
        return True
    if places and all(view.max_batch for view in views):
        free = sum(max(view.max_batch - view.open, 0) for view in views)
        if free - 1 < places:
            return False
    if kv_tokens and all(view.kv_total for view in views):
        free = sum(max(view.kv_total - view.kv_reserved, 0) * view.page for view in views)
        if free - tokens_reserved(request) < kv_tokens:
            return False
    return True

"""Service that each tenant has received, for fair shares and quotas."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import define

from sage_llm.types import TenantView

__all__ = ["TenantTable"]

_MAX_IDLE = 4096


@define
class _Tenant:
    weight: float
    open_limit: int
    service: float = 0.0
    open: int = 0
    queued: int = 0


class TenantTable(Mapping[str, TenantView]):
    """Tenants with requests, and the idle ones served most recently.

    Service is counted in tokens divided by the tenant's weight. A tenant that becomes active is lifted to the least
    service of the active ones: nobody saves up service by being idle.

    Args:
        weights: shares of tenants relative to the others; 1 for each tenant that is not named.
        open_limits: maximum numbers of dispatched requests of tenants; unlimited for those that are not named.
    """

    def __init__(
        self, weights: Mapping[str, float] | None = None, open_limits: Mapping[str, int] | None = None
    ) -> None:
        self._weights, self._limits = dict(weights or {}), dict(open_limits or {})
        for tenant, weight in self._weights.items():
            if weight <= 0:
                raise ValueError(f"weight of tenant {tenant!r} must be above 0, not {weight}")
        self._active: dict[str, _Tenant] = {}
        self._idle: OrderedDict[str, _Tenant] = OrderedDict()

    def __getitem__(self, tenant: str) -> TenantView:
        found = self._active[tenant]
        return TenantView(found.service, found.weight, found.open, found.queued, found.open_limit)

    def get(self, tenant: str, default: Any = None) -> Any:
        found = self._active.get(tenant)  # without the exception of ``Mapping.get``
        if found is None:
            return default
        return TenantView(found.service, found.weight, found.open, found.queued, found.open_limit)

    def __iter__(self) -> Iterator[str]:
        return iter(self._active)

    def __len__(self) -> int:
        return len(self._active)

    def service(self, tenant: str) -> float:
        """Return the service of a tenant in weighted tokens; 0 for an unknown one."""
        found = self._active.get(tenant) or self._idle.get(tenant)
        return found.service if found is not None else 0.0

    def may_open(self, tenant: str) -> bool:
        """Return whether a tenant is below its limit of dispatched requests."""
        found = self._active.get(tenant)
        return found is None or not found.open_limit or found.open < found.open_limit

    def queued(self, tenant: str) -> None:
        """A request of the tenant starts to wait."""
        found = self._active.get(tenant)
        if found is None:
            found = self._idle.pop(tenant, None) or _Tenant(
                self._weights.get(tenant, 1.0), self._limits.get(tenant, 0)
            )
            if self._active:
                found.service = max(found.service, min(t.service for t in self._active.values()))
            self._active[tenant] = found
        found.queued += 1

    def dispatched(self, tenant: str, tokens: float) -> None:
        """A waiting request of the tenant is dispatched, with so much expected work."""
        found = self._active[tenant]
        found.queued -= 1
        found.open += 1
        found.service += tokens / found.weight

    def left(self, tenant: str) -> None:
        """A waiting request of the tenant ends without being dispatched."""
        self._active[tenant].queued -= 1
        self._settle(tenant)

    def ended(self, tenant: str, tokens: float = 0.0) -> None:
        """A dispatched request of the tenant ends, with so much more (or less) work than expected."""
        found = self._active[tenant]
        found.open -= 1
        found.service = max(found.service + tokens / found.weight, 0.0)
        self._settle(tenant)

    def _settle(self, tenant: str) -> None:
        found = self._active[tenant]
        if found.open <= 0 and found.queued <= 0:
            del self._active[tenant]
            self._idle[tenant] = found
            if len(self._idle) > _MAX_IDLE:
                self._idle.popitem(last=False)

"""The part of each gateway of the limits of API keys and tenants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
from sage_infer_serve.http.auth import APIKey, KeyLimits

from sage_llm.quotas import TenantQuota

__all__ = ["key_shares", "tenant_shares"]


def key_shares(keys: Sequence[APIKey], gateways: int) -> tuple[APIKey, ...]:
    """The keys with the limits that each gateway enforces, so that all together keep the whole limit."""
    return tuple(
        APIKey(
            key.name,
            key.digest,
            KeyLimits(
                **{
                    name: None if limit is None else _part(limit, gateways)
                    for name, limit in attrs.asdict(key.limits).items()
                }
            ),
        )
        for key in keys
    )


def tenant_shares(quotas: Mapping[str, TenantQuota], gateways: int) -> dict[str, TenantQuota]:
    """The quotas that each gateway enforces."""
    return {
        name: attrs.evolve(
            quota,
            max_requests=_part(quota.max_requests, gateways),
            max_kv_tokens=_part(quota.max_kv_tokens, gateways),
            reserved_requests=_part(quota.reserved_requests, gateways),
            reserved_kv_tokens=_part(quota.reserved_kv_tokens, gateways),
        )
        for name, quota in quotas.items()
    }


def _part(limit: int, gateways: int) -> int:
    return -(-limit // gateways)

"""The limits of API keys and tenants, which several gateways keep together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import attrs
from attrs import define, field
from sage_infer_serve.http.auth import APIKey, KeyLimits
from sage_infer_serve.http.errors import limited

from sage_llm.quota_tree import KVQuota
from sage_llm.quotas import TenantQuota

__all__ = ["EXCHANGE_S", "SharedKey", "Use", "kv_shares", "shared_keys", "tenant_shares", "total"]

EXCHANGE_S = 0.1
"""Time between two exchanges of what keys have used."""


class Use(NamedTuple):
    """What gateways have used of a key's limits.

    Attributes:
        requests: requests since their start.
        tokens: tokens since their start.
        open: requests that have not ended.
    """

    requests: int = 0
    tokens: int = 0
    open: int = 0


def total(uses: Iterable[Use]) -> Use:
    """The sum."""
    requests, tokens, opened = map(sum, zip(Use(), *uses, strict=True))
    return Use(requests, tokens, opened)


@define(eq=False)
class SharedKey(APIKey):
    """A key whose limits several gateways keep together: each knows what the others have used until the last exchange.

    Until the next one, each gateway may use its part of what is left, rounded up. So a client with a single connection
    has the whole limit after a few exchanges, and all gateways together exceed a limit by at most what the others used
    since the last exchange; of a rate, that is missing afterwards.

    Attributes:
        gateways: number of gateways.
    """

    gateways: int = 1
    _admitted: int = field(init=False, default=0)
    _charged: int = field(init=False, default=0)
    _others: Use = field(init=False, default=Use())
    _until: float = field(init=False, default=-math.inf)
    _part: list[float] = field(init=False, factory=list)  # requests, tokens and open requests until then

    def use(self) -> Use:
        """What this gateway has used."""
        return Use(self._admitted, self._charged, self.open)

    def take_over(self, others: Use, *, is_past: bool) -> None:
        """The other gateways have used so much; with ``is_past``, before this one was started."""
        if not is_past:
            for allowance, amount in (
                (self._requests, others.requests - self._others.requests),
                (self._tokens, others.tokens - self._others.tokens),
            ):
                if allowance is not None:
                    allowance.take(amount)
        self._others, self.open_elsewhere = others, others.open

    def admit(self) -> None:
        super().admit()
        self._admitted += 1
        self._part[0] -= 1
        self._part[2] -= 1

    def check(self) -> None:
        super().check()
        now = self.clock()
        if now >= self._until:
            self._until, self._part = now + EXCHANGE_S, self._parts()
        if min(self._part) <= 0:
            wait = self._until - now
            message = (
                f"key {self.name!r} has used this gateway's part of its limits; try again in {wait:.1f} s"
            )
            raise limited(message, wait, code="rate_limit_exceeded")

    def charge(self, tokens: int) -> None:
        super().charge(tokens)
        self._charged += tokens
        if self._part:
            self._part[1] -= tokens

    def _parts(self) -> list[float]:
        concurrency = self.limits.concurrency
        free = (
            math.inf if self._requests is None else self._requests.left(),
            math.inf if self._tokens is None else self._tokens.left(),
            math.inf if concurrency is None else concurrency - self.open - self.open_elsewhere,
        )
        return [left if math.isinf(left) else math.ceil(left / self.gateways) for left in free]


def shared_keys(keys: Sequence[APIKey], gateways: int) -> tuple[APIKey, ...]:
    """The keys for one of several gateways."""
    return tuple(
        SharedKey(key.name, key.digest, key.limits, gateways=gateways) if key.limits != KeyLimits() else key
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


def kv_shares(quotas: Mapping[str, KVQuota], gateways: int) -> dict[str, KVQuota]:
    """The quotas of KV that each gateway enforces."""
    return {
        name: attrs.evolve(
            quota,
            reserved=_part(quota.reserved, gateways),
            ceiling=_part(quota.ceiling, gateways),
            parts=kv_shares(quota.parts, gateways),
        )
        for name, quota in quotas.items()
    }


def _part(limit: int, gateways: int) -> int:
    return -(-limit // gateways)

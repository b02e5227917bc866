"""Policies by name, as the options of stores give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sage_infer.errors import ConfigError

from sage_infer_kvstore.policies.base import Policy
from sage_infer_kvstore.policies.counting import Hotness, LeastRecentlyUsed
from sage_infer_kvstore.policies.reuse import LearnedReuse
from sage_infer_kvstore.policies.weighted import RecomputeCost, Urgency

__all__ = ["POLICIES", "policy_of"]

POLICIES: Mapping[str, Callable[[int], Policy]] = {
    "lru": lambda page_size: LeastRecentlyUsed(),
    "hotness": lambda page_size: Hotness(),
    "reuse": lambda page_size: LearnedReuse(page_size),
    "slo": lambda page_size: Urgency(page_size),
    "recompute": lambda page_size: RecomputeCost(page_size),
}
"""Factories by name; the argument is the number of tokens per block."""


def policy_of(name: object, page_size: int) -> Policy:
    """Return a new policy for blocks of ``page_size`` tokens.

    Raises:
        ConfigError: there is no policy of this name.
    """
    if not isinstance(name, str) or name not in POLICIES:
        *others, last = POLICIES
        raise ConfigError(f"policy must be {', '.join(others)} or {last}, got {name!r}")
    return POLICIES[name](page_size)

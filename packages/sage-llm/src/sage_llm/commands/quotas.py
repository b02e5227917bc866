"""Quotas of KV from the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sage_infer.errors import InvalidRequest

from sage_llm.commands.tenants import unknown_key
from sage_llm.quota_tree import ANY, KVQuota

__all__ = ["kv_quotas_of"]

_BELOW = ("models", "classes", "")  # of a tenant, of a model, of a class


def kv_quotas_of(quotas: Mapping[str, Any]) -> dict[str, KVQuota]:
    """The quotas of the key ``llm.quotas``, by tenant.

    Raises:
        InvalidRequest: a key is unknown, a value is out of range, or two contradict each other; the message names them.
    """
    return {name: _quota(f"llm.quotas.{name}", name, values, 0) for name, values in quotas.items()}


def _quota(path: str, name: str, values: Any, level: int) -> KVQuota:
    below = _BELOW[level]
    keys = ("reserved", "ceiling", "borrow", *([below] if below else []))
    if not isinstance(values, Mapping):
        raise InvalidRequest(f"{path} must be a mapping with the keys {', '.join(keys)}, got {values!r}")
    for key, value in values.items():
        if key not in keys:
            raise unknown_key(path, key, keys)
        if key == "borrow":
            if not isinstance(value, bool):
                raise InvalidRequest(f"{path}.borrow must be true or false, got {value!r}")
        elif key == below:
            if not isinstance(value, Mapping):
                raise InvalidRequest(f"{path}.{below} must be a mapping of quotas by name, got {value!r}")
        elif isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InvalidRequest(f"{path}.{key} must be a whole number of tokens, at least 0, got {value!r}")
    parts = {
        str(part): _quota(f"{path}.{below}.{part}", str(part), found, level + 1)
        for part, found in values.get(below, {}).items()
    }
    quota = KVQuota(
        reserved=values.get("reserved", 0),
        ceiling=values.get("ceiling", 0),
        borrow=values.get("borrow", True),
        parts=parts,
    )
    if name == ANY and quota.least:
        raise InvalidRequest(f"{path} cannot reserve anything: it stands for any number of names; name them")
    if quota.ceiling and quota.least > quota.ceiling:
        what = (
            f"{path}.reserved" if quota.reserved == quota.least else f"the sum of the reserves below {path}"
        )
        raise InvalidRequest(f"{what} is {quota.least}, more than {path}.ceiling, {quota.ceiling}")
    return quota

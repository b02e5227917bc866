"""Quotas of tenants from the configuration."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from sage_infer.errors import InvalidRequest

from sage_llm.quotas import DEFAULT, TenantQuota

__all__ = ["quotas_of", "unknown_key"]

_KEYS = tuple(field.name for field in attrs.fields(TenantQuota))


def quotas_of(tenants: Mapping[str, Any]) -> dict[str, TenantQuota]:
    """The quotas of the key ``llm.tenants``.

    Raises:
        InvalidRequest: a key is unknown or a value is out of range; the message names it.
    """
    return {name: _quota(f"llm.tenants.{name}", name, values) for name, values in tenants.items()}


def _quota(path: str, name: str, values: Any) -> TenantQuota:
    if not isinstance(values, Mapping):
        raise InvalidRequest(f"{path} must be a mapping with the keys {', '.join(_KEYS)}, got {values!r}")
    for key, value in values.items():
        if key not in _KEYS:
            raise unknown_key(path, key, _KEYS)
        if name == DEFAULT and not key.startswith("max_"):
            raise InvalidRequest(f"{path} can only have max_requests and max_kv_tokens, not {key}")
        kinds = (int, float) if key == "weight" else (int,)
        if (
            isinstance(value, bool)
            or not isinstance(value, kinds)
            or value < 0
            or (key == "weight" and not value)
        ):
            wanted = "a number above 0" if key == "weight" else "a whole number, at least 0"
            raise InvalidRequest(f"{path}.{key} must be {wanted}, got {value!r}")
    return TenantQuota(**values)


def unknown_key(path: str, key: object, keys: Sequence[str]) -> InvalidRequest:
    """The error about a key that a mapping of the configuration cannot have."""
    near = difflib.get_close_matches(str(key), keys, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return InvalidRequest(f"{path} has no key {key!r}; {hint}keys: {', '.join(keys)}")

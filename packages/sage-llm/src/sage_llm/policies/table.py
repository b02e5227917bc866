"""Policies by name, and their parameters."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, cast, get_args

import attrs
from sage_infer.errors import InvalidRequest

from sage_llm.policies.admission import PredictedWait
from sage_llm.policies.base import AdmissionPolicy, OrderPolicy, PlacementPolicy
from sage_llm.policies.kv_cost import KVCost
from sage_llm.policies.load import Adaptive, Affinity, LeastTokens, PowerOfTwo, RoundRobin
from sage_llm.policies.order import FIFO, SLO, Balanced, FairShare, Priority, ShortestUncached
from sage_llm.policies.pd import PD
from sage_llm.policies.price import Cost, Topology

__all__ = ["POLICIES", "PolicyKind", "admission", "order", "parameters", "placement", "policy", "summary"]

PolicyKind = Literal["placement", "order", "admission"]

_CLASSES: tuple[tuple[PolicyKind, tuple[type[Any], ...]], ...] = (
    ("placement", (KVCost, RoundRobin, LeastTokens, PowerOfTwo, Affinity, Cost, Adaptive, Topology, PD)),
    ("order", (Balanced, FIFO, Priority, SLO, FairShare, ShortestUncached)),
    ("admission", (PredictedWait,)),
)

POLICIES: Mapping[PolicyKind, Mapping[str, type[Any]]] = MappingProxyType(
    {kind: MappingProxyType({cls.name: cls for cls in classes}) for kind, classes in _CLASSES}
)
"""Policies by kind and name; the first of each kind is the default."""


def policy(kind: PolicyKind, name: str | None = None, /, **values: Any) -> Any:
    """Return a policy by kind and name; None for the default one.

    Args:
        name: name with hyphens or underscores, and perhaps parameters: ``kv-cost:alpha=4,credit_ssd=0.5``.
        values: parameters of the policy; numbers may be given as text.

    Raises:
        InvalidRequest: no policy has this name, it has no such parameter, or the value is outside its range.
    """
    if kind not in get_args(PolicyKind):
        raise InvalidRequest(f"no kind of policy {kind!r}; kinds: {', '.join(get_args(PolicyKind))}")
    table = POLICIES[kind]
    wanted, _, given = (name or next(iter(table))).partition(":")
    wanted = wanted.strip().replace("_", "-")
    cls = table.get(wanted)
    if cls is None:
        near = difflib.get_close_matches(wanted, table, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InvalidRequest(f"no {kind} policy {wanted!r}; {hint}policies: {', '.join(table)}")
    values = {**_given(name or "", given), **values}
    known = parameters(cls)
    chosen = {}
    for key, value in values.items():
        field = known.get(key.replace("-", "_"))
        if field is None:
            takes = f"its parameters: {', '.join(known)}" if known else "it has no parameters"
            raise InvalidRequest(f"{kind} policy {wanted!r} has no parameter {key!r}; {takes}")
        chosen[field.name] = _converted(wanted, field, value)
    try:
        return cls(**chosen)
    except ValueError as error:
        raise InvalidRequest(f"{kind} policy {wanted!r}: {error}") from error


def _given(name: str, text: str) -> dict[str, str]:
    """The parameters in a name."""
    found = {}
    for part in filter(None, map(str.strip, text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise InvalidRequest(
                f"policy {name!r}: {part!r} is not a parameter; write NAME:KEY=VALUE,KEY=VALUE"
            )
        if key.strip() in found:
            raise InvalidRequest(f"policy {name!r} has the parameter {key.strip()!r} twice")
        found[key.strip()] = value.strip()
    return found


def placement(name: str | None = None, /, **values: Any) -> PlacementPolicy:
    """Return a placement policy, as ``policy("placement", …)`` does."""
    return cast(PlacementPolicy, policy("placement", name, **values))


def order(name: str | None = None, /, **values: Any) -> OrderPolicy:
    """Return an order policy, as ``policy("order", …)`` does."""
    return cast(OrderPolicy, policy("order", name, **values))


def admission(name: str | None = None, /, **values: Any) -> AdmissionPolicy:
    """Return an admission policy, as ``policy("admission", …)`` does."""
    return cast(AdmissionPolicy, policy("admission", name, **values))


def parameters(cls: type[Any]) -> dict[str, attrs.Attribute[Any]]:
    """Return the parameters of a policy's class by name."""
    return {field.name: field for field in attrs.fields(cls) if field.init}


def _converted(name: str, field: attrs.Attribute[Any], value: Any) -> Any:
    kind = type(field.default)
    try:
        if kind is str:
            if not isinstance(value, str):
                raise ValueError
            return value
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
        if kind is int:
            if number != int(number):
                raise ValueError
            return int(number)
        if number != number:
            raise ValueError
        return number
    except (TypeError, ValueError, OverflowError):
        what = {str: "a text", int: "a whole number", float: "a number"}[kind]
        raise InvalidRequest(
            f"parameter {field.name!r} of policy {name!r} must be {what}, not {value!r}"
        ) from None


def summary(cls: type[Any]) -> str:
    """Return the first sentence of a policy's documentation."""
    return inspect.cleandoc(cls.__doc__ or "").splitlines()[0]

"""Bounds and parameters of scaling, as flags and the configuration give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from attrs import field, frozen, validators
from sage_infer.errors import InvalidRequest

from sage_llm.scaling.policy import TargetLoad

__all__ = ["Autoscale", "parse_autoscale"]

_FORM = "MIN:MAX or MIN:MAX,KEY=VALUE,…, such as 0:4 or 1:8,down_s=600"
_POSITIVE = validators.gt(0.0)


@frozen(kw_only=True)
class Autoscale:
    """How the number of replicas of one model follows its load.

    Attributes:
        least, most: bounds of the number of replicas, prefill replicas included.
        policy: decides about the number.
        interval_s: time between two decisions.
        deadline_s: time within which a replica must be ready; a later start is withdrawn.
        wait_s: time that a request waits for the first replica, before it is refused.
        requests: sequences that a replica is to run simultaneously; 0 for the size of its batch.
        cost_per_hour: cost of a replica; 0 if unknown.
        budget_per_hour: largest cost of all replicas of the model; 0 for no limit.
    """

    least: int = field(validator=validators.ge(0))
    most: int = field(validator=validators.ge(1))
    policy: TargetLoad = field(factory=TargetLoad)
    interval_s: float = field(default=1.0, validator=_POSITIVE)
    deadline_s: float = field(default=600.0, validator=_POSITIVE)
    wait_s: float = field(default=60.0, validator=_POSITIVE)
    requests: int = field(default=0, validator=validators.ge(0))
    cost_per_hour: float = field(default=0.0, validator=validators.ge(0))
    budget_per_hour: float = field(default=0.0, validator=validators.ge(0))

    def __attrs_post_init__(self) -> None:
        if self.least > self.most:
            raise ValueError(f"the minimum of {self.least} replicas is above the maximum of {self.most}")
        if self.budget_per_hour and not self.cost_per_hour:
            raise ValueError("budget_per_hour needs cost_per_hour, the cost of one replica")
        if self.affordable < max(self.least, 1):
            raise ValueError(
                f"budget_per_hour of {self.budget_per_hour:g} does not pay for {max(self.least, 1)} replicas at "
                f"{self.cost_per_hour:g}"
            )

    @property
    def affordable(self) -> int:
        """Largest number of replicas within the budget."""
        if not self.budget_per_hour:
            return self.most
        return min(self.most, int(self.budget_per_hour / self.cost_per_hour + 1e-9))

    @property
    def bounds(self) -> str:
        return f"{self.least}:{self.most}"


def parse_autoscale(given: str | Mapping[str, Any], where: str = "--autoscale") -> Autoscale:
    """Parse ``MIN:MAX,KEY=VALUE``, or a mapping with the keys ``min``, ``max`` and those parameters.

    Args:
        where: option or key of the configuration, for messages.

    Raises:
        InvalidRequest: it is malformed, a key is unknown, or a value is outside of its range.
    """
    values = _from_text(given, where) if isinstance(given, str) else dict(given)
    if missing := [key for key in ("min", "max") if key not in values]:
        raise InvalidRequest(f"{where} lacks the key {missing[0]!r}")
    least, most = (_number(where, key, values.pop(key), whole=True) for key in ("min", "max"))
    own = {a.name: a for a in attrs.fields(Autoscale) if a.name not in ("least", "most", "policy")}
    of_policy = attrs.fields_dict(TargetLoad)
    known = {**own, **of_policy}
    for key in values:
        if key not in known:
            raise InvalidRequest(f"{where} has no key {key!r}; keys: min, max, {', '.join(known)}")
    numbers = {key: _number(where, key, values[key], whole=key == "requests") for key in values}
    try:
        policy = TargetLoad(**{key: value for key, value in numbers.items() if key in of_policy})
        rest: dict[str, Any] = {key: value for key, value in numbers.items() if key in own}
        return Autoscale(least=int(least), most=int(most), policy=policy, **rest)
    except ValueError as error:
        raise InvalidRequest(f"{where}: {error}") from None


def _from_text(text: str, where: str) -> dict[str, Any]:
    bounds, *parts = text.split(",")
    least, colon, most = bounds.partition(":")
    if not (colon and least.strip().isdecimal() and most.strip().isdecimal()):
        raise InvalidRequest(f"{where} must be {_FORM}; got {text!r}")
    values: dict[str, Any] = {"min": least, "max": most}
    for part in parts:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value) or key in values:
            raise InvalidRequest(f"{where} must be {_FORM}; got {part!r} in {text!r}")
        values[key] = value
    return values


def _number(where: str, key: str, value: Any, *, whole: bool) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
        if not abs(number) < float("inf") or (whole and number != int(number)):
            raise ValueError
    except (TypeError, ValueError):
        what = "a whole number" if whole else "a number"
        raise InvalidRequest(f"{where}: {key} must be {what}, got {value!r}") from None
    return int(number) if whole else number

"""The policies that a comparison runs, from the text of a command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs
from attrs import frozen
from sage_infer.errors import InvalidRequest

from sage_llm.policies.base import PlacementPolicy
from sage_llm.policies.table import parameters, placement
from sage_llm.scaling.settings import Autoscale
from sage_llm.simulator.cluster import Cluster
from sage_llm.simulator.eviction import check_eviction

__all__ = ["Variant", "policies_of", "policy_text", "variants", "with_scaling"]

_SETTINGS = ("load", "instances", "routers", "report_delay", "report_interval", "seed", "eviction")


@frozen
class Variant:
    """One run of a comparison: a policy on a cluster."""

    policy: PlacementPolicy
    cluster: Cluster


def policies_of(text: str) -> list[PlacementPolicy]:
    """Return the policies of ``a,b:key=value,key=value,c``: a part without a name belongs to the policy before it.

    Raises:
        InvalidRequest: a policy or a parameter does not exist, or none is named.
    """
    names: list[str] = []
    for part in filter(None, map(str.strip, text.split(","))):
        if "=" in part and ":" not in part and names:
            names[-1] += "," + part
        else:
            names.append(part)
    if not names:
        raise InvalidRequest("--compare names no policy; write NAME,NAME, such as round-robin,kv-cost")
    return [placement(name) for name in names]


def policy_text(policy: PlacementPolicy) -> str:
    """Return a policy with the parameters that differ from their defaults, as ``--policy`` takes it."""
    changed = []
    for name, known in parameters(type(policy)).items():
        value = getattr(policy, name)
        if value != known.default:
            changed.append(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}")
    return policy.name + (":" + ",".join(changed) if changed else "")


def variants(policies: Sequence[PlacementPolicy], cluster: Cluster, sweeps: Sequence[str]) -> list[Variant]:
    """Return each combination of a policy, and of one value of each sweep.

    Args:
        sweeps: texts ``KEY=VALUE,VALUE``; the key is a parameter of one of the policies, which is varied where a
            policy has it, or one of load, instances, routers, report_delay, report_interval, seed and eviction.

    Raises:
        InvalidRequest: a sweep is malformed, its key is unknown, or a value is out of range.
    """
    found = [Variant(policy, cluster) for policy in policies]
    for sweep in sweeps:
        key, values = _parsed(sweep)
        known = any(key in parameters(type(variant.policy)) for variant in found)
        if not known and key not in _SETTINGS:
            names = dict.fromkeys(name for v in found for name in parameters(type(v.policy)))
            raise InvalidRequest(
                f"--sweep {sweep}: nothing has the parameter {key!r}; parameters: {', '.join([*names, *_SETTINGS])}"
            )
        found = [one for variant in found for one in _each(variant, key, values)]
    return found


def with_scaling(found: Sequence[Variant], autoscale: Autoscale | None) -> list[Variant]:
    """Return each variant, and after it the same one with a number of instances that follows the load."""
    if autoscale is None:
        return list(found)
    return [
        Variant(variant.policy, cluster)
        for variant in found
        for cluster in (variant.cluster, attrs.evolve(variant.cluster, autoscale=autoscale))
    ]


def _parsed(sweep: str) -> tuple[str, list[str]]:
    key, equals, text = sweep.partition("=")
    values = [value.strip() for value in text.split(",") if value.strip()]
    if not equals or not key.strip() or not values:
        raise InvalidRequest(f"--sweep must be KEY=VALUE,VALUE, such as alpha=1,2,4; got {sweep!r}")
    return key.strip().replace("-", "_"), values


def _each(variant: Variant, key: str, values: list[str]) -> Iterator[Variant]:
    mine = parameters(type(variant.policy))
    if key in mine:
        kept = {name: getattr(variant.policy, name) for name in mine if name != key}
        for value in values:
            yield Variant(placement(variant.policy.name, **{**kept, key: value}), variant.cluster)
    elif key in _SETTINGS:
        for value in values:
            yield Variant(variant.policy, _changed(variant.cluster, key, value))
    else:
        yield variant


def _changed(cluster: Cluster, key: str, text: str) -> Cluster:
    if key == "eviction":
        check_eviction(text)
        return attrs.evolve(cluster, model=attrs.evolve(cluster.model, eviction=text))
    name = key + "_s" if key.startswith("report") else key
    is_whole = isinstance(getattr(cluster, name), int)
    try:
        changed: dict[str, Any] = {name: int(text) if is_whole else float(text)}
        return attrs.evolve(cluster, **changed)
    except ValueError as error:
        raise InvalidRequest(f"--sweep {key}: {text!r} is not a valid value: {error}") from None

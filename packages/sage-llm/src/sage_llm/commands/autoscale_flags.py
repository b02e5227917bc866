"""The flag ``--autoscale`` of ``sage llm serve``, and the key ``llm.autoscale`` of the configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from sage_infer.errors import InvalidRequest
from sage_infer.names import GENERATING

from sage_llm.manager.models import ServedModel, with_autoscale
from sage_llm.scaling.settings import Autoscale, parse_autoscale

__all__ = ["at_most", "at_start", "parse_autoscales", "with_autoscales"]

_FLAG = re.compile(r"(?:(?P<model>.+)=)?(?P<text>\d+:\d+(?:,.*)?)")


def parse_autoscales(values: Sequence[str]) -> dict[str, Autoscale]:
    """``0:4`` for every LLM, or ``MODEL=0:4``, perhaps with parameters: bounds by model, "" for every LLM.

    Raises:
        InvalidRequest: malformed, an unknown parameter, or a value outside of its range.
    """
    found: dict[str, Autoscale] = {}
    for value in values:
        match = _FLAG.fullmatch(value)
        name = (match["model"] or "") if match else ""
        if name in found:
            whose = f"model {name!r}" if name else "every LLM"
            raise InvalidRequest(f"--autoscale is given twice for {whose}; give it once")
        found[name] = parse_autoscale(match["text"] if match else value)
    return found


def with_autoscales(
    models: Sequence[ServedModel],
    flags: Mapping[str, Autoscale],
    configured: Mapping[str, Any],
    replicas: Mapping[str, int],
    *,
    gateways: int,
) -> list[ServedModel]:
    """The models with bounds for their numbers of replicas, from flags or else from the configuration.

    Args:
        configured: ``llm.autoscale``, which applies to LLMs without their own bounds.
        replicas: fixed numbers that flags give, by model; "" for every LLM.
        gateways: number of processes that answer requests.

    Raises:
        InvalidRequest: a model cannot be scaled, or has bounds and a fixed number.
    """
    if "" in flags and "" in replicas:
        raise InvalidRequest(
            "--replicas and --autoscale are mutually exclusive; use MODEL=N for a model with a fixed number"
        )
    usual = flags.get("") or (parse_autoscale(configured, "llm.autoscale") if configured else None)
    known = {model.descriptor.model_id for model in models}
    if unknown := [name for name in flags if name and name not in known]:
        raise InvalidRequest(f"--autoscale names {unknown[0]!r}; models: {', '.join(sorted(known))}")
    found = []
    for model in models:
        name = model.descriptor.model_id
        if name in flags and name in replicas:
            raise InvalidRequest(f"model {name!r} has --replicas and --autoscale; give one of them")
        is_usual = model.descriptor.model_type in GENERATING and bool(model.count) and name not in replicas
        own = flags.get(name) or (flags.get("") if is_usual else None) or model.autoscale
        chosen = own or (usual if is_usual else None)
        found.append(model if chosen is None else with_autoscale(model, chosen))
    scaled = [model for model in found if model.autoscale is not None]
    if flags and not scaled:
        raise InvalidRequest(
            "--autoscale needs a model whose replicas run here; models of joined servers are not started or stopped"
        )
    if scaled and gateways > 1:
        raise InvalidRequest(
            f"--autoscale needs a single gateway, not {gateways}: leave --gateways and llm.gateways out, or fix the "
            "number of replicas"
        )
    return found


def at_most(models: Sequence[ServedModel]) -> list[ServedModel]:
    """The models with their largest numbers of replicas, for which memory and CPUs are planned."""
    found = []
    for model in models:
        if model.autoscale is not None:
            most = model.autoscale.affordable
            prefill = max(most // 2, 1) if model.prefill_replicas else 0
            model = attrs.evolve(model, replicas=most - prefill, prefill_replicas=prefill)
        found.append(model)
    return found


def at_start(planned: Sequence[ServedModel], models: Sequence[ServedModel]) -> list[ServedModel]:
    """The planned models with the numbers of replicas to start; one at least, which shows that the model works.

    Raises:
        InvalidRequest: prefill and decode replicas are not within the bounds, or need devices of their own.
    """
    found = []
    for plan, model in zip(planned, models, strict=True):
        bounds = model.autoscale
        if bounds is None:
            found.append(plan)
        elif not model.prefill_replicas:
            found.append(attrs.evolve(plan, replicas=max(bounds.least, 1)))
        elif not max(bounds.least, 1) <= model.count <= bounds.affordable:
            raise InvalidRequest(
                f"--pd starts {model.count} replicas of {model.descriptor.model_id!r}, outside of --autoscale "
                f"{bounds.bounds}; change one of them"
            )
        elif plan.devices:
            raise InvalidRequest("--autoscale with --pd is not supported on accelerators; give one of them")
        else:
            found.append(attrs.evolve(plan, replicas=model.replicas, prefill_replicas=model.prefill_replicas))
    return found

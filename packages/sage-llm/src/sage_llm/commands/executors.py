"""The executor of ``sage llm serve``: this machine's, or one that a plug-in registers for a cluster."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

import attrs
from sage_infer.backends import find_backend
from sage_infer.contracts import Executor
from sage_infer.errors import InvalidRequest, UnsupportedFeature
from sage_infer.plugins import open_executor

from sage_llm.commands.config import LLM
from sage_llm.manager.models import ServedModel
from sage_llm.replicas.elsewhere import ElsewhereExecutor
from sage_llm.replicas.local import LocalExecutor
from sage_llm.replicas.net.gate import TOKEN_VARIABLE
from sage_llm.replicas.net.server import NETWORK_SERVER

__all__ = ["LOCAL", "check_executor", "make_executor", "on_cluster", "parse_amounts", "with_ray_address"]

LOCAL = "local"
_RAY = "ray"


def with_ray_address(settings: LLM, address: str | None) -> LLM:
    """The settings with the address of the Ray cluster, an option of its executor.

    Raises:
        InvalidRequest: another executor is chosen.
    """
    if address is None:
        return settings
    if settings.executor != _RAY:
        raise InvalidRequest(
            f"--ray-address belongs to --executor ray; the executor is {settings.executor!r}"
        )
    return attrs.evolve(settings, executor_options={**settings.executor_options, "address": address})


def make_executor(settings: LLM) -> Executor:
    """The executor that the settings name.

    Raises:
        BackendUnavailable: no plug-in registers it, or what it requires is not installed.
        ConfigError: it has no such option.
    """
    if settings.executor == LOCAL:
        return LocalExecutor(grace_s=settings.outlive_s)
    options = {"grace_s": settings.outlive_s, **settings.executor_options}
    return ElsewhereExecutor(open_executor(settings.executor, **options))


def check_executor(settings: LLM) -> None:
    """Check that what the settings ask for works with the executor that they name.

    Raises:
        InvalidRequest: options for the executor of this machine, which has none.
        UnsupportedFeature: prefill and decode replicas on a cluster.
    """
    if settings.executor == LOCAL:
        if settings.executor_options:
            raise InvalidRequest(
                "llm.executor_options belong to an executor on a cluster; set llm.executor, too"
            )
    elif settings.pd:
        raise UnsupportedFeature(
            f"--pd is not supported with --executor {settings.executor}: KV moves between replicas of one machine "
            "only; leave --pd or --executor out"
        )


def on_cluster(
    models: Sequence[ServedModel],
    settings: LLM,
    *,
    cpus: Mapping[str, float] | None = None,
    gpus: Mapping[str, float] | None = None,
) -> list[ServedModel]:
    """The models with replicas on a cluster: at a port, with a new token, and with what each reserves.

    An option ``threads`` of a backend gets the number of reserved CPUs.

    Args:
        cpus, gpus: numbers by model; ``""`` is for all others.

    Raises:
        InvalidRequest: CPUs or accelerators for replicas on this machine, which reserves none, or for no model.
    """
    reserved = {"cpus": cpus or {}, "gpus": gpus or {}}
    known = {model.descriptor.model_id for model in models}
    for flag, amounts in reserved.items():
        if amounts and settings.executor == LOCAL:
            raise InvalidRequest(f"--{flag} belongs to an executor on a cluster; choose one with --executor")
        if unknown := [name for name in amounts if name and name not in known]:
            raise InvalidRequest(f"--{flag} names {unknown[0]!r}; models: {', '.join(sorted(known))}")
    if settings.executor == LOCAL:
        return list(models)
    token = secrets.token_urlsafe(32)
    return [_on_cluster(model, token, reserved) for model in models]


def _on_cluster(model: ServedModel, token: str, reserved: Mapping[str, Mapping[str, float]]) -> ServedModel:
    name = model.descriptor.model_id
    amounts = {
        flag: found[name if name in found else ""]
        for flag, found in reserved.items()
        if name in found or "" in found
    }
    placed = attrs.evolve(
        model,
        server=NETWORK_SERVER,
        environment={**model.environment, TOKEN_VARIABLE: token},
        **amounts,  # type: ignore[arg-type]  # cpus and gpus
    )
    spec = find_backend(model.backend).spec
    if spec is None or "threads" not in spec.options:
        return placed
    return attrs.evolve(placed, options={"threads": max(1, int(placed.cpus)), **placed.options})


def parse_amounts(values: Sequence[str], flag: str) -> dict[str, float]:
    """``0.5`` for every model, or ``MODEL=0.5``.

    Raises:
        InvalidRequest: not a number of at least 0.
    """
    found = {}
    for value in values:
        name, _, text = value.rpartition("=")
        try:
            number = float(text)
        except ValueError:
            number = -1.0
        if not 0 <= number < float("inf"):
            raise InvalidRequest(f"{flag} must be N or MODEL=N with a number N of at least 0, got {value!r}")
        found[name] = number
    return found

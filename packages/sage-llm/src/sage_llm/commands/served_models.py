"""The models that ``sage llm serve`` serves, from flags or from the configuration."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import attrs
from sage_infer.backends import find_backend
from sage_infer.cli.options import llm_settings
from sage_infer.errors import InvalidRequest
from sage_infer.models import resolve_model
from sage_infer.names import GENERATING, ModelType
from sage_infer_serve.served_models import model_config

from sage_llm.manager.models import ServedModel
from sage_llm.scaling.settings import parse_autoscale

if TYPE_CHECKING:
    from sage_infer.config import LoadedConfig

__all__ = ["configured", "from_flags", "with_cpus"]

_RESERVED = ("cpus", "gpus", "memory_gb")
_KEYS = (
    "model", "model_id", "type", "backend", "replicas", "autoscale", "aliases", "options", "prefill_options",
    *_RESERVED,
)  # fmt: skip


def from_flags(
    llms: Sequence[str],
    embeddings: Sequence[str],
    rerankers: Sequence[str],
    *,
    backend: str | None,
    kv_schema: str | None,
    quant_profile: Path | None,
    options: Sequence[str],
    replicas: Mapping[str, int],
    loaded: LoadedConfig,
) -> list[ServedModel]:
    """Models named by flags; without an LLM, an embedding model or a reranker, the configured LLM.

    Raises:
        InvalidRequest: ``--replicas`` names a model that is not served, or an option belongs to no model.
    """
    found = []
    names: list[str | None] = [*llms] or ([None] if not (embeddings or rerankers) else [])
    for name in names:
        config = {} if name is None else model_config(name, "--model")
        model, chosen, arguments = llm_settings(
            config.get("model"), config.get("backend") or backend, kv_schema, quant_profile, options
        )
        arguments = {
            key: str(value) if isinstance(value, Path) else value for key, value in arguments.items()
        }
        found.append(_served(model, chosen, arguments, "llm", replicas))
    if options and not names:
        raise InvalidRequest("--option belongs to the backend of an LLM; name one with --model")
    settings = loaded.config.inference
    for flag, kind, given in (
        ("--embedding", "embedding", embeddings),
        ("--reranker", "reranker", rerankers),
    ):
        for name in given:
            config = model_config(name, flag)
            own = config.get("backend") in (None, settings.embedding_backend)
            found.append(
                _served(
                    config["model"],
                    config.get("backend") or settings.embedding_backend,
                    dict(settings.embedding_options) if own else {},
                    cast(ModelType, kind),
                    {name: count for name, count in replicas.items() if name},
                )
            )
    known = {model.descriptor.model_id for model in found}
    if unknown := [name for name in replicas if name and name not in known]:
        raise InvalidRequest(f"--replicas names {unknown[0]!r}; models: {', '.join(sorted(known))}")
    return found


def configured(entries: Iterable[Any], replicas: int, loaded: LoadedConfig) -> list[ServedModel]:
    """Models of the section ``llm``.

    Raises:
        InvalidRequest: an entry has an unknown key or no model.
    """
    settings = loaded.config.inference
    found = []
    for number, entry in enumerate(entries):
        values = dict(entry) if isinstance(entry, Mapping) else {"model": entry}
        unknown = [str(key) for key in values if key not in _KEYS]
        if unknown or not values.get("model"):
            problem = f"has no key {unknown[0]!r}" if unknown else "lacks the key model"
            raise InvalidRequest(f"llm.models[{number}] {problem}; keys: {', '.join(_KEYS)}")
        for name in ("options", "prefill_options"):
            if not isinstance(values.get(name, {}), Mapping):
                raise InvalidRequest(
                    f"llm.models[{number}].{name} must be a mapping of options, got {values[name]!r}"
                )
        kind: ModelType = values.get("type", "llm")
        generates = kind in GENERATING
        backend = values.get("backend") or (settings.backend if generates else settings.embedding_backend)
        default = settings.backend if generates else settings.embedding_backend
        options = (
            dict(settings.options if generates else settings.embedding_options) if backend == default else {}
        )
        served = _served(
            values["model"],
            backend,
            {**options, **values.get("options", {})},
            kind,
            {"": values.get("replicas", replicas if generates else 1)},
        )
        if "model_id" in values:
            served = attrs.evolve(
                served, descriptor=attrs.evolve(served.descriptor, model_id=values["model_id"])
            )
        reserved = {key: values[key] for key in _RESERVED if key in values}
        bounds = values.get("autoscale")
        found.append(
            attrs.evolve(
                served,
                aliases=tuple(values.get("aliases", ())),
                prefill_options=dict(values.get("prefill_options", {})),
                autoscale=None
                if bounds is None
                else parse_autoscale(bounds, f"llm.models[{number}].autoscale"),
                **reserved,
            )
        )
    return found


def parse_replicas(values: Sequence[str]) -> dict[str, int]:
    """``2`` for every LLM, or ``MODEL=2``.

    Raises:
        InvalidRequest: not a number of at least 1.
    """
    found = {}
    for value in values:
        name, _, number = value.rpartition("=")
        if not (number.isascii() and number.isdigit() and int(number) >= 1):
            raise InvalidRequest(f"--replicas must be N or MODEL=N with N of at least 1, got {value!r}")
        found[name] = int(number)
    return found


def with_cpus(models: Sequence[ServedModel]) -> list[ServedModel]:
    """The models with an equal share of the CPUs for each replica, where the engine has an option ``threads``."""
    generating = [m for m in models if m.descriptor.model_type in GENERATING]
    total = sum(m.count for m in generating)
    if total < _SHARED:
        return list(models)
    threads = max(1, len(os.sched_getaffinity(0)) // total) if hasattr(os, "sched_getaffinity") else None
    return [
        attrs.evolve(m, options={"threads": threads, **m.options})
        if threads and m in generating and _has_threads(m.backend)
        else m
        for m in models
    ]


def _has_threads(backend: str) -> bool:
    spec = find_backend(backend).spec
    return spec is not None and "threads" in spec.options


def _served(
    name: str, backend: str, options: dict[str, Any], kind: ModelType, replicas: Mapping[str, int]
) -> ServedModel:
    spec = find_backend(backend).spec
    any_format = spec is not None and spec.sizes is not None
    model = resolve_model(name, model_type=kind, any_format=any_format)
    return ServedModel(
        descriptor=model,
        backend=backend,
        options=options,
        replicas=replicas.get(model.model_id, replicas.get("", 1)),
    )


_SHARED = 2  # replicas from which on the CPUs are divided

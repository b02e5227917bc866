"""The models that ``sage infer serve`` serves, as arguments of the hybrid backend."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sage_infer.errors import InvalidRequest

if TYPE_CHECKING:
    from sage_infer.config import LoadedConfig

__all__ = ["configured_models", "model_config", "named_models", "with_profiles"]

_BACKEND = re.compile(r"[a-z0-9][a-z0-9._-]*")


def named_models(llms: Sequence[str], embeddings: Sequence[str], rerankers: Sequence[str]) -> dict[str, Any]:
    """Arguments of the hybrid backend for models from flags."""
    arguments: dict[str, Any] = {}
    further: list[Any] = []
    for kind, names in (("llm", llms), ("embedding", embeddings), ("reranker", rerankers)):
        configs = [model_config(name, f"--{kind}") for name in names]
        if configs:
            arguments[f"{kind}_config"] = configs[0]
            further += configs[1:]
    if further:
        arguments["models"] = further
    return arguments


def model_config(text: str, flag: str) -> dict[str, Any]:
    """``NAME`` or ``NAME@BACKEND``. A path may also contain @: text after the last one must look like a backend.

    Raises:
        InvalidRequest: the name is missing.
    """
    name, at, backend = text.rpartition("@")
    if not at or _BACKEND.fullmatch(backend) is None:
        name, backend = text, ""
    if not name:
        raise InvalidRequest(f"{flag} must be NAME or NAME@BACKEND, got {text!r}")
    return {"model": name, "backend": backend} if backend else {"model": name}


def configured_models(loaded: LoadedConfig) -> dict[str, Any]:
    """The models of the section ``serve``, or the configuration's default ones."""
    from sage_infer_serve.config import Serve

    config = loaded.config
    models = loaded.section(Serve).models
    if models:
        return {"models": [_with_file(loaded, model) for model in models]}
    llm: Any = config.inference.model
    if config.inference.quant_profile is not None:
        profile = loaded.path_value("inference.quant_profile", config.inference.quant_profile)
        llm = {"model": llm, "quant_profile": str(profile)}
    return {"llm_config": llm, "embedding_config": config.inference.embedding_model}


def _with_file(loaded: LoadedConfig, model: Any) -> Any:
    """The entry with its profile's path relative to the configuration file."""
    profile = model.get("quant_profile") if isinstance(model, Mapping) else None
    if not isinstance(profile, str):
        return model
    return {**model, "quant_profile": str(loaded.path_value("serve.models", profile))}


def with_profiles(arguments: Mapping[str, Any], profiles: Sequence[str]) -> dict[str, Any]:
    """The arguments with quantization profiles, each ``MODEL=FILE``, or ``FILE`` for the only LLM.

    Raises:
        InvalidRequest: the model is not served, or the model of a file is ambiguous.
    """
    singles = {key: _as_entry(value) for key, value in arguments.items() if key != "models"}
    further = [_as_entry(value) for value in arguments.get("models", ())]
    entries = {str(e.get("model_id") or e.get("model")): e for e in (*singles.values(), *further)}
    for text in profiles:
        name, _, file = text.rpartition("=")
        if name:
            entry = entries.get(name)
        elif len(entries) == 1:
            (entry,) = entries.values()
        else:
            entry = None if further else singles.get("llm_config")
        if entry is None:
            wanted = f"names {name!r}" if name else "must be MODEL=FILE if several models are served"
            raise InvalidRequest(f"--quant-profile {wanted}; models: {', '.join(entries)}")
        entry["quant_profile"] = file
    return {**singles, **({"models": further} if further else {})}


def _as_entry(model: Any) -> dict[str, Any]:
    return dict(model) if isinstance(model, Mapping) else {"model": model}

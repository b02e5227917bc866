"""The flags ``--pd``, ``--prefill-option`` and ``--kv-transport`` of ``sage llm serve``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from sage_infer.cli.options import parse_options
from sage_infer.errors import BackendUnavailable, InvalidRequest
from sage_infer.names import GENERATING
from sage_infer.plugins import find_plugin, list_plugins, require_ready
from sage_infer.schemas import TRANSPORT_PRESETS

from sage_llm.commands.config import LLM
from sage_llm.manager.models import ServedModel
from sage_llm.replicas.hand_over import STORE

__all__ = [
    "POLICY", "check_policy", "check_store", "check_transport", "check_whole", "parse_pd", "parse_transport", "with_pd",
]  # fmt: skip

POLICY = "pd"
_STORED_BY = ("kv_store", "kv_schema")  # options that decide where the KV is stored, and in which form
_PLANNED = ("kv_cache_gb", "memory_fraction", "max_sequence_length")
_WHEELS = {"nixl": "sage-infer-nixl"}
"""Wheels of this repository with a transport, which may be missing."""


def parse_pd(text: str | None) -> tuple[int, int] | None:
    """``P:D``: numbers of replicas that compute prompts, and that generate.

    Raises:
        InvalidRequest: not two numbers of at least 1.
    """
    if not text:
        return None
    parts = text.split(":")
    if len(parts) != 2 or not all(p.isascii() and p.isdigit() and int(p) >= 1 for p in parts):
        raise InvalidRequest(
            f"--pd must be P:D, the numbers of prefill and of decode replicas, such as 1:1, got {text!r}"
        )
    return int(parts[0]), int(parts[1])


def check_policy(policy: str, *, is_given: bool) -> str:
    """The placement policy of a control plane with prefill replicas: ``pd``, if none was asked for.

    Raises:
        InvalidRequest: another policy was asked for.
    """
    name = policy.partition(":")[0].strip()
    if name == POLICY:
        return policy
    if is_given or name != LLM().policy:
        raise InvalidRequest(
            f"policy {name!r} places no prefill; with --pd, leave --policy and llm.policy out, or use pd:KEY=VALUE"
        )
    return POLICY


def check_whole(models: Sequence[ServedModel], prefill_options: Sequence[str] = ()) -> None:
    """Check that nothing is set for prefill replicas where there are none.

    Raises:
        InvalidRequest: an option is.
    """
    for model in models:
        if model.prefill_options and not model.prefill_replicas:
            raise InvalidRequest(
                f"prefill_options of {model.descriptor.model_id!r} need prefill replicas, which --pd P:D (llm.pd) "
                "starts for LLMs"
            )
    if prefill_options:
        raise InvalidRequest("--prefill-option needs prefill replicas; give --pd P:D, such as 1:1")


def check_store(models: Sequence[ServedModel], transport: str) -> None:
    """Check that prefill and decode replicas have a store, if KV moves through one.

    Raises:
        InvalidRequest: an LLM has none, or its prefill replicas have another one or other pages.
    """
    for model in models:
        if transport != STORE or not model.prefill_replicas:
            continue
        for name in _STORED_BY:
            if model.prefill_options.get(name, model.options.get(name)) != model.options.get(name):
                raise InvalidRequest(
                    f"with --kv-transport store, prefill and decode replicas of {model.descriptor.model_id!r} need the "
                    f"same {name}: KV is stored in pages of one form; the transports local and tcp convert pages"
                )
        if not model.options.get("kv_store"):
            raise InvalidRequest(
                f"--kv-transport store needs a KV store that the replicas of {model.descriptor.model_id!r} share, such "
                'as -o \'kv_store={"store": "paged", "name": "shared"}\''
            )


def check_transport(name: str) -> None:
    """Check that KV can move between replicas by a transport.

    Raises:
        InvalidRequest: there is no such transport, or replicas cannot use it.
        BackendUnavailable: it is in a wheel that is not installed, or it is not ready on this machine.
    """
    if name == STORE:
        return
    rows = {row.name: row for row in list_plugins("transport")}
    if name not in rows and name in _WHEELS:
        raise BackendUnavailable(
            f"the KV transport {name!r} is not installed; to fix: pip install {_WHEELS[name]}"
        )
    offered = [
        row.name for row in rows.values() if row.kind == "transport" and row.spec and row.spec.endpoint
    ]
    known = f"transports: {', '.join([*sorted(offered), STORE])}"
    if name not in rows:
        raise InvalidRequest(f"no KV transport {name!r}; {known}")
    if require_ready(find_plugin(name, "transport")).endpoint is None:
        raise InvalidRequest(f"the transport {name!r} has no endpoint for KV of replicas; {known}")


def with_pd(
    models: Sequence[ServedModel], pd: tuple[int, int], prefill_options: Sequence[str] = ()
) -> list[ServedModel]:
    """The models with so many prefill and decode replicas for each LLM.

    Args:
        prefill_options: ``KEY=VALUE`` for the prefill replicas, in addition to those of a model itself.

    Raises:
        InvalidRequest: no LLM is served, or an option cannot differ between the roles.
    """
    if not any(model.descriptor.model_type in GENERATING for model in models):
        raise InvalidRequest("--pd belongs to an LLM; name one with --model")
    prefill, decode = pd
    more = parse_options(prefill_options, "--prefill-option")
    for name in (*more, *(name for model in models for name in model.prefill_options)):
        if name in _PLANNED:
            raise InvalidRequest(
                f"{name} of prefill replicas cannot differ: memory is divided equally among all replicas; set it for "
                "both with --option"
            )
    return [
        attrs.evolve(
            model,
            prefill_replicas=prefill,
            replicas=decode,
            prefill_options={**model.prefill_options, **more},
        )
        if model.descriptor.model_type in GENERATING
        else model
        for model in models
    ]


def parse_transport(text: str | None) -> tuple[str | None, dict[str, Any]]:
    """``tcp`` or ``name=tcp,preset=low-latency,chunk_bytes=N``: name of the transport, and keys of the configuration.

    Raises:
        InvalidRequest: not of this form.
    """
    if text is None:
        return None, {}
    parts = text.split(",")
    names = [part.removeprefix("name=") for part in parts if "=" not in part or part.startswith("name=")]
    try:
        values = parse_options(part for part in parts if "=" in part and not part.startswith("name="))
    except InvalidRequest:
        values, names = {}, ["", ""]
    if len(names) > 1:
        raise InvalidRequest(
            f"--kv-transport must be NAME or KEY=VALUE,…, such as tcp or preset=low-latency, got {text!r}"
        )
    preset = values.get("preset")
    if preset is not None and str(preset) not in TRANSPORT_PRESETS:
        raise InvalidRequest(
            f"--kv-transport has no preset {preset!r}; presets: {', '.join(TRANSPORT_PRESETS)}; "
            "a transport is named without preset=, such as nixl or nixl,preset=low-latency"
        )
    return names[0] if names else None, {f"transport.{key}": value for key, value in values.items()}

"""Features required by the fields of a request, and the function that refuses unclaimed features.

The tables are an allow-list: a field that is in no table is refused by name if it is set, so that a backend never
silently ignores fields of later versions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import attrs

from sage_infer.errors import UnsupportedFeature
from sage_infer.schemas import GuidedDecoding, Prompt, RequestOptions, SamplingParams

__all__ = ["FEATURE_OF", "accepted_options", "check_claims"]

FEATURE_OF: Mapping[type, Mapping[str, str | None]] = {
    SamplingParams: {
        # None: every generating backend supports the field.
        "temperature": None, "top_p": None, "top_k": None, "max_tokens": None, "min_tokens": None, "stop": None,
        "stop_token_ids": None, "ignore_eos": None, "skip_special_tokens": None,
        "guided": None,  # checked by its own fields, below
        "min_p": "min_p", "repetition_penalty": "penalties", "presence_penalty": "penalties",
        "frequency_penalty": "penalties", "seed": "seed", "n": "parallel_sampling", "logprobs": "logprobs",
        "adapter": "lora",
    },
    GuidedDecoding: {
        "json_schema": "guided_json", "regex": "guided_regex", "grammar": "guided_grammar",
        "choice": "guided_choice",
    },
    RequestOptions: {
        name: name
        for name in ("priority", "deadline", "tenant", "session", "service_class", "slo", "chain", "cache_salt",
                     "retention", "trace")
    },
}  # fmt: skip
"""Feature that each field of a request requires, by class; None if every backend supports the field."""


_NO_OPTIONS = RequestOptions()
_known_defaults: dict[type, tuple[tuple[str, Any], ...]] = {}  # one entry per class of the contract


def check_claims(
    features: Collection[str],
    *,
    backend: str,
    params: SamplingParams | None = None,
    options: RequestOptions | None = None,
    prompts: Sequence[Prompt] = (),
) -> None:
    """Refuse a request that sets fields whose feature the backend does not claim.

    Args:
        features: ``features`` of the backend's capability.
        backend: name of the backend, for the message.

    Raises:
        UnsupportedFeature: the message names each such field and the required feature.
    """
    refused = [
        *_refused("params", params, SamplingParams, features),
        *_refused("params.guided", params and params.guided, GuidedDecoding, features),
        *_refused("options", options, RequestOptions, features),
    ]
    if "multimodal" not in features and any(prompt.media for prompt in prompts):
        refused.append("media of a prompt (feature multimodal)")
    if refused:
        raise UnsupportedFeature(
            f"{backend} does not support {', '.join(refused)}; leave it out, or choose a backend that claims it"
        )


def accepted_options(features: Collection[str], options: RequestOptions) -> RequestOptions:
    """Return the options whose features are claimed, for callers that honour the other options themselves."""
    table = FEATURE_OF[RequestOptions]
    kept, dropped = {}, False
    for name, default in _defaults(type(options)):
        value = getattr(options, name)
        if value != default:
            if table.get(name) in features:
                kept[name] = value
            else:
                dropped = True
    if not dropped:
        return options
    return RequestOptions(**kept) if kept else _NO_OPTIONS


def _refused(place: str, request: Any, base: type, features: Collection[str]) -> list[str]:
    if request is None or request is _NO_OPTIONS:
        return []
    table = FEATURE_OF[base]
    found = []
    for name, default in _defaults(type(request)):
        if getattr(request, name) != default:
            feature = table.get(name, "")  # "" for a field that is in no table
            if feature is not None and feature not in features:
                found.append(f"{place}.{name}" + (f" (feature {feature})" if feature else ""))
    return found


def _defaults(cls: type) -> tuple[tuple[str, Any], ...]:
    known = _known_defaults.get(cls)
    if known is not None:
        return known
    found = []
    for attribute in attrs.fields(cls):
        default = attribute.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]  # attrs types Factory as a function
            default = default.factory()
        found.append((attribute.name, default))
    return _known_defaults.setdefault(cls, tuple(found))

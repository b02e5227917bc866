"""Which field of a request needs which feature, and the one function that refuses what a backend does not
claim.

It is an allow-list: a field that stands in no table here is refused by name as soon as it is set, so that a
backend never drops what it has not heard of.
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
        # None: every backend that generates has it.
        "temperature": None, "top_p": None, "top_k": None, "max_tokens": None, "min_tokens": None, "stop": None,
        "stop_token_ids": None, "ignore_eos": None, "skip_special_tokens": None,
        "guided": None,  # by its own fields, below
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
"""Feature that each field of a request needs, by class; None where every backend has it."""


_known_defaults: dict[type, tuple[tuple[str, Any], ...]] = {}  # one entry per class of the contract


def check_claims(
    features: Collection[str],
    *,
    backend: str,
    params: SamplingParams | None = None,
    options: RequestOptions | None = None,
    prompts: Sequence[Prompt] = (),
) -> None:
    """Refuse what a request sets and the backend does not claim.

    Args:
        features: the capability's ``features``.
        backend: name for the message.

    Raises:
        UnsupportedFeature: it names each such field and the feature that it needs.
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
    """The options that a backend with these features takes, for callers that honour the others themselves."""
    table = FEATURE_OF[RequestOptions]
    kept = {}
    for name, default in _defaults(type(options)):
        value = getattr(options, name)
        if value != default and table.get(name) in features:
            kept[name] = value
    return RequestOptions(**kept)


def _refused(place: str, request: Any, base: type, features: Collection[str]) -> list[str]:
    if request is None:
        return []
    table = FEATURE_OF[base]
    found = []
    for name, default in _defaults(type(request)):
        if getattr(request, name) != default:
            feature = table.get(name, "")  # "" stands for a field that no table knows
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

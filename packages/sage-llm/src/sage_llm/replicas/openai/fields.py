"""Fields of a completion request."""

from __future__ import annotations

from typing import Any, Literal

from sage_infer.errors import UnsupportedFeature
from sage_infer.schemas import GuidedDecoding, SamplingParams

__all__ = ["Dialect", "features_of", "sampling_fields"]

Dialect = Literal["openai", "vllm", "sage-infer"]
"""Fields that a server accepts: those of OpenAI only, or also the extensions of vLLM or sage-infer."""

_PLAIN = ("temperature", "top_p", "seed", "n", "presence_penalty", "frequency_penalty")
_EXTENSIONS = ("top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "skip_special_tokens")
_GUIDED = {"json_schema": "json", "regex": "regex", "grammar": "grammar", "choice": "choice"}
_DEFAULTS = SamplingParams()


def features_of(dialect: Dialect, *, tokenizes: bool, resumes: bool) -> tuple[str, ...]:
    """Return the features that a server of this dialect has."""
    found = ["streaming", "seed", "penalties", "parallel_sampling", "deadline", "reports", "trace"]
    if dialect != "openai":
        found += ["min_p", "guided_json", "guided_regex", "guided_grammar", "guided_choice", "priority"]
    if tokenizes:
        found += ["chat", "tokenize", "template_variables"]
    if resumes:
        found.append("resume")
    return tuple(found)


def sampling_fields(params: SamplingParams, dialect: Dialect) -> dict[str, Any]:
    """Return the request fields of sampling parameters; ``max_tokens`` is the caller's task.

    Raises:
        UnsupportedFeature: a field is set that servers of this dialect do not know.
    """
    fields = {name: getattr(params, name) for name in _PLAIN if getattr(params, name) is not None}
    if params.stop:
        fields["stop"] = list(params.stop)
    extended = {
        name: getattr(params, name)
        for name in _EXTENSIONS
        if getattr(params, name) != getattr(_DEFAULTS, name)
    }
    if params.stop_token_ids:
        extended["stop_token_ids"] = list(params.stop_token_ids)
    if dialect == "openai" and extended:
        raise UnsupportedFeature(
            f"OpenAI's API has no {', '.join(extended)}; leave it out, or set the option dialect if the server is vLLM"
        )
    if params.guided is not None:
        extended["structured_outputs"] = _guided(params.guided)
    return {**fields, **extended}


def _guided(guided: GuidedDecoding) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value
        for field, name in _GUIDED.items()
        if (value := getattr(guided, field)) is not None
    }

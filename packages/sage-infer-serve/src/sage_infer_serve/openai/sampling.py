"""``SamplingParams`` from a request's fields."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec
from sage_infer.errors import SchemaError
from sage_infer.schemas import GuidedDecoding, SamplingParams

from sage_infer_serve.http.errors import wrong_request
from sage_infer_serve.openai.schema import ResponseFormat, Sampling, StructuredOutputs, refused

__all__ = ["guided_by", "sampling_params"]

_TOP_P_GREEDY = 1e-9  # replaces 0, which OpenAI accepts: keeps only the most likely token
_SEED_MASK = 2**63 - 1
_KEPT_STOPS = 256  # maximum characters of stop strings in cached parameters: clients choose their size

_KINDS = {
    f"{prefix}{kind}": kind
    for prefix in ("guided_", "structured_outputs.")
    for kind in ("regex", "grammar", "choice")
}
"""Field of ``GuidedDecoding`` for each field of a request; all others hold a JSON Schema."""


def sampling_params(
    request: Sampling,
    *,
    max_tokens: int | None,
    logprobs: int | None = None,
    guided: GuidedDecoding | None = None,
    keep_special_tokens: bool = False,
) -> SamplingParams:
    """Sampling parameters for the backend.

    Raises:
        HTTPError: a field is not supported by any engine.
        InvalidRequest: values are invalid or incompatible.
    """
    for name in ("logit_bias", "bad_words", "allowed_token_ids"):
        if getattr(request, name):
            raise refused(f"{name} is not supported", name)
    stop = request.stop
    skip = request.skip_special_tokens
    values: dict[str, Any] = {
        "temperature": request.temperature,
        "top_p": _TOP_P_GREEDY if request.top_p == 0 else request.top_p,
        "top_k": 0 if request.top_k == -1 else request.top_k,
        "min_p": request.min_p,
        "repetition_penalty": request.repetition_penalty,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "seed": None if request.seed is None else request.seed & _SEED_MASK,
        "n": request.n,
        "max_tokens": max_tokens,
        "min_tokens": request.min_tokens,
        "stop": (stop,) if isinstance(stop, str) else None if stop is None else tuple(stop),
        "stop_token_ids": None if request.stop_token_ids is None else tuple(request.stop_token_ids),
        "ignore_eos": request.ignore_eos,
        "skip_special_tokens": (False if keep_special_tokens else None) if skip is None else skip,
        "logprobs": logprobs,
    }
    given = tuple(item for item in values.items() if item[1] is not None)
    if guided is None and not request.stop_token_ids and sum(map(len, values["stop"] or ())) <= _KEPT_STOPS:
        return _without_guide(given)
    return SamplingParams(guided=guided, **dict(given))


@lru_cache(maxsize=256)
def _without_guide(given: tuple[tuple[str, Any], ...]) -> SamplingParams:
    """Cached, as many requests use the same parameters."""
    return SamplingParams(**dict(given))


def guided_by(request: Sampling, response_format: ResponseFormat | None = None) -> GuidedDecoding | None:
    """The requested constraint, in OpenAI's format or by an extension.

    Raises:
        HTTPError: several constraints, or a missing JSON schema.
    """
    given: dict[str, Any] = {
        "guided_json": _schema(request.guided_json, "guided_json"),
        "guided_regex": request.guided_regex,
        "guided_grammar": request.guided_grammar,
        "guided_choice": None if request.guided_choice is None else tuple(request.guided_choice),
    }
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        raise wrong_request(
            "expected exactly one of guided_json, guided_regex, guided_grammar and guided_choice"
        )
    if request.structured_outputs is not None:
        if given:
            raise wrong_request(
                "structured_outputs and guided_… are mutually exclusive: both name the constraint",
                "structured_outputs",
            )
        given = _structured(request.structured_outputs)
    if response_format is not None and response_format.type != "text":
        if given:
            raise wrong_request(
                "response_format and structured_outputs or guided_… are mutually exclusive", "response_format"
            )
        given = {"response_format": _schema_of(response_format)}
    if not given:
        return None
    ((where, value),) = given.items()
    kind = _KINDS.get(where, "json_schema")
    try:
        return GuidedDecoding(**{kind: value})
    except SchemaError as error:
        problems = [f"{where}{path.removeprefix(f'$.{kind}')}: {message}" for path, message in error.problems]
        raise wrong_request("; ".join(problems), where) from None


def _structured(given: StructuredOutputs) -> dict[str, Any]:
    """The constraint of ``structured_outputs`` by the name of its field."""
    schema = _schema(given.json, "structured_outputs.json")
    if given.json_object:
        if schema is not None:
            where = "structured_outputs.json_object"
            raise wrong_request(f"{where} and json are mutually exclusive", where)
        schema = {"type": "object"}
    asked = {
        "structured_outputs.json": schema,
        "structured_outputs.regex": given.regex,
        "structured_outputs.grammar": given.grammar,
        "structured_outputs.choice": None if given.choice is None else tuple(given.choice),
    }
    found = {name: value for name, value in asked.items() if value is not None}
    if len(found) != 1:
        raise wrong_request(
            "structured_outputs: expected exactly one of json, regex, grammar and choice",
            "structured_outputs",
        )
    return found


def _schema(given: dict[str, Any] | str | None, where: str) -> dict[str, Any] | None:
    """A JSON Schema, which may be given as text."""
    if not isinstance(given, str):
        return given
    try:
        found: dict[str, Any] = msgspec.json.decode(given, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        raise wrong_request(f"{where} must be a JSON Schema, an object or its JSON text", where) from None
    return found


def _schema_of(response_format: ResponseFormat) -> dict[str, Any]:
    wrapped = response_format.json_schema
    if wrapped is not None and (response_format.schema is not None or response_format.type == "json_object"):
        other = "response_format.schema" if response_format.schema is not None else "type json_object"
        raise wrong_request(
            f"response_format.json_schema and {other} are mutually exclusive", "response_format.json_schema"
        )
    if response_format.schema is not None:
        return response_format.schema
    if response_format.type == "json_object":
        return {"type": "object"}
    if wrapped is None or wrapped.schema is None:
        where = "response_format.json_schema" + ("" if wrapped is None else ".schema")
        raise wrong_request(f"{where} is missing", where)
    return wrapped.schema

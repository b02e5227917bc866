"""``SamplingParams`` from a request's fields."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sage_infer.errors import InvalidRequest
from sage_infer.schemas import GuidedDecoding, SamplingParams

from sage_infer_serve.http.errors import wrong_request
from sage_infer_serve.openai.schema import ResponseFormat, Sampling, refused

__all__ = ["guided_by", "sampling_params"]

_TOP_P_GREEDY = 1e-9  # OpenAI accepts 0, which keeps only the most likely token, as this value does
_SEED_MASK = 2**63 - 1
_KEPT_STOPS = (
    256  # characters of stop texts up to which parameters are kept: what clients send is kept by size
)


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
        InvalidRequest: incompatible values.
    """
    if request.logit_bias:
        raise refused("logit_bias is not supported", "logit_bias")
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
    asked: dict[str, Any] = {
        "json_schema": request.guided_json,
        "regex": request.guided_regex,
        "grammar": request.guided_grammar,
        "choice": None if request.guided_choice is None else tuple(request.guided_choice),
    }
    asked = {name: value for name, value in asked.items() if value is not None}
    if response_format is not None and response_format.type != "text":
        if asked:
            raise wrong_request("response_format and guided_… are mutually exclusive", "response_format")
        asked["json_schema"] = _schema_of(response_format)
    if not asked:
        return None
    try:
        return GuidedDecoding(**asked)
    except InvalidRequest as error:
        raise wrong_request(
            f"use only one of guided_json, guided_regex, guided_grammar and guided_choice: {error}"
        ) from None


def _schema_of(response_format: ResponseFormat) -> dict[str, Any]:
    if response_format.type == "json_object":
        return {"type": "object"}
    if response_format.json_schema is None or response_format.json_schema.schema is None:
        where = "response_format.json_schema" + ("" if response_format.json_schema is None else ".schema")
        raise wrong_request(f"{where} is missing", where)
    return response_format.json_schema.schema

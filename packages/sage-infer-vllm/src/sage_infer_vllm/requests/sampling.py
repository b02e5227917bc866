"""A request's sampling in vLLM's words; what vLLM does not do is refused, never dropped."""

from __future__ import annotations

import json
from typing import Any

from sage_infer.errors import InvalidRequest, UnsupportedFeature
from sage_infer.schemas import GuidedDecoding, SamplingParams

__all__ = ["check_params", "engine_params"]

MAX_TEMPERATURE = 2.0


def check_params(params: SamplingParams, *, max_logprobs: int) -> None:
    """Refuse what vLLM would refuse or silently change, before anything is queued.

    Raises:
        UnsupportedFeature: vLLM has no such sampling.
    """
    if params.temperature > MAX_TEMPERATURE:
        raise UnsupportedFeature(
            f"vLLM samples at temperatures up to {MAX_TEMPERATURE:g}, got {params.temperature:g}"
        )
    if params.n > 1 and params.temperature == 0:
        raise UnsupportedFeature(
            f"vLLM makes one completion at temperature 0, as all would be alike; n is {params.n}: set a temperature"
        )
    if params.logprobs is not None and params.logprobs > max_logprobs:
        raise UnsupportedFeature(
            f"this engine gives up to {max_logprobs} log probabilities a token, got logprobs={params.logprobs}; "
            "set the option engine_options={max_logprobs: N}"
        )


def engine_params(compat: Any, params: SamplingParams, *, room: int) -> Any:
    """vLLM's parameters for one prompt that leaves ``room`` tokens for its output; used by that prompt alone."""
    max_tokens = min(params.max_tokens or room, room)
    return compat.SamplingParams(
        n=params.n,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        seed=params.seed,
        stop=list(params.stop),
        stop_token_ids=list(params.stop_token_ids),
        ignore_eos=params.ignore_eos,
        max_tokens=max_tokens,
        min_tokens=min(params.min_tokens, max_tokens),
        logprobs=params.logprobs,
        skip_special_tokens=params.skip_special_tokens,
        structured_outputs=None if params.guided is None else _structured(compat, params.guided),
        output_kind=compat.RequestOutputKind.DELTA,
    )


def _structured(compat: Any, guided: GuidedDecoding) -> Any:
    if guided.json_schema is not None:
        return compat.StructuredOutputsParams(json=json.dumps(dict(guided.json_schema)))
    if guided.regex is not None:
        return compat.StructuredOutputsParams(regex=guided.regex)
    if guided.grammar is not None:
        return compat.StructuredOutputsParams(grammar=guided.grammar)
    if guided.choice is None:
        raise InvalidRequest("guided decoding names no constraint")
    return compat.StructuredOutputsParams(choice=list(guided.choice))

"""Conversion of sampling parameters to vLLM's. Parameters without support are rejected, never ignored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sage_infer.errors import InvalidRequest, UnsupportedFeature
from sage_infer.schemas import GuidedDecoding, SamplingParams

from sage_infer_vllm.kv.plan import PARAMS

__all__ = ["check_params", "engine_params"]

MAX_TEMPERATURE = 2.0


def check_params(params: SamplingParams, *, max_logprobs: int) -> None:
    """Reject parameters that vLLM would reject or silently change, before queueing.

    Raises:
        UnsupportedFeature: vLLM does not support the parameters.
    """
    if params.temperature > MAX_TEMPERATURE:
        raise UnsupportedFeature(
            f"vLLM supports temperatures up to {MAX_TEMPERATURE:g}, got {params.temperature:g}"
        )
    if params.n > 1 and params.temperature == 0:
        raise UnsupportedFeature(
            f"vLLM supports only one completion at temperature 0, got n={params.n}; set a temperature above 0"
        )
    if params.logprobs is not None and params.logprobs > max_logprobs:
        raise UnsupportedFeature(
            f"this engine supports up to {max_logprobs} log probabilities per token, got logprobs={params.logprobs}; "
            "set the option engine_options={max_logprobs: N}"
        )


def engine_params(
    compat: Any,
    params: SamplingParams,
    *,
    room: int,
    seed: int | None = None,
    extra: Mapping[str, Any] | None = None,
    kv: Mapping[str, Any] | None = None,
) -> Any:
    """vLLM's parameters for one prompt with ``room`` tokens for its output; not shared between prompts.

    ``seed`` is used if ``params`` has none; ``extra`` becomes vLLM's ``extra_args``, for plug-ins in the engine, and
    ``kv`` the part that our connector reads.
    """
    own = {**(extra or {}), **({"kv_transfer_params": {PARAMS: dict(kv)}} if kv else {})}
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
        seed=seed if params.seed is None else params.seed,
        stop=list(params.stop),
        stop_token_ids=list(params.stop_token_ids),
        ignore_eos=params.ignore_eos,
        max_tokens=max_tokens,
        min_tokens=min(params.min_tokens, max_tokens),
        logprobs=params.logprobs,
        skip_special_tokens=params.skip_special_tokens,
        structured_outputs=None if params.guided is None else _structured(compat, params.guided),
        output_kind=compat.RequestOutputKind.DELTA,
        extra_args=own or None,
    )


def _structured(compat: Any, guided: GuidedDecoding) -> Any:
    if guided.json_schema is not None:
        return compat.StructuredOutputsParams(json=json.dumps(dict(guided.json_schema)))
    if guided.regex is not None:
        return compat.StructuredOutputsParams(regex=guided.regex)
    if guided.grammar is not None:
        return compat.StructuredOutputsParams(grammar=guided.grammar)
    if guided.choice is None:
        raise InvalidRequest("guided decoding has no constraint")
    return compat.StructuredOutputsParams(choice=list(guided.choice))

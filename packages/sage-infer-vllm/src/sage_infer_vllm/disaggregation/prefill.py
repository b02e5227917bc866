"""``prefill``: requests that end with their first token, and whose KV is held."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence
from typing import Any

from attrs import define, field
from sage_infer.contracts import PrefillResult, request_ids
from sage_infer.errors import OutOfMemory, Overloaded, SageInferError, UnsupportedFeature
from sage_infer.schemas import (
    DecodeState,
    FinishReason,
    Prompt,
    RequestOptions,
    SamplingParams,
    Timing,
    TokenLogprob,
    Usage,
)

from sage_infer_vllm.disaggregation.instance import Instance
from sage_infer_vllm.handover.held import Held
from sage_infer_vllm.kv.plan import PARAMS
from sage_infer_vllm.requests.delivery import Delivery
from sage_infer_vllm.requests.prompts import TokenizedPrompt, tokenize
from sage_infer_vllm.requests.sampling import check_params, engine_params

__all__ = ["prefill"]

_SEED_BITS = 31
_RETRY_S = 1.0


@define(eq=False)
class _First:
    """The prefill of one prompt."""

    name: str
    prompt: TokenizedPrompt
    delivery: Delivery
    seed: int
    continues: bool  # the request may have a second token
    tokens: list[int] = field(factory=list)
    text: str = ""
    logprob: TokenLogprob | None = None

    @property
    def finish_reason(self) -> FinishReason | None:
        reason = self.delivery.stream.finish_reason
        return None if reason == "length" and self.continues else reason

    async def read(self) -> None:
        async for delta in self.delivery.stream:
            self.tokens += delta.token_ids
            self.text += delta.text
            if delta.logprobs:
                self.logprob = delta.logprobs[0]


async def prefill(
    on: Instance,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    options: RequestOptions,
    *,
    request_id: str,
    hold_s: float,
) -> PrefillResult:
    running = on.running
    on.check_claims(params, options, prompts)
    if params.n != 1:
        raise UnsupportedFeature(f"prefill creates one state per prompt, but n is {params.n}; use generate")
    check_params(params, max_logprobs=running.max_logprobs)
    adapter = running.adapter(params.adapter)
    found = await tokenize(
        running.tokenizer, prompts, vocab_size=running.vocab_size, limit=running.max_sequence_length
    )
    _check_room(on, found)
    ids = request_ids(request_id, len(found))
    running.check_ids(ids)
    running.requests.reserve(ids)
    started: list[_First] = []
    try:
        for part, prompt in zip(ids, found, strict=True):
            started.append(_begin(on, part, prompt, params, options))
        stored = await running.stored_pages(found, adapter=params.adapter, options=options)
        for first, pages in zip(started, stored, strict=True):
            params_of_part = engine_params(
                running.compat, params, room=1, seed=first.seed if params.temperature else None,
                kv={**({"hold": first.name} if first.continues else {}), **running.stored_params(pages)},
            )  # fmt: skip
            await running.submit(
                first.delivery,
                first.prompt,
                params_of_part,
                adapter=adapter,
                options=options,
                salt=options.cache_salt,
                pages=pages,
            )
        for first in started:
            await first.read()
        held = [_held(on, first, options.cache_salt) for first in started]
    except BaseException:
        for first in started:
            first.delivery.stream.cancel()
            running.release(first.name)
        running.requests.release(ids)
        raise
    for one, first in zip(held, started, strict=True):
        if one is not None:
            running.held.add(one, hold_s)
        elif first.continues:
            running.release(first.name)  # a stop text ended it, which the engine does not see
    return _result(started, [_state(on, first, params, options.cache_salt) for first in started])


def _begin(
    on: Instance, request_id: str, prompt: TokenizedPrompt, params: SamplingParams, options: RequestOptions
) -> _First:
    room = on.running.max_sequence_length - len(prompt.token_ids)
    delivery = on.running.requests.add(
        request_id,
        prompt_tokens=len(prompt.token_ids),
        logprobs=params.logprobs,
        deadline=options.deadline,
    )
    drawn = secrets.randbits(_SEED_BITS) if params.temperature else 0
    return _First(
        name=uuid.uuid4().hex,
        prompt=prompt,
        delivery=delivery,
        seed=drawn if params.seed is None else params.seed,
        continues=min(params.max_tokens or room, room) > 1,
    )


def _held(on: Instance, first: _First, salt: str) -> Held | None:
    request_id = first.delivery.request_id
    if len(first.tokens) != 1:
        raise SageInferError(
            f"vLLM ended the prefill of request {request_id!r} with {len(first.tokens)} tokens; send it again"
        )
    if first.finish_reason is not None:
        return None
    handed = (first.delivery.handed or {}).get(PARAMS)
    if handed is None:
        raise SageInferError(f"the engine did not hold the KV of request {request_id!r}; send it again")
    return Held(
        request_id=request_id,
        tokens=(*first.prompt.token_ids, *first.tokens),
        salt=salt,
        cached_tokens=first.delivery.usage().cached_tokens,
        blocks=tuple(handed["blocks"]),
        name=first.name,
    )


def _state(on: Instance, first: _First, params: SamplingParams, salt: str) -> DecodeState:
    return on.states.of(
        first.delivery.request_id,
        first.prompt.token_ids,
        first.tokens[0],
        params,
        seed=first.seed,
        salt=salt,
        cached_tokens=first.delivery.usage().cached_tokens,
        text=first.text,
        logprob=first.logprob,
        finish_reason=first.finish_reason,
    )


def _check_room(on: Instance, prompts: Sequence[TokenizedPrompt]) -> None:
    size, stats = on.states.schema.page_size, on.running.stats()
    blocks = sum(-(-len(prompt.token_ids) // size) for prompt in prompts)
    if blocks > stats.kv_blocks_total:
        raise OutOfMemory(
            f"the KV of these {len(prompts)} prompts needs {blocks} blocks, but there are only "
            f"{stats.kv_blocks_total}; prefill fewer together, or raise kv_cache_gb"
        )
    free = stats.kv_blocks_total - on.running.held.blocks
    if blocks > free:
        raise Overloaded(
            f"the KV of these {len(prompts)} prompts needs {blocks} blocks, and held requests leave {free}; "
            "decode or abort them first",
            retry_after=_RETRY_S,
        )


def _result(found: Sequence[_First], states: Sequence[DecodeState]) -> PrefillResult:
    usages: list[Any] = [first.delivery.stream.usage for first in found]
    timings: list[Any] = [first.delivery.stream.timing for first in found]
    return PrefillResult(
        states=tuple(states),
        usage=Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in usages),
            completion_tokens=sum(usage.completion_tokens for usage in usages),
            cached_tokens=sum(usage.cached_tokens for usage in usages),
        ),
        timing=Timing(
            queue_s=min(timing.queue_s for timing in timings),
            ttft_s=max(timing.ttft_s for timing in timings),
            total_s=max(timing.total_s for timing in timings),
        ),
    )

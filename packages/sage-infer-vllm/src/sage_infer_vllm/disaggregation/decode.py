"""``decode``: the prompt again, with its KV loaded and its first output token fixed."""

from __future__ import annotations

from sage_infer.contracts import BufferedTokenStream, DecodeResult
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import DecodeState, RequestOptions, Timing, TokenDelta, Usage
from sage_infer.sdk import first_logprob

from sage_infer_vllm.disaggregation.instance import Instance
from sage_infer_vllm.kv.plan import FIRST_TOKEN
from sage_infer_vllm.requests.prompts import TokenizedPrompt
from sage_infer_vllm.requests.sampling import check_params, engine_params

__all__ = ["decode"]


async def decode(
    on: Instance, state: DecodeState, options: RequestOptions, *, request_id: str
) -> DecodeResult:
    running = on.running
    on.check_claims(state.params, options)
    on.states.check(state)
    if state.finish_reason is not None:
        return DecodeResult(stream=_delivered(state, request_id, on.states.cached_tokens(state)))
    held = on.find(state)
    check_params(state.params, max_logprobs=running.max_logprobs)
    if held.pages is None and options.cache_salt and options.cache_salt != held.salt:
        raise InvalidRequest(
            f"cache_salt of decode is not that of the prefill of request {state.request_id!r}; leave it out"
        )
    adapter, prompt = running.adapter(state.params.adapter), list(state.prompt_token_ids)
    if request_id != state.request_id:
        running.check_ids([request_id])
    running.requests.reserve([request_id])
    running.held.take(held)
    delivery = running.requests.add(
        request_id, prompt_tokens=len(prompt), logprobs=state.params.logprobs, deadline=options.deadline
    )
    delivery.cached = held.cached_tokens
    if held.pages is not None:
        delivery.loaded = held.pages.close
    try:
        sampling = engine_params(
            running.compat, state.params, room=running.max_sequence_length - len(prompt),
            seed=state.seed if state.params.temperature else None,
            extra={FIRST_TOKEN: state.output_token_ids[0]}, kv=held.params,
        )  # fmt: skip
        await running.submit(
            delivery, TokenizedPrompt(prompt, None), sampling, adapter=adapter, options=options,
            salt=options.cache_salt or held.salt,
        )  # fmt: skip
    except BaseException:
        delivery.stream.cancel()
        running.held.free(held)
        raise
    return DecodeResult(stream=delivery.stream)


def _delivered(state: DecodeState, request_id: str, cached_tokens: int) -> BufferedTokenStream:
    """The stream of a request that prefill ended."""
    assert state.finish_reason is not None
    stream, logprob = BufferedTokenStream(request_id, lambda: None), first_logprob(state)
    stream.push(
        TokenDelta(
            state.first_text or "",
            state.output_token_ids,
            0,
            None if logprob is None else (logprob,),
            state.finish_reason,
        )
    )
    usage = Usage(prompt_tokens=len(state.prompt_token_ids), completion_tokens=1, cached_tokens=cached_tokens)
    stream.finish(state.finish_reason, usage, Timing(queue_s=0.0, ttft_s=0.0, total_s=0.0))
    return stream

"""``POST /v1/completions``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import msgspec
from sage_infer.compat import BaseExceptionGroup, TaskGroup
from sage_infer.contracts import TokenStream, as_prompts
from sage_infer.schemas import SamplingParams, TokenDelta, Usage

from sage_infer_serve.http.errors import wrong_request
from sage_infer_serve.http.exchange import Exchange
from sage_infer_serve.http.sse import DONE, ChunkWriter, token_ids_field
from sage_infer_serve.openai.inputs import as_inputs
from sage_infer_serve.openai.logprobs import TextOffsets, completion_logprobs, joined, of_text
from sage_infer_serve.openai.options import request_options
from sage_infer_serve.openai.sampling import guided_by, sampling_params
from sage_infer_serve.openai.schema import CompletionRequest, refused
from sage_infer_serve.openai.token_ids import continued, with_token_ids
from sage_infer_serve.openai.usage import usage_dict
from sage_infer_serve.service import Service
from sage_infer_serve.work import COMPLETION, Work

__all__ = ["completions"]

_DEFAULT_MAX_TOKENS = 16  # OpenAI's
_encode = msgspec.json.encode


async def completions(service: Service, exchange: Exchange) -> None:
    request: CompletionRequest = await service.read(exchange, CompletionRequest)
    model = COMPLETION.model(service, request.model)
    prompts = as_inputs(request.prompt, "prompt", request.n or 1)
    _refuse_what_nothing_does(request, prompts)
    params = sampling_params(
        request,
        max_tokens=request.max_tokens or _DEFAULT_MAX_TOKENS,
        logprobs=request.logprobs,
        guided=guided_by(request),
    )
    with Work(service, exchange, COMPLETION, model, params, is_streamed=bool(request.stream)) as work:
        streams = await _start(service, exchange, request, prompts, params, model)
        async with AsyncExitStack() as stack:
            for stream in streams:
                await stack.enter_async_context(stream)
            answer_id, fingerprint = "cmpl-" + exchange.request_id, service.fingerprint(model)
            answer = _Answer(request, model, prompts, params.n, answer_id, fingerprint)
            deltas = _deltas(streams, params.n)
            if request.stream:
                await _stream(service, exchange, request, answer, deltas, streams, work)
            else:
                async for index, delta in deltas:
                    work.tokens(len(delta.token_ids))
                    if delta.logprobs:
                        await service.loop_time.turn()
                    answer.take(index, delta)
                usage = _total(streams)
                work.end(usage, answer.reasons)
                await exchange.respond(answer.body(usage_dict(usage)))


async def _start(
    service: Service,
    exchange: Exchange,
    request: CompletionRequest,
    prompts: list[str | list[int]],
    params: SamplingParams,
    model: str,
) -> Sequence[TokenStream]:
    """Start the request; with ``return_token_ids``, the prompts become lists of token ids."""
    options, name = request_options(service, exchange, request), exchange.request_id
    if request.return_token_ids:
        for place, prompt in enumerate(as_prompts(prompts)):
            known = await with_token_ids(service, prompt, model)
            prompts[place] = list(known.token_ids or ()) or prompts[place]
    if request.continue_from is not None:
        return [await continued(service, request, prompts, params, model, name, options)]
    return await service.backend.generate(prompts, params, model, request_id=name, options=options)


async def _stream(
    service: Service,
    exchange: Exchange,
    request: CompletionRequest,
    answer: _Answer,
    deltas: AsyncIterator[tuple[int, TokenDelta]],
    streams: Sequence[TokenStream],
    work: Work,
) -> None:
    with_usage = request.stream_options is not None and request.stream_options.include_usage
    writer = ChunkWriter(
        answer.id, "text_completion", answer.created, answer.model,
        with_usage=with_usage, fingerprint=answer.fingerprint,
    )  # fmt: skip
    started = False
    async for index, delta in deltas:
        work.tokens(len(delta.token_ids))
        if delta.logprobs:
            await service.loop_time.turn()
        text, logprobs = answer.take(index, delta)
        if not started:
            started = True
            await exchange.start_stream()
        if request.return_token_ids:
            more = answer.ids_of(index, delta)
            await exchange.write(writer.completion(index, text, _encode(logprobs), delta.finish_reason, more))
        elif delta.finish_reason is None and logprobs is None:
            if text:
                await exchange.write(writer.text(index, text))
        else:
            await exchange.write(writer.completion(index, text, _encode(logprobs), delta.finish_reason))
    usage = _total(streams)
    work.end(usage, answer.reasons)
    await exchange.end((writer.usage(_encode(usage_dict(usage))) if with_usage else b"") + DONE)


async def _deltas(streams: Sequence[TokenStream], n: int) -> AsyncIterator[tuple[int, TokenDelta]]:
    """Deltas of all prompts on arrival, each with its choice index: ``n`` choices per prompt, in order."""
    if len(streams) == 1:
        async for delta in streams[0]:
            yield delta.index, delta
        return
    queue: asyncio.Queue[tuple[int, TokenDelta] | None] = asyncio.Queue()

    async def read(place: int, stream: TokenStream) -> None:
        async for delta in stream:
            queue.put_nowait((place * n + delta.index, delta))

    async def read_all() -> None:
        try:
            async with TaskGroup() as group:
                for place, stream in enumerate(streams):
                    group.create_task(read(place, stream))
        finally:
            queue.put_nowait(None)

    reading = asyncio.ensure_future(read_all())
    try:
        while (item := await queue.get()) is not None:
            yield item
        try:
            await reading
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
    finally:
        reading.cancel()


class _Answer:
    """A growing answer."""

    def __init__(
        self,
        request: CompletionRequest,
        model: str,
        prompts: Sequence[str | list[int]],
        n: int,
        request_id: str,
        fingerprint: str,
    ) -> None:
        self.id, self.created, self.model = request_id, int(time.time()), model
        self.fingerprint = fingerprint
        self.reasons: list[str] = ["stop"] * (n * len(prompts))
        # Echoed text precedes the first new text.
        echoed = [p if request.echo and isinstance(p, str) else "" for p in prompts for _ in range(n)]
        self._pending = list(echoed)
        self._texts: list[list[str]] = [[] for _ in echoed]
        self._with_logs = request.logprobs is not None
        self._is_streamed = bool(request.stream)
        self._offsets = [TextOffsets(len(text)) for text in echoed]
        self._logs: list[list[dict[str, Any]]] = [[] for _ in echoed]
        self._ids: list[list[int]] | None = [[] for _ in echoed] if request.return_token_ids else None
        self._prompts = [None if isinstance(p, str) else p for p in prompts for _ in range(n)]
        self._unseen = set(range(len(echoed)))

    def ids_of(self, index: int, delta: TokenDelta) -> bytes:
        """Fields of a chunk with the token ids of its text, and of the prompt with the first one."""
        more = token_ids_field("token_ids", delta.token_ids)
        prompt = self._prompts[index]
        if index in self._unseen and prompt is not None:
            more = token_ids_field("prompt_token_ids", prompt) + more
        self._unseen.discard(index)
        return more

    def take(self, index: int, delta: TokenDelta) -> tuple[str, dict[str, Any] | None]:
        """Add a delta; returns its text and log probabilities."""
        text = self._pending[index] + delta.text
        self._pending[index] = ""
        self._texts[index].append(text)
        logs = None
        if self._with_logs and (new := of_text(delta)):
            logs = completion_logprobs(new, self._offsets[index])
            if not self._is_streamed:
                self._logs[index].append(logs)
        if delta.finish_reason is not None:
            self.reasons[index] = delta.finish_reason
        if self._ids is not None:
            self._ids[index] += delta.token_ids
        return text, logs

    def body(self, usage: dict[str, Any]) -> bytes:
        choices = [
            {
                "index": index,
                "text": "".join(texts),
                "logprobs": joined(self._logs[index]) if self._with_logs else None,
                "finish_reason": self.reasons[index],
            }
            | (
                {}
                if self._ids is None
                else {"prompt_token_ids": self._prompts[index], "token_ids": self._ids[index]}
            )
            for index, texts in enumerate(self._texts)
        ]
        return _encode(
            {
                "id": self.id,
                "object": "text_completion",
                "created": self.created,
                "model": self.model,
                "choices": choices,
                "usage": usage,
                "system_fingerprint": self.fingerprint,
            }
        )


def _total(streams: Sequence[TokenStream]) -> Usage:
    """Total usage of all prompts."""
    each = [stream.usage for stream in streams if stream.usage is not None]
    return Usage(
        prompt_tokens=sum(u.prompt_tokens for u in each),
        completion_tokens=sum(u.completion_tokens for u in each),
        cached_tokens=sum(u.cached_tokens for u in each),
        reasoning_tokens=sum(u.reasoning_tokens for u in each),
    )


def _refuse_what_nothing_does(request: CompletionRequest, prompts: Sequence[str | Sequence[int]]) -> None:
    if request.suffix:
        raise refused("suffix (filling in the middle) is not supported", "suffix")
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise refused("best_of other than n is not supported", "best_of")
    if request.echo and request.logprobs is not None:
        raise refused("echo with logprobs is not supported", "echo")
    if request.echo and not all(isinstance(prompt, str) for prompt in prompts):
        raise refused("echo of token ids is not supported", "echo")
    if request.echo and request.return_token_ids:
        raise refused("echo with return_token_ids is not supported", "echo")
    if request.stream_options is not None and not request.stream:
        raise wrong_request("stream_options requires stream: true", "stream_options")

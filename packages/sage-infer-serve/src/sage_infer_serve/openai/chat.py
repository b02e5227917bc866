"""``POST /v1/chat/completions``."""

from __future__ import annotations

from functools import partial
from typing import Any

import attrs
import msgspec
from sage_infer.contracts import BufferedTokenStream, HybridToolCalling, TokenStream
from sage_infer.schemas import SamplingParams, TokenDelta

from sage_infer_serve.http.errors import wrong_request
from sage_infer_serve.http.exchange import Exchange
from sage_infer_serve.http.sse import DONE, ChunkWriter
from sage_infer_serve.openai.chat_answer import GrowingAnswer
from sage_infer_serve.openai.messages import as_chat
from sage_infer_serve.openai.options import request_options
from sage_infer_serve.openai.plan import ChatPlan, Parse
from sage_infer_serve.openai.rendering import has_usual_ending, render, template_variables
from sage_infer_serve.openai.sampling import sampling_params
from sage_infer_serve.openai.schema import ChatRequest, refused
from sage_infer_serve.openai.token_ids import tokenizing, with_token_ids
from sage_infer_serve.openai.usage import usage_dict
from sage_infer_serve.service import Service
from sage_infer_serve.work import CHAT, Work

__all__ = ["chat_completions"]

_ROLE = b'{"role":"assistant","content":""}'


async def chat_completions(service: Service, exchange: Exchange) -> None:
    request: ChatRequest = await service.read(exchange, ChatRequest)
    model = CHAT.model(service, request.model)
    plan = ChatPlan(request)
    _refuse_what_nothing_does(request)
    params = sampling_params(
        request,
        max_tokens=request.max_completion_tokens or request.max_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        guided=plan.guided,
        keep_special_tokens=plan.reads_calls,
    )
    with Work(service, exchange, CHAT, model, params, is_streamed=bool(request.stream)) as work:
        stream, answer = await _start(service, exchange, request, params, model, plan)
        async with stream:
            if request.stream:
                await _stream(service, exchange, answer, stream, work)
            else:
                async for delta in stream:
                    work.tokens(len(delta.token_ids))
                    if delta.logprobs:
                        await service.loop_time.turn()
                    await answer.take(delta)
                work.end(stream.usage, answer.reasons())
                await exchange.respond(answer.body(usage_dict(stream.usage, answer.reasoning_tokens)))


async def _start(
    service: Service,
    exchange: Exchange,
    request: ChatRequest,
    params: SamplingParams,
    model: str,
    plan: ChatPlan,
) -> tuple[TokenStream, GrowingAnswer]:
    backend = service.backend
    messages = as_chat(request.messages, text_only=service.is_text_only(model))
    options = request_options(service, exchange, request)
    form = None if service.reading is None else await service.reading.answer_format(model=model)
    may_think = form is not None and plan.reads_thoughts(form) and service.tokenizing is not None
    if (
        may_think
        and form is not None
        and form.thoughts_need_special_tokens
        and request.skip_special_tokens is None
    ):
        params = attrs.evolve(params, skip_special_tokens=False)
    prompt_text, prompt_ids = "", None
    if has_usual_ending(request) and not may_think and not request.return_token_ids:
        stream = await backend.chat(
            messages,
            params,
            model,
            tools=plan.tools,
            template_variables=template_variables(request),
            request_id=exchange.request_id,
            options=options,
        )
    else:  # whether the prompt has opened the thoughts is seen at its end
        renderer = tokenizing(service) if request.return_token_ids else backend
        prompt = await render(renderer, request, messages, model=model, tools=plan.tools)
        prompt_text = prompt.text or ""
        if request.return_token_ids:
            prompt = await with_token_ids(service, prompt, model)
            prompt_ids = prompt.token_ids
        (stream,) = await backend.generate(
            [prompt], params, model, request_id=exchange.request_id, options=options
        )
    parse = None if form is not None else _backends_parser(service, model, plan)
    readers = [plan.reader(form, prompt_text, has_parser=parse is not None) for _ in range(params.n)]
    if request.continue_final_message:  # what the message has so far is not repeated
        for reader in readers:
            if reader is not None:
                reader.feed(messages[-1]["content"])
    return stream, GrowingAnswer(
        request,
        exchange.request_id,
        model,
        readers=readers,
        parse=parse,
        is_single=plan.is_single,
        fingerprint=service.fingerprint(model),
        prompt_token_ids=prompt_ids,
    )


async def _stream(
    service: Service, exchange: Exchange, answer: GrowingAnswer, stream: Any, work: Work
) -> None:
    """Send each delta on arrival. The response starts with the first one, so that earlier errors have a status."""
    writer = ChunkWriter(
        answer.id, "chat.completion.chunk", answer.created, answer.model,
        with_usage=answer.include_usage, fingerprint=answer.fingerprint,
    )  # fmt: skip
    plain = answer.is_plain
    started: set[int] = set()

    def take(delta: TokenDelta) -> bool:
        """The common case: new text, written on arrival."""
        if delta.index not in started or delta.finish_reason is not None or not delta.text:
            return False
        if delta.reasoning or delta.tool_calls:
            return False
        if not exchange.write_nowait(writer.text(delta.index, delta.text)):
            return False
        work.tokens(len(delta.token_ids))
        return True

    if plain and isinstance(stream, BufferedTokenStream):
        stream.on_delta(take)
    async for delta in stream:
        work.tokens(len(delta.token_ids))
        index = delta.index
        parts: list[bytes] = []
        if index not in started:
            if not started:
                await exchange.start_stream()
            parts.append(writer.opening(index, _ROLE, b"" if started else answer.prompt_ids))
            started.add(index)
        if plain and not (delta.reasoning or delta.tool_calls):
            if delta.text:
                parts.append(writer.text(index, delta.text))
            if delta.finish_reason is not None:
                answer.finished(delta)
                parts.append(writer.finish(index, answer.reason_of(index)))
        else:
            await service.loop_time.turn()
            parts += await answer.chunks(writer, delta)
        if parts:
            data = b"".join(parts) if len(parts) > 1 else parts[0]
            if not exchange.write_nowait(data):
                await exchange.write(data)
    if not started:
        await exchange.start_stream()
    work.end(stream.usage, answer.reasons())
    usage = usage_dict(stream.usage, answer.reasoning_tokens)
    tail = writer.usage(msgspec.json.encode(usage)) if answer.include_usage else b""
    await exchange.end(tail + DONE)


def _backends_parser(service: Service, model: str, plan: ChatPlan) -> Parse | None:
    """The tool-call parser of the model's backend; None if it has none."""
    backend = service.backend
    if not plan.reads_calls or not isinstance(backend, HybridToolCalling):
        return None
    if not service.claims(model, "tool_calls"):
        return None
    return partial(backend.parse_tool_calls, model=model, tools=plan.tools)


def _refuse_what_nothing_does(request: ChatRequest) -> None:
    if request.functions or request.function_call:
        raise refused(
            "functions and function_call are not supported (use tools and tool_choice)",
            "functions",
        )
    if request.modalities is not None and "audio" in request.modalities:
        raise refused("audio output is not supported", "modalities")
    if request.top_logprobs is not None and not request.logprobs:
        raise wrong_request("top_logprobs requires logprobs: true", "top_logprobs")
    if request.stream_options is not None and not request.stream:
        raise wrong_request("stream_options requires stream: true", "stream_options")

"""``POST /v1/chat/completions``."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any

import msgspec
from sage_infer.contracts import BufferedTokenStream, ChatAnswer, HybridToolCalling, TokenStream, ToolCall
from sage_infer.schemas import GuidedDecoding, SamplingParams, TokenDelta

from sage_infer_serve.http.errors import wrong_request
from sage_infer_serve.http.exchange import Exchange
from sage_infer_serve.http.sse import DONE, ChunkWriter
from sage_infer_serve.openai.forced_calls import call_of, schema_of_any
from sage_infer_serve.openai.logprobs import chat_logprobs, of_text
from sage_infer_serve.openai.messages import as_chat, function_names, tools_as_dicts
from sage_infer_serve.openai.options import request_options
from sage_infer_serve.openai.rendering import has_usual_ending, render, template_variables
from sage_infer_serve.openai.sampling import guided_by, sampling_params
from sage_infer_serve.openai.schema import ChatRequest, NamedTool, refused
from sage_infer_serve.openai.tool_calls import ToolCallReader, call_as_dict
from sage_infer_serve.openai.usage import usage_dict
from sage_infer_serve.service import Service
from sage_infer_serve.work import CHAT, Work

__all__ = ["chat_completions"]

Parse = Callable[[str], Awaitable[ChatAnswer]]

_encode = msgspec.json.encode


async def chat_completions(service: Service, exchange: Exchange) -> None:
    request: ChatRequest = await service.read(exchange, ChatRequest)
    model = CHAT.model(service, request.model)
    plan = _Plan(request)
    _refuse_what_nothing_does(request)
    params = sampling_params(
        request,
        max_tokens=request.max_completion_tokens or request.max_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        guided=plan.guided,
        keep_special_tokens=plan.reads_calls,
    )
    with Work(service, exchange, CHAT, model, params, is_streamed=bool(request.stream)) as work:
        stream = await _start(service, exchange, request, params, model, plan.tools)
        parse = _backends_parser(service, model, plan)
        answer = _Answer(request, model, params, plan, parse, "chatcmpl-" + exchange.request_id)
        async with stream:
            if request.stream:
                await _stream(exchange, answer, stream, work)
            else:
                async for delta in stream:
                    work.tokens(len(delta.token_ids))
                    await answer.take(delta)
                work.end(stream.usage, answer.reasons())
                await exchange.respond(answer.body(usage_dict(stream.usage)))


async def _start(
    service: Service,
    exchange: Exchange,
    request: ChatRequest,
    params: SamplingParams,
    model: str,
    tools: list[dict[str, Any]] | None,
) -> TokenStream:
    backend = service.backend
    messages = as_chat(request.messages, text_only=service.is_text_only(model))
    options = request_options(service, exchange, request)
    if has_usual_ending(request):
        return await backend.chat(
            messages,
            params,
            model,
            tools=tools,
            template_variables=template_variables(request),
            request_id=exchange.request_id,
            options=options,
        )
    prompt = await render(backend, request, messages, model=model, tools=tools)
    (stream,) = await backend.generate(
        [prompt], params, model, request_id=exchange.request_id, options=options
    )
    return stream


async def _stream(exchange: Exchange, answer: _Answer, stream: Any, work: Work) -> None:
    """Send each delta on arrival. The response starts with the first one, so that earlier errors have a status."""
    writer = ChunkWriter(
        answer.id, "chat.completion.chunk", answer.created, answer.model, with_usage=answer.include_usage
    )
    plain = answer.is_plain
    started: set[int] = set()

    def take(delta: TokenDelta) -> bool:
        """The common case: new text, written on arrival."""
        if delta.index not in started or delta.finish_reason is not None or not delta.text:
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
            started.add(index)
            parts.append(writer.delta(index, b'{"role":"assistant","content":""}'))
        if plain:
            if delta.text:
                parts.append(writer.text(index, delta.text))
            if delta.finish_reason is not None:
                answer.finished(delta)
                parts.append(writer.finish(index, answer.reason_of(index)))
        else:
            parts += await answer.chunks(writer, delta)
        if parts:
            data = b"".join(parts) if len(parts) > 1 else parts[0]
            if not exchange.write_nowait(data):
                await exchange.write(data)
    if not started:
        await exchange.start_stream()
    work.end(stream.usage, answer.reasons())
    tail = writer.usage(_encode(usage_dict(stream.usage))) if answer.include_usage else b""
    await exchange.end(tail + DONE)


class _Plan:
    """Generation settings from tools and response format."""

    def __init__(self, request: ChatRequest) -> None:
        tools = request.tools or []
        choice = request.tool_choice
        if choice is not None and choice != "none" and not tools:
            raise wrong_request("tool_choice requires tools", "tool_choice")
        names = function_names(tools)
        self.tools = tools_as_dicts(tools) if tools and choice != "none" else None
        self.names = names if self.tools else []
        self.forced = ""  # the function that the whole output must call
        self.required = choice == "required"
        self.guided = guided_by(request, request.response_format)
        if self.guided is not None and (self.required or isinstance(choice, NamedTool)):
            raise wrong_request(
                "a forced tool call and a response format are mutually exclusive", "tool_choice"
            )
        if isinstance(choice, NamedTool):
            if choice.function.name not in names:
                known = ", ".join(names)
                raise wrong_request(
                    f"unknown tool {choice.function.name!r}; available: {known}",
                    "tool_choice.function.name",
                )
            self.forced = choice.function.name
            tool = tools[names.index(self.forced)]
            self.guided = GuidedDecoding(json_schema=tool.function.parameters or {"type": "object"})
        elif self.required:
            self.guided = GuidedDecoding(json_schema=schema_of_any(tools))
        self.is_single = request.parallel_tool_calls is False
        self.reads_calls = bool(self.tools) and not self.forced and not self.required


def _backends_parser(service: Service, model: str, plan: _Plan) -> Parse | None:
    """The tool-call parser of the model's backend; None if it has none."""
    backend = service.backend
    if not plan.reads_calls or not isinstance(backend, HybridToolCalling):
        return None
    if not service.claims(model, "tool_calls"):
        return None
    return partial(backend.parse_tool_calls, model=model, tools=plan.tools)


class _Answer:
    """A growing answer: text, calls, log probabilities and finish reason per completion."""

    def __init__(
        self,
        request: ChatRequest,
        model: str,
        params: SamplingParams,
        plan: _Plan,
        parse: Parse | None,
        request_id: str,
    ) -> None:
        self.id = request_id
        self.created = int(time.time())
        self.model = model
        self.include_usage = request.stream_options is not None and request.stream_options.include_usage
        self._plan = plan
        self._logprobs = params.logprobs is not None
        self._n = params.n
        self._texts: list[list[str]] = [[] for _ in range(params.n)]
        self._logs: list[list[Any]] = [[] for _ in range(params.n)]
        self._calls: list[list[dict[str, Any]]] = [[] for _ in range(params.n)]
        self._reasons: list[str | None] = [None] * params.n
        self._parse = parse
        reads = plan.reads_calls and parse is None
        self._readers = [ToolCallReader(plan.names) for _ in range(params.n)] if reads else []
        self.is_plain = not (plan.tools or self._logprobs)

    # --- input

    async def take(self, delta: TokenDelta) -> tuple[str, list[dict[str, Any]]]:
        """Add a delta; returns the content and the calls that it brought.

        A backend's parser needs the whole answer: with one, both come at the end.
        """
        index = delta.index
        text, calls = delta.text, []
        if self._readers:
            text, found = self._readers[index].feed(delta.text)
            is_over = self._plan.is_single and bool(self._calls[index])
            if delta.finish_reason is not None:
                rest, more = self._readers[index].end()
                text, found = text + rest, found + more
            if is_over:  # the rest belongs to further calls
                text = ""
            calls = self._add_calls(index, found)
        if text:
            self._texts[index].append(text)
        if self._logprobs:
            self._logs[index] += chat_logprobs(of_text(delta))
        if delta.finish_reason is not None:
            self.finished(delta)
        if self._plan.forced or self._plan.required:
            if delta.finish_reason is not None:
                text, found = self._whole_call("".join(self._texts[index]))
                calls = self._add_calls(index, found)
                self._texts[index] = [text]
            else:
                text = ""
        if self._parse is not None:
            text = ""
            if delta.finish_reason is not None:
                answer = await self._parse("".join(self._texts[index]))
                text, calls = answer.content, self._add_calls(index, answer.tool_calls)
                self._texts[index] = [text]
        return text, calls

    def finished(self, delta: TokenDelta) -> None:
        self._reasons[delta.index] = delta.finish_reason

    def _add_calls(self, index: int, found: Iterable[ToolCall]) -> list[dict[str, Any]]:
        known = self._calls[index]
        if self._plan.is_single:
            found = list(found)[: 1 - len(known)]
        calls = [
            call_as_dict(call, f"call_{self.id}_{index}_{len(known) + i}") for i, call in enumerate(found)
        ]
        known += calls
        return calls

    def _whole_call(self, text: str) -> tuple[str, list[ToolCall]]:
        """Content, and the call formed by the whole text. A truncated call has partial arguments, as with OpenAI.

        A text truncated before the function's name is content.
        """
        if self._plan.forced:
            return "", [ToolCall(name=self._plan.forced, arguments=text)]
        call = call_of(text, self._plan.names)
        return (text, []) if call is None else ("", [call])

    def reason_of(self, index: int) -> str:
        reason = self._reasons[index] or "stop"
        return "tool_calls" if self._calls[index] and reason == "stop" else reason

    def reasons(self) -> list[str]:
        return [self.reason_of(index) for index in range(self._n)]

    # --- output

    async def chunks(self, writer: ChunkWriter, delta: TokenDelta) -> list[bytes]:
        """Chunks of an answer with calls or log probabilities."""
        index = delta.index
        first_call = len(self._calls[index])
        text, calls = await self.take(delta)
        new = of_text(delta) if self._logprobs else ()
        logs = {"content": chat_logprobs(new), "refusal": None} if new else None
        chunks = []
        if text or logs:
            chunks.append(writer.delta(index, _encode({"content": text}), logprobs=_encode(logs)))
        if calls:
            numbered = [{"index": first_call + i, **call} for i, call in enumerate(calls)]
            chunks.append(writer.delta(index, _encode({"tool_calls": numbered})))
        if delta.finish_reason is not None:
            chunks.append(writer.finish(index, self.reason_of(index)))
        return chunks

    def body(self, usage: Mapping[str, Any]) -> bytes:
        return _encode(
            {
                "id": self.id,
                "object": "chat.completion",
                "created": self.created,
                "model": self.model,
                "choices": [self._choice(index) for index in range(self._n)],
                "usage": usage,
            }
        )

    def _choice(self, index: int) -> dict[str, Any]:
        text: str | None = "".join(self._texts[index])
        calls = self._calls[index]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text or None if calls else text,
            "refusal": None,
        }
        if calls:
            message["tool_calls"] = calls
        return {
            "index": index,
            "message": message,
            "logprobs": {"content": self._logs[index], "refusal": None} if self._logprobs else None,
            "finish_reason": self.reason_of(index),
        }


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

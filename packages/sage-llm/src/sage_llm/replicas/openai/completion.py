"""One streamed completion of an OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from sage_infer.contracts import BufferedTokenStream
from sage_infer.errors import EngineDead, PluginFailed, SageInferError
from sage_infer.schemas import FinishReason, RequestOptions, Timing, TokenDelta, ToolCallDelta, Usage
from sage_infer.sdk import OpenRequest

from sage_llm.replicas.openai.base import ServerBackend
from sage_llm.replicas.openai.client import EventParser, error_of

__all__ = ["Completion", "MakeBody", "ServerStream"]

MakeBody = Callable[[], Awaitable[dict[str, Any]]]
"""Makes the body of a request; may call the server."""


class ServerStream(BufferedTokenStream):
    """The output of a server, which may also return the token ids of the prompt."""

    _prompt: tuple[int, ...] | None = None
    _on_prompt: Callable[[tuple[int, ...]], object] | None = None

    def on_prompt(self, callback: Callable[[tuple[int, ...]], object]) -> None:
        """Call ``callback`` with the token ids of the prompt before the first delta, if the server returns them."""
        self._on_prompt = callback
        if self._prompt is not None:
            callback(self._prompt)

    def set_prompt(self, token_ids: tuple[int, ...]) -> None:
        self._prompt = token_ids
        if self._on_prompt is not None:
            self._on_prompt(token_ids)


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int = 0
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    text: str = ""
    delta: _Delta | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    prompt_token_ids: list[int] | None = None
    usage: _Usage | None = None
    error: dict[str, Any] | None = None


_chunk = msgspec.json.Decoder(_Chunk).decode


class Completion:
    """One request to the server and its stream. Chunks are decoded and pushed as their bytes arrive.

    Attributes:
        accepted: done when the server has accepted the request; has the error of a refused one.
        stream: its output.
    """

    def __init__(
        self,
        backend: ServerBackend,
        request: OpenRequest,
        path: str,
        make: MakeBody,
        options: RequestOptions | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._backend, self._request = backend, request
        self.accepted: asyncio.Future[None] = loop.create_future()
        self.stream = ServerStream(request.request_id, self._stop)
        self._begun, self._first = time.monotonic(), 0.0
        self._usage = Usage(prompt_tokens=0)
        self._reason: FinishReason = "stop"
        self._events = EventParser()
        self._error: SageInferError | None = None
        self._done = False
        self._task = loop.create_task(self._run(path, make, options))
        request.on_cancel(self._cancelled)

    def _stop(self) -> None:
        self._task.cancel()

    def _cancelled(self, error: SageInferError) -> None:
        self._fail(error)
        self._task.cancel()

    def _fail(self, error: SageInferError) -> None:
        if not self.accepted.done():
            self.accepted.set_exception(error)
            self.accepted.exception()  # retrieved, even if nobody waits for it any more
        self.stream.fail(error)

    def _accept(self) -> None:
        if not self.accepted.done():
            self.accepted.set_result(None)

    async def _run(self, path: str, make: MakeBody, options: RequestOptions | None) -> None:
        backend, counts = self._backend, self._backend.counts
        counts.running += 1
        try:
            body = await make()
            await backend.server.stream(path, body, options, on_head=self._accept, on_piece=self._arrived)
            if not self._done:
                raise EngineDead(f"{backend.server.url} ended the stream before its end")
            self.stream.finish(self._reason, self._usage, self._timing())
        except SageInferError as error:
            self._fail(self._error or error)
        finally:
            counts.running -= 1
            counts.prompt_tokens += self._usage.prompt_tokens
            counts.cached_tokens += self._usage.cached_tokens
            backend.requests.finish(self._request)

    def _arrived(self, piece: bytes, _: float) -> None:
        """Take a piece of the answer. An error ends the connection, and then the stream."""
        try:
            for event in self._events.feed(piece):
                self._take(event)
        except SageInferError as error:
            self._error = error
            raise
        except msgspec.MsgspecError as error:
            self._error = PluginFailed(f"{self._backend.server.url} sent an unknown chunk: {error}")
            raise

    def _take(self, event: bytes) -> None:
        if event == b"[DONE]":
            self._done = True
            return
        chunk = _chunk(event)
        if chunk.error is not None:
            raise error_of(int(chunk.error.get("status") or 500), {}, event)
        for choice in chunk.choices:
            # vLLM has the prompt's ids in chunks of chats, and in choices of completions.
            if prompt := chunk.prompt_token_ids or choice.prompt_token_ids:
                self.stream.set_prompt(tuple(prompt))
            self._push(choice)
        if chunk.usage is not None:
            details = chunk.usage.prompt_tokens_details
            self._usage = Usage(
                prompt_tokens=chunk.usage.prompt_tokens,
                completion_tokens=chunk.usage.completion_tokens or 0,
                cached_tokens=(details.cached_tokens or 0) if details is not None else 0,
            )

    def _push(self, choice: _Choice) -> None:
        reason = None if choice.finish_reason is None else _reason(choice.finish_reason)
        delta, ids = choice.delta, tuple(choice.token_ids or ())
        if delta is None:
            found = TokenDelta(choice.text, ids, choice.index, finish_reason=reason)
        else:
            found = TokenDelta(
                delta.content or "",
                ids,
                choice.index,
                finish_reason=reason,
                reasoning=delta.reasoning_content or delta.reasoning or "",
                tool_calls=() if not delta.tool_calls else tuple(map(_call, delta.tool_calls)),
            )
        if not (found.text or ids or reason is not None or found.reasoning or found.tool_calls):
            return
        if not self._first:
            self._first = time.monotonic()
        counts = self._backend.counts
        counts.steps += 1
        counts.output_tokens += len(ids)
        if reason is not None and choice.index == 0:
            self._reason = reason
        self.stream.push(found)

    def _timing(self) -> Timing:
        now = time.monotonic()
        gaps = self._usage.completion_tokens - 1
        first = self._first or now
        return Timing(
            queue_s=0.0,
            ttft_s=first - self._begun,
            total_s=now - self._begun,
            inter_token_s=(now - first) / gaps if gaps > 0 else None,
        )


def _call(call: _Call) -> ToolCallDelta:
    function = call.function or _Function()
    return ToolCallDelta(call.index, function.name or "", function.arguments or "")


def _reason(reason: str) -> FinishReason:
    """Return the contract's finish reason; the API has more of them, such as content_filter and tool_calls."""
    return "length" if reason == "length" else "stop"

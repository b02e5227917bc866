"""Text generation on an OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec
from sage_infer.contracts import (
    BufferedTokenStream,
    ChatMessage,
    DecodeResult,
    PrefillResult,
    PromptLike,
    TokenStream,
    as_prompts,
)
from sage_infer.errors import EngineDead, InvalidRequest, PluginFailed, SageInferError, UnsupportedFeature
from sage_infer.schemas import (
    DecodeState,
    FinishReason,
    KVCacheSchema,
    Prompt,
    QuantizationProfile,
    RequestOptions,
    SamplingParams,
    Timing,
    TokenDelta,
    Usage,
)
from sage_infer.sdk import OpenRequest, check_claims

from sage_llm.replicas.openai.base import ServerBackend
from sage_llm.replicas.openai.client import EventParser, error_of
from sage_llm.replicas.openai.fields import features_of, sampling_fields

__all__ = ["OpenAIReplica"]


class _Choice(msgspec.Struct):
    index: int = 0
    text: str = ""
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: dict[str, Any] | None = None


_chunk = msgspec.json.Decoder(_Chunk).decode


class OpenAIReplica(ServerBackend):
    """A model on a server with OpenAI's completion API: vLLM, ``sage infer serve``, and others.

    Requests go to ``/v1/completions``. Chats are rendered by the server's ``/tokenize``; without it, ``chat`` is not
    claimed. Deltas have ``token_ids`` only if the server returns them (vLLM with ``return_token_ids``). ``resume`` is
    not claimed: whether a server continues exactly is unknown.

    The arguments are those of ``ServerBackend``.
    """

    _tokenizes = False

    async def prepare(self) -> None:
        try:
            await self.server.post("/tokenize", {"model": self.model.model_id, "prompt": "a"})
            self._tokenizes = True
        except SageInferError as error:
            if isinstance(error, EngineDead):
                raise

    def features(self) -> tuple[str, ...]:
        return features_of(self.dialect, tokenizes=self._tokenizes)

    # --- generation

    async def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> list[TokenStream]:
        """Start generation. Returns when the server has accepted all prompts, which for some is the first token."""
        self.check_running()
        several = as_prompts(prompts)
        check_claims(self.features(), backend=self.name, params=params, options=options, prompts=several)
        if not several:
            raise InvalidRequest("no prompts were given")
        fields = sampling_fields(params, self.dialect)
        if options is not None and options.priority:
            fields["priority"] = options.priority
        requests = self.requests.accept(request_id, len(several), options=options)
        calls = [
            _Completion(self, request, prompt, params, fields)
            for request, prompt in zip(requests, several, strict=True)
        ]
        try:
            await asyncio.gather(*(call.accepted for call in calls))
        except BaseException:
            for call in calls:
                call.stream.cancel()
            raise
        return [call.stream for call in calls]

    async def body(self, prompt: Prompt, params: SamplingParams, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body of a completion request."""
        content: str | list[int] = list(prompt.token_ids or ())
        if not content:
            content = prompt.text or ""
        if isinstance(content, str) and (not prompt.add_special_tokens or params.max_tokens is None):
            if not self._tokenizes:
                raise UnsupportedFeature(
                    f"{self.server.url} has no /tokenize, so max_tokens must be set, and prompts are text with "
                    "special tokens, or token ids"
                )
            content = await self.tokenize(prompt)
        most = params.max_tokens
        if most is None:
            most = max(1, (self.max_length or 1) - len(content))
        body: dict[str, Any] = {
            "model": self.model.model_id,
            "prompt": content,
            "max_tokens": most,
            "stream": True,
            "stream_options": {"include_usage": True},
            **fields,
        }
        if self.dialect == "vllm":
            body["return_token_ids"] = True
        return body

    # --- tokens and chats

    async def tokenize(self, prompt: PromptLike) -> list[int]:
        self._needs_tokenize()
        (one,) = as_prompts(prompt)
        if one.token_ids is not None:
            return list(one.token_ids)
        request = {"prompt": one.text, "add_special_tokens": one.add_special_tokens}
        return await self._tokens(request)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        self._needs_tokenize()
        body = {"model": self.model.model_id, "tokens": list(token_ids)}
        return cast(str, (await self.server.post("/detokenize", body))["prompt"])

    async def render_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        self._needs_tokenize()
        if not messages:
            raise InvalidRequest("messages must not be empty")
        request: dict[str, Any] = {
            "messages": list(messages),
            "add_generation_prompt": add_generation_prompt,
        }
        if tools is not None:
            request["tools"] = list(tools)
        if template_variables:
            request["chat_template_kwargs"] = dict(template_variables)
        return Prompt(token_ids=tuple(await self._tokens(request)))

    async def _tokens(self, request: Mapping[str, Any]) -> list[int]:
        answer = await self.server.post("/tokenize", {"model": self.model.model_id, **request})
        return cast(list[int], answer["tokens"])

    def _needs_tokenize(self) -> None:
        self.check_running()
        if not self._tokenizes:
            raise UnsupportedFeature(f"{self.server.url} has no /tokenize; send text to generate instead")

    # --- what the API does not have

    async def prefill(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        *,
        request_id: str,
        params: SamplingParams | None = None,
        options: RequestOptions | None = None,
        hold_s: float | None = None,
    ) -> PrefillResult:
        raise UnsupportedFeature("OpenAI's API has no separate prefill; use generate")

    async def decode(
        self, state: DecodeState, *, request_id: str, options: RequestOptions | None = None
    ) -> DecodeResult:
        raise UnsupportedFeature("OpenAI's API has no separate decode; use generate")

    def get_kv_schema(self) -> KVCacheSchema:
        raise UnsupportedFeature("OpenAI's API does not describe a KV cache")

    def load_quant_profile(self, profile: QuantizationProfile) -> None:
        raise UnsupportedFeature("the server's model is already loaded; quantize it there")


class _Completion:
    """One request to the server and its stream."""

    def __init__(
        self,
        backend: OpenAIReplica,
        request: OpenRequest,
        prompt: Prompt,
        params: SamplingParams,
        fields: Mapping[str, Any],
    ) -> None:
        loop = asyncio.get_running_loop()
        self._backend, self._request = backend, request
        self.accepted: asyncio.Future[None] = loop.create_future()
        self.stream = BufferedTokenStream(request.request_id, self._stop)
        self._begun, self._first = time.monotonic(), 0.0
        self._usage = Usage(prompt_tokens=0)
        self._reason: FinishReason = "stop"
        self._done = False
        self._task = loop.create_task(self._run(prompt, params, fields))
        request.on_cancel(self._cancelled)

    def _stop(self) -> None:
        self._task.cancel()

    def _cancelled(self, error: SageInferError) -> None:
        self._fail(error)
        self._task.cancel()

    def _fail(self, error: SageInferError) -> None:
        if not self.accepted.done():
            self.accepted.set_exception(error)
        self.stream.fail(error)

    async def _run(self, prompt: Prompt, params: SamplingParams, fields: Mapping[str, Any]) -> None:
        backend, counts = self._backend, self._backend.counts
        counts.running += 1
        try:
            body = await backend.body(prompt, params, fields)
            async with backend.server.exchange("POST", "/v1/completions", body) as response:
                self.accepted.set_result(None)
                events = EventParser()
                async for piece in response.content.iter_any():
                    for event in events.feed(piece):
                        self._take(event)
            if not self._done:
                raise EngineDead(f"{backend.server.url} ended the stream before its end")
            self.stream.finish(self._reason, self._usage, self._timing())
        except SageInferError as error:
            self._fail(error)
        except msgspec.MsgspecError as error:
            self._fail(PluginFailed(f"{backend.server.url} sent an unknown chunk: {error}"))
        finally:
            counts.running -= 1
            counts.prompt_tokens += self._usage.prompt_tokens
            counts.cached_tokens += self._usage.cached_tokens
            backend.requests.finish(self._request)

    def _take(self, event: bytes) -> None:
        if event == b"[DONE]":
            self._done = True
            return
        chunk = _chunk(event)
        if chunk.error is not None:
            raise error_of(int(chunk.error.get("status") or 500), {}, event)
        for choice in chunk.choices:
            reason = _reason(choice.finish_reason)
            if choice.text or choice.token_ids or reason is not None:
                self._first = self._first or time.monotonic()
                self._backend.counts.steps += 1
                self._backend.counts.output_tokens += len(choice.token_ids or ())
                ids = tuple(choice.token_ids or ())
                self.stream.push(TokenDelta(choice.text, ids, choice.index, finish_reason=reason))
            if reason is not None and choice.index == 0:
                self._reason = reason
        if chunk.usage is not None:
            details = chunk.usage.prompt_tokens_details
            self._usage = Usage(
                prompt_tokens=chunk.usage.prompt_tokens,
                completion_tokens=chunk.usage.completion_tokens or 0,
                cached_tokens=(details.cached_tokens or 0) if details is not None else 0,
            )

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


def _reason(reason: str | None) -> FinishReason | None:
    """Return the contract's finish reason; the API has more of them, such as content_filter."""
    if reason is None:
        return None
    return "length" if reason == "length" else "stop"

"""Base of text generation backends: the whole contract except the model."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NoReturn

from sage_infer.contracts import (
    BufferedTokenStream,
    ChatMessage,
    DecodeResult,
    PrefillResult,
    PromptLike,
    TokenStream,
    as_prompts,
)
from sage_infer.errors import (
    ContextLengthExceeded,
    EngineDead,
    InvalidRequest,
    RequestCancelled,
    SageInferError,
    UnsupportedFeature,
)
from sage_infer.schemas import (
    DecodeState,
    KVCacheSchema,
    Prompt,
    QuantizationProfile,
    RequestOptions,
    SamplingParams,
    Timing,
    TokenDelta,
    Usage,
)
from sage_infer.sdk.base_backend import BaseBackend
from sage_infer.sdk.chat import plain_messages
from sage_infer.sdk.claims import check_claims
from sage_infer.sdk.open_requests import OpenRequest

__all__ = ["BaseInferenceBackend"]


class BaseInferenceBackend(BaseBackend):
    """Base of an ``InferenceBackend``. A subclass overrides ``load``, ``encode`` and ``complete``, and also
    ``decode_tokens`` for the feature ``tokenize`` and ``render`` for the feature ``chat``.

    This class refuses unclaimed features, prompts that are empty, too long or outside the vocabulary, and ids in use.
    It runs up to ``max_batch_size`` requests simultaneously while the others wait, ends requests on ``abort``,
    ``cancel``, deadlines and ``close``, and maintains the counters. Separate prefill and decode, KV and quantization
    profiles are refused by name; a subclass that supports them overrides these methods.

    Attributes:
        vocabulary: size of the vocabulary; ids below it are valid.
    """

    vocabulary: int

    # --- methods for subclasses to override

    def encode(self, prompt: Prompt) -> Sequence[int]:
        """Return the token ids of a prompt with ``text``. Not called for a prompt with ``token_ids``."""
        raise NotImplementedError(f"{type(self).__name__} must override encode()")

    def complete(
        self, token_ids: Sequence[int], params: SamplingParams, *, max_tokens: int
    ) -> AsyncIterator[TokenDelta]:
        """Generate output: an asynchronous generator of deltas, one per step, for all ``params.n`` completions.

        The last delta of each completion has its ``finish_reason``; ``Completion`` makes such deltas. Other requests
        run after each delta. Cancellation of the request closes the generator.

        Args:
            token_ids: token ids of the prompt.
            max_tokens: room for output in the sequence; at least 1.
        """
        raise NotImplementedError(f"{type(self).__name__} must override complete()")

    def decode_tokens(self, token_ids: Sequence[int]) -> str:
        """Return the text of valid token ids, including special tokens."""
        raise NotImplementedError(f"{type(self).__name__} must override decode_tokens()")

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> Prompt:
        """Render a chat to a prompt. ``messages`` are validated, and their content is text."""
        raise NotImplementedError(f"{type(self).__name__} must override render()")

    # --- the contract

    async def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> list[TokenStream]:
        self.check_running()
        several = as_prompts(prompts)
        check_claims(self.claims, backend=self.name, params=params, options=options, prompts=several)
        if not several:
            raise InvalidRequest("no prompts; expected at least one")
        tokens = [self._checked(prompt) for prompt in several]
        requests = self.requests.accept(request_id, len(several), options=options)
        return [self._begin(request, ids, params) for request, ids in zip(requests, tokens, strict=True)]

    async def render_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        self.check_running()
        self._need("chat")
        for given, what in ((tools, "tools"), (template_variables, "template_variables")):
            if given:
                raise UnsupportedFeature(f"{self.name} does not support {what} of a chat; leave them out")
        return self.render(plain_messages(messages), add_generation_prompt=add_generation_prompt)

    async def tokenize(self, prompt: PromptLike) -> list[int]:
        self.check_running()
        self._need("tokenize")
        return list(self._ids(as_prompts(prompt)[0]))

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        self.check_running()
        self._need("tokenize")
        return self.decode_tokens(self._in_vocabulary(token_ids))

    async def prefill(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        *,
        request_id: str,
        params: SamplingParams | None = None,
        options: RequestOptions | None = None,
        hold_s: float | None = None,
    ) -> PrefillResult:
        self._refuse("prefill_decode", "use generate")

    async def decode(
        self, state: DecodeState, *, request_id: str, options: RequestOptions | None = None
    ) -> DecodeResult:
        self._refuse("prefill_decode", "use generate")

    def get_kv_schema(self) -> KVCacheSchema:
        self._refuse("a KV cache that can be described", "use generate")

    def load_quant_profile(self, profile: QuantizationProfile) -> None:
        self._refuse("quant_profile", "open it without a profile")

    # --- requests

    def _begin(self, request: OpenRequest, ids: Sequence[int], params: SamplingParams) -> TokenStream:
        stream = BufferedTokenStream(request.request_id, request.cancel)
        task = asyncio.create_task(self._run(request, stream, ids, params))

        def cancelled(error: RequestCancelled) -> None:
            task.cancel()
            self.requests.finish(request)
            stream.fail(error)

        request.on_cancel(cancelled)
        return stream

    async def _run(
        self, request: OpenRequest, stream: BufferedTokenStream, ids: Sequence[int], params: SamplingParams
    ) -> None:
        accepted = time.monotonic()
        try:
            async with self.computing(request):
                clock = _Clock(accepted, queued=time.monotonic() - accepted)
                self.figures.prompt_tokens += len(ids)
                room = self.max_sequence_length - len(ids)
                async with aclosing(self.complete(ids, params, max_tokens=room)) as deltas:  # type: ignore[type-var]
                    async for delta in deltas:
                        clock.take(delta)
                        self._count(delta, clock)
                        stream.push(delta)
                        await asyncio.sleep(0)
            self.requests.finish(request)
            clock.finish(stream, len(ids), params.n)
        except SageInferError as error:
            self.requests.finish(request)
            stream.fail(error)
        except Exception as error:  # an error in the subclass must not leave the reader waiting
            self.requests.finish(request)
            what = f"{type(error).__name__}: {error}"
            failed = EngineDead(f"request {request.request_id} failed in {self.name}: {what}; report it")
            failed.__cause__ = error
            stream.fail(failed)

    def _count(self, delta: TokenDelta, clock: _Clock) -> None:
        self.figures.output_tokens += len(delta.token_ids)
        self.figures.steps += 1
        self.figures.step_s = clock.step_s

    # --- checks

    def _checked(self, prompt: Prompt) -> Sequence[int]:
        ids, limit = self._ids(prompt), self.max_sequence_length
        if len(ids) >= limit:
            raise ContextLengthExceeded(
                f"the prompt has {len(ids)} tokens, but the limit is {limit} including the output; shorten it"
            )
        return ids

    def _ids(self, prompt: Prompt) -> Sequence[int]:
        return self._in_vocabulary(self.encode(prompt) if prompt.token_ids is None else prompt.token_ids)

    def _in_vocabulary(self, ids: Sequence[int]) -> Sequence[int]:
        if ids and not 0 <= min(ids) <= max(ids) < self.vocabulary:
            wrong = next(token for token in ids if not 0 <= token < self.vocabulary)
            raise InvalidRequest(f"token id {wrong} is outside the vocabulary of {self.vocabulary} tokens")
        return ids

    def _need(self, feature: str) -> None:
        if feature not in self.features:
            self._refuse(feature, "use a backend that claims it")

    def _refuse(self, what: str, instead: str) -> NoReturn:
        raise UnsupportedFeature(f"{self.name} does not support {what}; {instead}")


class _Clock:
    """Times and counts of one request."""

    def __init__(self, accepted: float, queued: float) -> None:
        self._accepted, self._queued = accepted, queued
        self._first = self._last = 0.0
        self._made: Counter[int] = Counter()
        self._reasons: dict[int, Any] = {}
        self.step_s: float | None = None

    def take(self, delta: TokenDelta) -> None:
        now = time.monotonic() - self._accepted
        self.step_s = now - (self._last or self._queued)
        self._first, self._last = self._first or now, now
        self._made[delta.index] += len(delta.token_ids)
        if delta.finish_reason is not None:
            self._reasons[delta.index] = delta.finish_reason

    def finish(self, stream: BufferedTokenStream, prompt_tokens: int, completions: int) -> None:
        if len(self._reasons) < completions:
            raise RuntimeError(
                "complete() ended before the last delta of each completion, with a finish_reason"
            )
        longest = max(self._made.values())
        stream.finish(
            self._reasons[0],
            Usage(prompt_tokens=prompt_tokens, completion_tokens=self._made.total()),
            Timing(
                queue_s=self._queued,
                ttft_s=max(self._first, self._queued),
                total_s=max(self._last, self._queued),
                inter_token_s=(self._last - self._first) / (longest - 1) if longest > 1 else None,
            ),
        )

"""The contract's face: accepts requests or refuses them, and runs each in a task of its own."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from sage_infer import contracts, errors, schemas
from sage_infer.contracts import BufferedTokenStream, PromptLike, TokenStream
from sage_infer.errors import RequestCancelled
from sage_infer.schemas import ModelDescriptor, Prompt, RequestOptions, SamplingParams
from sage_infer.sdk import check_claims

from ngram_sage.model import LIMIT, VOCABULARY, Ngrams, read_corpus
from ngram_sage.sampling import Completion

__all__ = ["NgramBackend"]

Tokens = tuple[int, ...]
FEATURES = ("streaming", "seed", "parallel_sampling")
BATCH, QUEUE = 8, 64  # requests that run at once; open requests


class NgramBackend:
    """An ``InferenceBackend`` with continuous batching in its simplest form: a task a request, a step at a time."""

    def __init__(self, model: ModelDescriptor, *, order: int = 8) -> None:
        self._model, self._order = model, order
        self._limit = min(LIMIT, model.max_sequence_length or LIMIT)
        self._slots = asyncio.Semaphore(BATCH)
        self._status: Literal["starting", "ok", "dead"] = "starting"
        self._open: dict[str, tuple[BufferedTokenStream, asyncio.Task[None]]] = {}
        self._running = self._finished = self._output_tokens = 0

    async def start(self) -> None:
        text = await asyncio.to_thread(read_corpus, Path(self._model.model_path))
        self._ngrams = await asyncio.to_thread(Ngrams, text, self._order)
        self._status = "ok"

    async def close(self) -> None:
        self._status = "dead"
        for name in list(self._open):
            self._end(name, RequestCancelled("the backend was closed", by="close"))

    async def health(self) -> contracts.Health:
        reason = "" if self._status == "ok" else "not started, or closed"
        return contracts.Health(status=self._status, reason=reason)

    def stats(self) -> contracts.EngineStats:
        return contracts.EngineStats(
            running=self._running, waiting=len(self._open) - self._running, finished=self._finished,
            output_tokens=self._output_tokens,
        )  # fmt: skip

    def get_capability(self) -> schemas.CapabilityDescriptor:
        return schemas.CapabilityDescriptor(
            backend_name="ngram", instance_type="general", hardware_backend="cpu", max_batch_size=BATCH,
            max_sequence_length=self._limit, supported_precisions=("fp64",),
            features=FEATURES,
        )  # fmt: skip

    async def generate(
        self, prompts: PromptLike | Sequence[PromptLike], params: SamplingParams, *,
        request_id: str | None = None, options: RequestOptions | None = None,
    ) -> list[TokenStream]:  # fmt: skip
        if self._status != "ok":
            raise errors.EngineDead("the ngram backend is not running; open a new one")
        several = contracts.as_prompts(prompts)
        check_claims(FEATURES, backend="the ngram backend", params=params, options=options, prompts=several)
        tokens = [self._encode(prompt) for prompt in several]
        if not tokens:
            raise errors.InvalidRequest("no prompt given; expected at least one")
        ids = contracts.request_ids(request_id or f"ngram-{secrets.token_hex(8)}", len(tokens))
        if taken := [name for name in ids if name in self._open]:
            raise errors.InvalidRequest(f"request id {taken[0]!r} is in use; ids must be unique")
        if len(self._open) + len(ids) > QUEUE:
            raise errors.Overloaded(f"{QUEUE} requests may be open; try again later", retry_after=1.0)
        return [self._start(name, prompt, params) for name, prompt in zip(ids, tokens, strict=True)]

    async def abort(self, request_id: str) -> None:
        for name in list(self._open):
            if name == request_id or name.startswith(f"{request_id}/"):
                self._end(name, RequestCancelled(f"{name} was aborted"))

    def _encode(self, prompt: Prompt) -> Tokens:
        tokens = tuple((prompt.text or "").encode()) if prompt.token_ids is None else prompt.token_ids
        if max(tokens) >= VOCABULARY:
            raise errors.InvalidRequest(f"token id {max(tokens)} is not below {VOCABULARY}")
        if (length := len(tokens)) >= self._limit:
            what = f"the prompt has {length} tokens, and the limit is {self._limit} with the output"
            raise errors.InvalidRequest(f"{what}; shorten it")
        return tokens

    def _start(self, name: str, prompt: Tokens, params: SamplingParams) -> TokenStream:
        stream = BufferedTokenStream(name, lambda: self._end(name, RequestCancelled(f"{name} was cancelled")))
        self._open[name] = stream, asyncio.create_task(self._run(stream, prompt, params))
        return stream

    def _end(self, name: str, error: errors.SageInferError) -> None:
        """End an open request before its time."""
        stream, task = self._open.pop(name)
        self._finished += 1
        task.cancel()
        stream.fail(error)

    async def _run(self, stream: BufferedTokenStream, prompt: Tokens, params: SamplingParams) -> None:
        accepted, first = time.monotonic(), 0.0
        seed = secrets.randbits(63) if params.seed is None else params.seed
        completions = [Completion(params, prompt, i, seed, self._limit) for i in range(params.n)]
        async with self._slots:
            self._running += 1
            started = time.monotonic()
            try:
                while unfinished := [c for c in completions if c.finish_reason is None]:
                    for completion in unfinished:
                        stream.push(completion.step(self._ngrams))
                    first = first or time.monotonic()
                    self._output_tokens += len(unfinished)
                    await asyncio.sleep(0)  # the others' turn, and the moment in which a cancellation arrives
            except Exception as error:  # a bug here must not leave a reader waiting
                return self._end(stream.request_id, errors.EngineDead(f"the model failed: {error}"))
            finally:
                self._running -= 1
        now, most = time.monotonic(), max(c.made for c in completions)
        gap = (now - first) / (most - 1) if most > 1 else None
        del self._open[stream.request_id]
        self._finished += 1
        stream.finish(
            completions[0].finish_reason or "stop",
            schemas.Usage(prompt_tokens=len(prompt), completion_tokens=sum(c.made for c in completions)),
            schemas.Timing(
                queue_s=started - accepted, ttft_s=first - accepted, total_s=now - accepted, inter_token_s=gap
            ),
        )

    # What an n-gram model does not have.

    async def prefill(
        self, prompts: PromptLike | Sequence[PromptLike], *,
        request_id: str, params: SamplingParams | None = None, options: RequestOptions | None = None,
        hold_s: float | None = None,
    ) -> contracts.PrefillResult:  # fmt: skip
        _refuse("KV to hand over")

    async def decode(
        self, state: schemas.DecodeState, *, request_id: str, options: RequestOptions | None = None
    ) -> contracts.DecodeResult:
        _refuse("KV to take over")

    def get_kv_schema(self) -> schemas.KVCacheSchema:
        _refuse("KV cache")

    def load_quant_profile(self, profile: schemas.QuantizationProfile) -> None:
        _refuse("quantization; its weights are counts")

    async def render_chat(
        self, messages: Sequence[contracts.ChatMessage], *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None, add_generation_prompt: bool = True,
    ) -> Prompt:  # fmt: skip
        _refuse("chat template; send a text to continue")


def _refuse(what: str) -> NoReturn:
    raise errors.UnsupportedFeature(f"the ngram backend has no {what}")

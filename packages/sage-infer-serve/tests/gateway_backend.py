"""A ``HybridInferenceBackend`` in memory: what it answers, when, and how it fails is up to the test.

The LLM ``echo`` says the last message's words, or ``script``, a delta in each turn of the event loop. ``vectors``
embeds by the letters of a text, ``scores`` ranks by words in common.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from sage_infer.contracts import (
    BufferedTokenStream,
    EngineStats,
    Health,
    ModelStatus,
    as_prompts,
    check_texts,
    request_ids,
)
from sage_infer.errors import (
    InvalidRequest,
    ModelNotFound,
    RequestCancelled,
    SageInferError,
    UnsupportedFeature,
)
from sage_infer.schemas import (
    EmbeddingResult,
    HybridCapabilityDescriptor,
    ModelDescriptor,
    Prompt,
    RequestOptions,
    RerankHit,
    RerankResult,
    SamplingParams,
    Timing,
    TokenDelta,
    TokenLogprob,
    Usage,
)

TYPES = {"echo": "llm", "vectors": "embedding", "scores": "reranker"}
DIM = 4
TIMING = Timing(queue_s=0.0, ttft_s=0.0, total_s=0.0)


class EchoBackend:
    """See the module.

    Attributes:
        script: pieces of text that the LLM says; None for the words of the prompt.
        refuse: raised instead of an answer.
        fail: raised inside a stream, after the script.
        gate: streams wait for it before each delta, where it is set.
        calls: what was asked, newest last: (name, arguments).
        open: streams that have neither ended nor been cancelled.
        cancelled: how many streams were given up.
    """

    def __init__(self) -> None:
        self.script: Sequence[str] | None = None
        self.refuse: SageInferError | Exception | None = None
        self.fail: SageInferError | None = None
        self.gate: asyncio.Event | None = None
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.open: dict[str, BufferedTokenStream] = {}
        self.feeding: set[asyncio.Future[None]] = set()
        self.cancelled = 0
        self.state = "ready"
        self.stage = ""
        self.share: float | None = None
        self.status = Health(status="ok")
        self.start_gate: asyncio.Event | None = None
        self.start_error: SageInferError | None = None
        self.embedding_gate: asyncio.Event | None = None
        self.embedding_cancelled = 0
        self.aborted: list[str] = []

    async def start(self) -> None:
        if self.start_gate is not None:
            await self.start_gate.wait()
        if self.start_error is not None:
            raise self.start_error
        self.state = "ready"

    async def close(self) -> None:
        for stream in list(self.open.values()):
            stream.fail(RequestCancelled("the backend was closed"))

    async def health(self) -> Health:
        return self.status

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self.open), waiting=0, kv_blocks_total=64, kv_blocks_free=64 - len(self.open)
        )

    def _called(self, name: str, model: str | None, kind: str, **arguments: Any) -> None:
        self.calls.append((name, {"model": model, **arguments}))
        if self.refuse is not None:
            raise self.refuse
        if self.get_model_status(model or "").model_id and TYPES[model or ""] != kind:
            raise UnsupportedFeature(f"model {model!r} cannot {name}")

    async def generate(
        self,
        prompts: Any,
        params: SamplingParams,
        model: str | None = None,
        *,
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> list[BufferedTokenStream]:
        several = as_prompts(prompts)
        self._called("generate", model, "llm", prompts=several, params=params, options=options)
        texts = [p.text if p.text is not None else " ".join(map(str, p.token_ids or ())) for p in several]
        ids = request_ids(request_id or "echo", len(several))
        return [self._say(text, params, i) for text, i in zip(texts, ids, strict=True)]

    async def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: SamplingParams,
        model: str | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> BufferedTokenStream:
        self._called(
            "chat", model, "llm", messages=messages, tools=tools, params=params, options=options,
            template_variables=template_variables,
        )  # fmt: skip
        return self._say(str(messages[-1]["content"] or "nothing"), params, request_id or "echo")

    def _say(self, text: str, params: SamplingParams, request_id: str) -> BufferedTokenStream:
        words = self.script if self.script is not None else [w + " " for w in text.split()]
        reason = "stop"
        if params.max_tokens is not None and len(words) > params.max_tokens:
            words, reason = words[: params.max_tokens], "length"

        def on_cancel() -> None:
            self.cancelled += 1
            self.open.pop(request_id, None)

        stream = BufferedTokenStream(request_id, on_cancel)
        self.open[request_id] = stream
        feeding = asyncio.ensure_future(self._feed(stream, list(words), reason, len(text.split()), params))
        self.feeding.add(feeding)
        feeding.add_done_callback(self.feeding.discard)
        return stream

    async def _feed(
        self,
        stream: BufferedTokenStream,
        words: list[str],
        reason: Any,
        prompt_tokens: int,
        params: SamplingParams,
    ) -> None:
        last = len(words) - 1
        for place, word in enumerate(words):
            for index in range(params.n):
                if self.gate is not None:
                    await self.gate.wait()
                await asyncio.sleep(0)
                ended = reason if place == last and self.fail is None else None
                stream.push(
                    TokenDelta(
                        text=word, token_ids=(place,), index=index, logprobs=logprobs(word, place, params.logprobs),
                        finish_reason=ended,
                    )
                )  # fmt: skip
        self.open.pop(stream.request_id, None)
        if self.fail is not None:
            stream.fail(self.fail)
            return
        usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=len(words) * params.n, cached_tokens=1)
        stream.finish(reason, usage, TIMING)

    async def embed(
        self,
        texts: Any,
        model: str | None = None,
        *,
        truncate: Any = "error",
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> EmbeddingResult:
        self._called(
            "embed",
            model,
            "embedding",
            texts=texts,
            truncate=truncate,
            options=options,
            request_id=request_id,
        )
        check_texts(texts, truncate)
        if self.embedding_gate is not None:
            try:
                await self.embedding_gate.wait()
            except asyncio.CancelledError:
                self.embedding_cancelled += 1
                raise
        numbers = [x for text in texts for x in vector(text)]
        tokens = sum(len(text) for text in texts)
        data = struct.pack(f"{len(numbers)}f", *numbers)
        return EmbeddingResult(
            model_id="vectors", dim=DIM, data=memoryview(data), usage=Usage(prompt_tokens=tokens)
        )

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        model: str | None = None,
        *,
        top_n: int | None = None,
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> RerankResult:
        self._called(
            "rerank", model, "reranker", query=query, documents=documents, top_n=top_n, options=options
        )
        words = set(query.split())
        hits = [RerankHit(index=i, score=float(len(words & set(d.split())))) for i, d in enumerate(documents)]
        hits.sort(key=lambda hit: (-hit.score, hit.index))
        usage = Usage(prompt_tokens=sum(len(d.split()) for d in documents))
        return RerankResult(model_id="scores", hits=tuple(hits[:top_n]), usage=usage)

    def list_models(self) -> list[ModelDescriptor]:
        return [ModelDescriptor(model_id=i, model_type=kind, model_path="/") for i, kind in TYPES.items()]  # type: ignore[arg-type]

    async def load_model(self, model: ModelDescriptor) -> None:
        raise InvalidRequest("this backend has the models that it has")

    async def unload_model(self, model_id: str) -> None:
        raise InvalidRequest("this backend has the models that it has")

    def get_model_status(self, model_id: str) -> ModelStatus:
        if model_id not in TYPES:
            raise ModelNotFound(f"no model {model_id!r}; there are: {', '.join(TYPES)}")
        return ModelStatus(model_id=model_id, state=self.state, since=0.0, stage=self.stage, share=self.share)  # type: ignore[arg-type]

    def get_hybrid_capability(self) -> HybridCapabilityDescriptor:
        return HybridCapabilityDescriptor(
            backend_name="echo", hardware_backend="cpu", loaded_models=tuple(self.list_models()), total_memory_gb=1.0,
            available_memory_gb=1.0,
        )  # fmt: skip

    async def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)
        stream = self.open.pop(request_id, None)
        if stream is not None:
            stream.fail(RequestCancelled(f"request {request_id} was aborted"))


class TokenizingBackend(EchoBackend):
    """Shows tokens, too: a character is one."""

    async def render_chat(
        self,
        messages: Any,
        *,
        model: str | None = None,
        tools: Any = None,
        template_variables: Any = None,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        text = "".join(f"{m['role']}:{m['content']};" for m in messages)
        text = "".join(f"{name}={value}," for name, value in (template_variables or {}).items()) + text
        return Prompt(text=text + "assistant:" * add_generation_prompt)

    async def tokenize(self, prompt: Any, *, model: str | None = None) -> list[int]:
        self.get_model_status(model or "")
        return [ord(c) for c in as_prompts(prompt)[0].text or ""]

    async def detokenize(self, token_ids: Sequence[int], *, model: str | None = None) -> str:
        if max(token_ids) > 0x10FFFF:
            raise InvalidRequest(f"token id {max(token_ids)} is not in the vocabulary")
        return "".join(map(chr, token_ids)).encode("utf-8", "replace").decode()


def vector(text: str | Sequence[int]) -> list[float]:
    """How often each of a few vowels is in a text; token ids count by themselves."""
    if isinstance(text, str):
        return [float(text.count(letter)) for letter in "aeio"]
    return [float(len(text)), float(text[0]), 0.0, 1.0]


def logprobs(word: str, token: int, alternatives: int | None) -> tuple[TokenLogprob, ...] | None:
    if alternatives is None:
        return None
    others = tuple((token + i, f"{word}{i}", -1.0 - i) for i in range(alternatives))
    return (TokenLogprob(token_id=token, text=word, logprob=-0.5, alternatives=others),)

"""The backend that exposes encoders and cross-encoders through the contract."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Literal

from attrs import field, frozen
from sage_infer.contracts import (
    EngineStats,
    Health,
    ProgressReport,
    PromptLike,
    TextLike,
    Truncation,
    as_prompts,
    as_texts,
    check_texts,
)
from sage_infer.errors import EngineDead, InvalidRequest, UnsupportedFeature
from sage_infer.schemas import (
    CapabilityDescriptor,
    EmbeddingResult,
    InstanceDescriptor,
    InstanceReport,
    ModelDescriptor,
    RequestOptions,
    RerankHit,
    RerankResult,
    Usage,
)
from sage_infer.sdk import OpenRequest, OpenRequests, Reporter, check_claims
from sage_infer.sdk.fields import Choice, Integer, Text, optional

from sage_infer_openvino.device import DEVICE, hardware_of
from sage_infer_openvino.encoder.encoder import Encoder, EncoderInput
from sage_infer_openvino.encoder.queue import EncoderQueue, Rows
from sage_infer_openvino.ov_runtime import ov

__all__ = ["OpenVINOEmbeddingBackend"]

_INLINE = 4096  # characters: tokenizing shorter texts is faster than waking up another thread


@frozen(kw_only=True)
class EncoderSettings:
    """Options of an encoder; invalid values are rejected before loading."""

    precision: str = field(validator=Choice(("f32", "bf16", "f16")))
    device: str = field(validator=DEVICE)
    threads: int | None = field(validator=optional(Integer(ge=1)))
    token_budget: int = field(validator=Integer(ge=1))
    max_queue: int = field(validator=Integer(ge=1))
    prompt: str | None = field(validator=optional(Text()))
    prompt_name: str | None = field(validator=optional(Text(min_length=1)))


class OpenVINOEmbeddingBackend:
    """``EmbeddingBackend`` on OpenVINO. A model of type ``reranker`` reranks, any other embeds.

    See ``sage infer backend show openvino-embedding`` for the options.
    """

    def __init__(
        self,
        model: ModelDescriptor,
        *,
        precision: Literal["f32", "bf16", "f16"] = "f32",
        device: str = "CPU",
        threads: int | None = None,
        token_budget: int = 1024,
        max_queue: int = 16_384,
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> None:
        self.model = model
        self._settings = EncoderSettings(
            precision=precision,
            device=device,
            threads=threads,
            token_budget=token_budget,
            max_queue=max_queue,
            prompt=prompt,
            prompt_name=prompt_name,
        )
        if self._reranks and (prompt is not None or prompt_name is not None):
            raise InvalidRequest("a reranker has no prompt; remove prompt and prompt_name")
        self._queue: EncoderQueue | None = None
        self._requests = OpenRequests()
        self._closed = False
        self._reporter = Reporter("openvino-embedding", model.model_id)
        self._on_progress: ProgressReport | None = None

    def on_progress(self, report: ProgressReport) -> None:
        self._on_progress = report

    async def start(self) -> None:
        self._check_open()
        if self._queue is None:
            encoder = await asyncio.to_thread(self._load)
            self._check_open()  # it may have been closed in the meantime
            self._queue = EncoderQueue(encoder, self._settings.token_budget, self._settings.max_queue)
            self._reporter.started(self.get_capability(), versions={"openvino": ov.get_version()})

    def _load(self) -> Encoder:
        settings, model = self._settings, self.model
        limits = [model.max_sequence_length, model.max_pair_length if self._reranks else None]
        return Encoder(
            model.model_path,
            reranker=self._reranks,
            device=settings.device,
            precision=settings.precision,
            threads=settings.threads,
            max_sequence_length=min((limit for limit in limits if limit is not None), default=None),
            prompt=settings.prompt,
            prompt_name=settings.prompt_name,
            report=self._on_progress,
        )

    async def close(self) -> None:
        self._closed = True
        worker, self._queue = self._queue, None
        if worker is not None:
            await asyncio.to_thread(worker.close)

    async def health(self) -> Health:
        return self._health()

    def _health(self) -> Health:
        if self._closed:
            return Health(status="dead", reason="the backend was closed")
        if self._queue is None:
            return Health(status="starting", reason="the model is not loaded yet")
        stopped = self._queue.stopped
        return Health(status="ok") if stopped is None else Health(status="dead", reason=str(stopped))

    def stats(self) -> EngineStats:
        worker = self._queue
        if worker is None:
            return EngineStats(running=0, waiting=0)
        return EngineStats(
            running=worker.running,
            waiting=worker.waiting,
            finished=worker.finished,
            prompt_tokens=worker.tokens,
            waiting_prompt_tokens=worker.waiting_tokens,
            oldest_wait_s=worker.oldest_wait_s,
            steps=worker.steps,
            step_s=worker.step_s,
        )

    def describe(self) -> InstanceDescriptor:
        self._check_open()
        return self._reporter.describe()

    def report(self) -> InstanceReport:
        return self._reporter.report(self.stats(), self._health())

    def get_capability(self) -> CapabilityDescriptor:
        limit = self.get_max_length()
        return CapabilityDescriptor(
            backend_name="openvino-embedding",
            instance_type="embedding",
            hardware_backend=hardware_of(self._settings.device),
            max_batch_size=max(self._settings.token_budget // limit, 1),
            max_sequence_length=limit,
            supported_precisions=self._ready().encoder.supported_precisions,
            features=self._features,
        )

    @property
    def _features(self) -> tuple[str, ...]:
        return ("rerank" if self._reranks else "embed", "deadline", "reports", "tokenize")

    def get_embedding_dim(self) -> int:
        worker = self._ready()
        self._check_embeds()
        return worker.encoder.dimension

    def get_max_length(self) -> int:
        return self._ready().encoder.max_sequence_length

    async def embed(
        self,
        texts: TextLike | Sequence[TextLike],
        *,
        truncate: Truncation = "error",
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> EmbeddingResult:
        return await self._embed(as_texts(texts), None, truncate, request_id, options)

    async def embed_batch(
        self,
        texts: Sequence[TextLike],
        batch_size: int = 32,
        *,
        truncate: Truncation = "error",
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> EmbeddingResult:
        _check_batch_size(batch_size)
        return await self._embed(texts, batch_size, truncate, request_id, options)

    async def _embed(
        self,
        texts: Sequence[TextLike],
        batch_limit: int | None,
        truncate: Truncation,
        request_id: str | None,
        options: RequestOptions | None,
    ) -> EmbeddingResult:
        worker = self._ready()
        self._check_embeds()
        self._check_claims(options)
        check_texts(texts, truncate)
        if not texts:
            return self._result(worker, memoryview(b""), ())
        with self._requests.call(request_id, options=options) as request:
            inputs = await _tokenized(
                lambda: worker.encoder.tokenize(texts, truncate=truncate == "end"), sum(map(len, texts))
            )
            vectors = await _computed(worker, request, inputs, batch_limit)
        return self._result(worker, vectors.data, tuple(map(len, inputs)))

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> RerankResult:
        """See the contract. Pairs over ``get_max_length()`` tokens are truncated at the end of the longer text."""
        worker = self._ready()
        if not self._reranks:
            raise UnsupportedFeature(
                f"model {self.model.model_id!r} is an embedding model; reranking requires a cross-encoder"
            )
        self._check_claims(options)
        _check_rerank(query, documents, top_n)
        if not documents:
            return RerankResult(model_id=self.model.model_id, hits=(), usage=Usage(prompt_tokens=0))
        with self._requests.call(request_id, options=options) as request:
            inputs = await _tokenized(
                lambda: worker.encoder.tokenize_pairs(query, documents),
                sum(len(query) + len(d) for d in documents),
            )
            scores = (await _computed(worker, request, inputs))[:, 0].tolist()
        hits = [RerankHit(index=index, score=score) for index, score in enumerate(scores)]
        hits.sort(key=lambda hit: hit.score, reverse=True)
        return RerankResult(
            model_id=self.model.model_id,
            hits=tuple(hits[:top_n]),
            usage=Usage(prompt_tokens=sum(map(len, inputs))),
        )

    async def tokenize(self, prompt: PromptLike) -> list[int]:
        """The token ids that ``embed`` computes for a text, the model's prompt included; ids are unchanged."""
        encoder = self._ready().encoder
        (one,) = as_prompts(prompt)
        check_claims((), backend="the openvino-embedding backend", prompts=(one,))
        if one.text is None:
            return list(one.token_ids or ())
        text, add_special = one.text, one.add_special_tokens
        if len(text) <= _INLINE:
            return encoder.token_ids(text, add_special=add_special)
        return await asyncio.to_thread(encoder.token_ids, text, add_special=add_special)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return self._ready().encoder.text_of(token_ids)

    async def abort(self, request_id: str) -> None:
        self._requests.abort(request_id)

    def _check_claims(self, options: RequestOptions | None) -> None:
        check_claims(self._features, backend="the openvino-embedding backend", options=options)

    def _result(self, worker: EncoderQueue, data: memoryview, tokens: tuple[int, ...]) -> EmbeddingResult:
        return EmbeddingResult(
            model_id=self.model.model_id,
            dim=worker.encoder.dimension,
            data=data,
            usage=Usage(prompt_tokens=sum(tokens)),
            text_tokens=tokens,
        )

    @property
    def _reranks(self) -> bool:
        return self.model.model_type == "reranker"

    def _check_embeds(self) -> None:
        if self._reranks:
            raise UnsupportedFeature(
                f"model {self.model.model_id!r} is a reranker; embedding requires an embedding model"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise EngineDead("the backend was closed; open a new one")

    def _ready(self) -> EncoderQueue:
        self._check_open()
        if self._queue is None:
            raise EngineDead("the backend is not started; call start() first, or use open_backend")
        return self._queue


async def _tokenized(tokenize: Callable[[], list[EncoderInput]], characters: int) -> list[EncoderInput]:
    return tokenize() if characters <= _INLINE else await asyncio.to_thread(tokenize)


async def _computed(
    worker: EncoderQueue, request: OpenRequest, inputs: list[EncoderInput], batch_limit: int | None = None
) -> Rows:
    request.check()  # it may have been cancelled during tokenization
    return await request.wait(worker.submit(inputs, batch_limit=batch_limit))


def _check_batch_size(size: object) -> None:
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise InvalidRequest(f"batch_size must be a number of texts, at least 1, got {size!r}")


def _check_rerank(query: object, documents: Sequence[object], top_n: object) -> None:
    if not isinstance(query, str) or not query:
        raise InvalidRequest(f"query must be a text of at least one character, got {query!r}")
    if isinstance(documents, str):
        raise InvalidRequest("documents must be a list of texts, got one string")
    for index, document in enumerate(documents):
        if not isinstance(document, str):
            raise InvalidRequest(f"document {index} must be a string, got {type(document).__name__}")
        if not document:
            raise InvalidRequest(f"document {index} is empty; expected at least one character")
    if top_n is not None and (not isinstance(top_n, int) or isinstance(top_n, bool) or top_n < 1):
        raise InvalidRequest(f"top_n must be a number of hits, at least 1, or None for all, got {top_n!r}")

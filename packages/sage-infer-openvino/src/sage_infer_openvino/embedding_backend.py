"""The contract's face of the encoder."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

from attrs import field, frozen
from sage_infer.checks import Choice, Integer, optional
from sage_infer.contracts import EngineStats, Health, Truncation
from sage_infer.errors import EngineDead, InvalidRequest, UnsupportedFeature
from sage_infer.schemas import CapabilityDescriptor, EmbeddingResult, ModelDescriptor, RerankResult, Usage

from sage_infer_openvino.encoder import Encoder
from sage_infer_openvino.encoder_queue import EncoderQueue
from sage_infer_openvino.loading import DEVICE, hardware_of

__all__ = ["OpenVINOEmbeddingBackend"]


@frozen(kw_only=True)
class EncoderSettings:
    """How to run an encoder; wrong values are refused before anything is loaded."""

    precision: str = field(validator=Choice(("f32", "bf16", "f16")))
    device: str = field(validator=DEVICE)
    threads: int | None = field(validator=optional(Integer(ge=1)))
    token_budget: int = field(validator=Integer(ge=1))


class OpenVINOEmbeddingBackend:
    """``EmbeddingBackend`` on OpenVINO. See ``sage infer backend show openvino-embedding`` for the options."""

    def __init__(
        self,
        model: ModelDescriptor,
        *,
        precision: Literal["f32", "bf16", "f16"] = "f32",
        device: str = "CPU",
        threads: int | None = None,
        token_budget: int = 2048,
    ) -> None:
        self.model = model
        self._settings = EncoderSettings(
            precision=precision, device=device, threads=threads, token_budget=token_budget
        )
        self._queue: EncoderQueue | None = None
        self._closed = False

    async def start(self) -> None:
        self._check_open()
        if self._queue is None:
            encoder = await asyncio.to_thread(self._load)
            self._check_open()  # it may have been closed meanwhile
            self._queue = EncoderQueue(encoder)

    def _load(self) -> Encoder:
        settings = self._settings
        return Encoder(
            self.model.model_path,
            device=settings.device,
            precision=settings.precision,
            threads=settings.threads,
            token_budget=settings.token_budget,
            max_sequence_length=self.model.max_sequence_length,
        )

    async def close(self) -> None:
        self._closed = True
        worker, self._queue = self._queue, None
        if worker is not None:
            await asyncio.to_thread(worker.close)

    async def health(self) -> Health:
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
        )

    def get_capability(self) -> CapabilityDescriptor:
        limit = self.get_max_length()
        return CapabilityDescriptor(
            backend_name="openvino-embedding",
            instance_type="embedding",
            hardware_backend=hardware_of(self._settings.device),
            max_batch_size=max(self._settings.token_budget // limit, 1),
            max_sequence_length=limit,
            supported_precisions=("fp32", "bf16", "fp16"),
            features=("embed",),
        )

    def get_embedding_dim(self) -> int:
        return self._ready().encoder.dimension

    def get_max_length(self) -> int:
        return self._ready().encoder.max_sequence_length

    async def embed(self, text: str | Sequence[int], *, truncate: Truncation = "error") -> EmbeddingResult:
        return await self.embed_batch([text], truncate=truncate)

    async def embed_batch(
        self, texts: Sequence[str | Sequence[int]], *, truncate: Truncation = "error"
    ) -> EmbeddingResult:
        worker = self._ready()
        _check(texts, truncate)
        if not texts:
            return self._result(memoryview(b""), 0)
        future = worker.submit(texts, truncate=truncate == "end")
        vectors, tokens = await asyncio.wrap_future(future)
        return self._result(vectors.data, tokens)

    async def rerank(self, query: str, documents: Sequence[str], *, top_n: int | None = None) -> RerankResult:
        raise UnsupportedFeature(
            f"model {self.model.model_id!r} is an embedding model; reranking needs a cross-encoder"
        )

    def _result(self, data: memoryview, tokens: int) -> EmbeddingResult:
        return EmbeddingResult(
            model_id=self.model.model_id,
            dim=self.get_embedding_dim(),
            data=data,
            usage=Usage(prompt_tokens=tokens),
        )

    def _check_open(self) -> None:
        if self._closed:
            raise EngineDead("the backend was closed; open a new one")

    def _ready(self) -> EncoderQueue:
        self._check_open()
        if self._queue is None:
            raise EngineDead("the backend is not started; call start() first, or use open_backend")
        return self._queue


def _check(texts: Sequence[object], truncate: str) -> None:
    """What would otherwise only fail in the encoder's thread, at everybody's cost."""
    if isinstance(texts, str):
        raise InvalidRequest("texts must be a list of texts, got one string; use embed")
    if truncate not in ("error", "end"):
        raise InvalidRequest(f"truncate must be 'error' or 'end', got {truncate!r}")
    for index, text in enumerate(texts):
        if not isinstance(text, str) and not (
            isinstance(text, Sequence) and all(isinstance(token, int) for token in text)
        ):
            raise InvalidRequest(
                f"text {index} must be a string or a list of token ids, got {type(text).__name__}"
            )
        if not text:
            raise InvalidRequest(f"text {index} is empty; expected at least one character or token id")

"""An embedder that counts words."""

from __future__ import annotations

import array
import asyncio
import hashlib
import math
import time
import uuid
from collections.abc import Sequence
from typing import Any

from sage_infer.contracts import EngineStats, Health, as_texts
from sage_infer.errors import EngineDead, InvalidRequest, RequestCancelled, UnsupportedFeature
from sage_infer.schemas import (
    CapabilityDescriptor,
    EmbeddingResult,
    InstanceDescriptor,
    InstanceReport,
    RequestOptions,
    RerankHit,
    RerankResult,
    Usage,
)
from sage_infer.sdk import check_claims

DIM = 512


class ReferenceEmbedder:
    """A vector counts a text's words, each at a place that its hash gives."""

    limit = 64

    def __init__(self, features: Sequence[str] = ("embed", "rerank", "deadline", "reports")) -> None:
        self.features = tuple(features)
        self.state = "new"
        self.finished = self.steps = self.reported = self.generation = 0
        self.open: set[str] = set()  # calls that are under way

    async def start(self) -> None:
        self.state = "ok"
        self.generation = time.time_ns()

    async def close(self) -> None:
        self.state = "dead"
        self.open.clear()

    async def health(self) -> Health:
        if self.state == "new":
            return Health(status="starting", reason="start() has not been called")
        return Health(status="ok") if self.state == "ok" else Health(status="dead", reason="closed")

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self.open), waiting=0, finished=self.finished, steps=self.steps)

    def describe(self) -> InstanceDescriptor:
        if self.state != "ok":
            raise EngineDead("closed; open a new one")
        return InstanceDescriptor(
            instance_id="embedder",
            generation=self.generation,
            model_ids=("words",),
            capability=self.get_capability(),
        )

    def report(self) -> InstanceReport:
        self.reported += 1
        return InstanceReport(
            instance_id="embedder", generation=self.generation, seq=self.reported, taken_at=time.monotonic(),
            state="ready", running=len(self.open), waiting=0, finished=self.finished, steps=self.steps,
        )  # fmt: skip

    def get_capability(self) -> CapabilityDescriptor:
        return CapabilityDescriptor(
            backend_name="reference-embedder", instance_type="embedding", hardware_backend="cpu", max_batch_size=8,
            max_sequence_length=self.limit, supported_precisions=("fp32",), features=self.features,
        )  # fmt: skip

    def get_embedding_dim(self) -> int:
        return DIM

    def get_max_length(self) -> int:
        return self.limit

    def words(self, index: int, text: Any, truncate: str) -> list[str]:
        if self.state != "ok":
            raise EngineDead("closed; open a new one")
        if not text:
            raise InvalidRequest(f"text {index} is empty")
        words = text.lower().strip(".").split() if isinstance(text, str) else [f"#{token}" for token in text]
        if len(words) > self.limit and truncate == "error":
            raise InvalidRequest(f"text {index} has {len(words)} tokens, the limit is {self.limit}")
        return words[: self.limit]

    def vector(self, words: list[str]) -> list[float]:
        values = [0.0] * DIM
        for word in words:
            stem = word.rstrip("s").removesuffix("ing")
            values[int(hashlib.blake2b(stem.encode()).hexdigest(), 16) % DIM] += (
                1.0 if len(stem) > 3 else 0.05
            )
        norm = math.hypot(*values)
        return [value / norm for value in values]

    async def embed(
        self, texts: Any, *, truncate: str = "error", request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> EmbeddingResult:  # fmt: skip
        return await self.embed_batch(
            as_texts(texts), truncate=truncate, request_id=request_id, options=options
        )

    async def embed_batch(
        self, texts: Sequence[Any], batch_size: int = 32, *, truncate: str = "error",
        request_id: str | None = None, options: RequestOptions | None = None,
    ) -> EmbeddingResult:  # fmt: skip
        self.check(options)
        several = [self.words(i, text, truncate) for i, text in enumerate(texts)]
        await self.compute(-(-len(several) // batch_size), request_id, options)
        data = array.array("f", [value for words in several for value in self.vector(words)])
        buffer = memoryview(data) if data else memoryview(b"")
        return EmbeddingResult(
            model_id="words", dim=DIM, data=buffer, usage=Usage(prompt_tokens=sum(map(len, several)))
        )

    def check(self, options: RequestOptions | None) -> None:
        check_claims(self.features, backend="reference-embedder", options=options)

    async def compute(self, batches: int, request_id: str | None, options: RequestOptions | None) -> None:
        """Take a turn of the event loop for each batch, unless the call is aborted or late."""
        begun, deadline = time.monotonic(), options and options.deadline
        call = request_id or uuid.uuid4().hex
        self.open.add(call)
        try:
            for _ in range(batches):
                await asyncio.sleep(0)
                self.steps += 1
                if call not in self.open:
                    by: Any = "close" if self.state == "dead" else "caller"
                    raise RequestCancelled(f"call {call} was cancelled", by=by)
                if deadline is not None and time.monotonic() > begun + deadline:
                    raise RequestCancelled(f"call {call} is past its deadline", by="deadline")
        finally:
            self.open.discard(call)
            self.finished += 1

    async def abort(self, request_id: str) -> None:
        self.open.discard(request_id)

    async def rerank(
        self, query: str, documents: Sequence[str], *, top_n: int | None = None, request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> RerankResult:  # fmt: skip
        self.check(options)
        if "rerank" not in self.features:
            raise UnsupportedFeature("this model does not rerank")
        await self.compute(len(documents), request_id, options)
        vectors = [self.vector(self.words(i, text, "end")) for i, text in enumerate([query, *documents])]
        scores = [sum(a * b for a, b in zip(vectors[0], vector, strict=True)) for vector in vectors[1:]]
        order = sorted(range(len(documents)), key=lambda i: -scores[i])[:top_n]
        hits = tuple(RerankHit(index=i, score=scores[i]) for i in order)
        return RerankResult(model_id="words", hits=hits, usage=Usage(prompt_tokens=1))

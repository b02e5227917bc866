"""Base of embedding backends: the whole contract except the model."""

from __future__ import annotations

import array
import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import ClassVar

from sage_infer.contracts import TextLike, Truncation, as_texts, check_texts
from sage_infer.errors import ContextLengthExceeded, InvalidRequest, UnsupportedFeature
from sage_infer.names import InstanceType
from sage_infer.schemas import EmbeddingResult, RequestOptions, RerankResult, Usage
from sage_infer.sdk.base_backend import BaseBackend
from sage_infer.sdk.claims import check_claims

__all__ = ["BaseEmbeddingBackend"]


class BaseEmbeddingBackend(BaseBackend):
    """Base of an ``EmbeddingBackend``. A subclass overrides ``load``, ``encode`` and ``vectors``.

    This class refuses unclaimed features, texts that are empty or too long, and ids in use. It ends calls between
    batches on ``abort``, deadlines and ``close``, and maintains the counters.

    Attributes:
        dim: length of a vector.
        batch_size: default number of texts per call of ``vectors``.
    """

    instance_type: ClassVar[InstanceType] = "embedding"
    features: ClassVar[Sequence[str]] = ("embed",)
    max_batch_size = 1  # calls: an engine computes one batch after another
    dim: int
    batch_size: ClassVar[int] = 32

    # --- methods for subclasses to override

    def encode(self, text: TextLike) -> Sequence[int]:
        """Return the token ids of a text; token ids are returned unchanged, or refused with ``InvalidRequest``."""
        raise NotImplementedError(f"{type(self).__name__} must override encode()")

    def vectors(self, batch: Sequence[Sequence[int]]) -> Iterable[Iterable[float]]:
        """Return one vector of ``dim`` numbers per list of tokens. Called in a thread, one batch at a time."""
        raise NotImplementedError(f"{type(self).__name__} must override vectors()")

    # --- the contract

    def get_embedding_dim(self) -> int:
        return self.dim

    def get_max_length(self) -> int:
        return self.max_sequence_length

    async def embed(
        self,
        texts: TextLike | Sequence[TextLike],
        *,
        truncate: Truncation = "error",
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> EmbeddingResult:
        return await self.embed_batch(
            as_texts(texts), self.batch_size, truncate=truncate, request_id=request_id, options=options
        )

    async def embed_batch(
        self,
        texts: Sequence[TextLike],
        batch_size: int = 32,
        *,
        truncate: Truncation = "error",
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> EmbeddingResult:
        self.check_running()
        check_claims(self.claims, backend=self.name, options=options)
        check_texts(texts, truncate)
        if type(batch_size) is not int or batch_size < 1:
            raise InvalidRequest(f"batch_size must be a number of texts, at least 1, got {batch_size!r}")
        tokens = [self._tokens(index, text, truncate == "end") for index, text in enumerate(texts)]
        numbers = array.array("f")
        with self.requests.call(request_id, options=options) as request:
            for start in range(0, len(tokens), batch_size):
                request.check()
                async with self.computing(request):
                    batch, begun = tokens[start : start + batch_size], time.monotonic()
                    numbers.extend(await asyncio.to_thread(self._computed, batch))
                    self.figures.steps += 1
                    self.figures.step_s = time.monotonic() - begun
                    self.figures.prompt_tokens += sum(map(len, batch))
            request.check()
        usage = Usage(prompt_tokens=sum(map(len, tokens)))
        return EmbeddingResult(
            model_id=self.model.model_id,
            dim=self.dim,
            data=memoryview(numbers),
            usage=usage,
            text_tokens=tuple(map(len, tokens)),
        )

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> RerankResult:
        raise UnsupportedFeature(f"{self.name} does not support rerank; use a reranker")

    def _tokens(self, index: int, text: TextLike, cut: bool) -> Sequence[int]:
        tokens, limit = self.encode(text), self.max_sequence_length
        if len(tokens) > limit and not cut:
            raise ContextLengthExceeded(
                f"text {index} has {len(tokens)} tokens, but the limit is {limit}; shorten it, or truncate"
            )
        return tokens[:limit]

    def _computed(self, batch: Sequence[Sequence[int]]) -> array.array[float]:
        found = array.array("f", [number for vector in self.vectors(batch) for number in vector])
        if len(found) != len(batch) * self.dim:
            raise RuntimeError(
                f"vectors() returned {len(found)} numbers for {len(batch)} texts of {self.dim}"
            )
        return found

"""Embedding and reranking on an OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import sys
from array import array
from base64 import b64decode
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from sage_infer.contracts import TextLike, Truncation, as_texts, check_texts
from sage_infer.errors import InvalidRequest, UnsupportedFeature
from sage_infer.names import InstanceType
from sage_infer.schemas import EmbeddingResult, RequestOptions, RerankHit, RerankResult, Usage
from sage_infer.sdk import check_claims

from sage_llm.replicas.openai.base import ServerBackend

__all__ = ["OpenAIEmbeddingReplica"]

_TRUNCATE: Mapping[str, Mapping[str, Any]] = {
    "vllm": {"truncate_prompt_tokens": -1},
    "sage-infer": {"truncate": True},
}


class OpenAIEmbeddingReplica(ServerBackend):
    """An embedding model (``/v1/embeddings``) or reranker (``/v1/rerank``, Jina's format) on a server.

    The arguments are those of ``ServerBackend``.
    """

    instance_type: InstanceType = "embedding"
    _dim = 0

    async def prepare(self, row: Mapping[str, Any]) -> None:
        if self.model.model_type == "embedding":
            self._dim = (await self._vectors(["a"], {}))[1]

    def features(self) -> tuple[str, ...]:
        return ("rerank" if self.model.model_type == "reranker" else "embed", "deadline", "reports", "trace")

    def get_embedding_dim(self) -> int:
        if not self._dim:
            raise UnsupportedFeature(f"{self.model.model_id} has no vectors; it is a reranker")
        return self._dim

    def get_max_length(self) -> int:
        return self.get_capability().max_sequence_length

    async def embed(
        self,
        texts: TextLike | Sequence[TextLike],
        *,
        truncate: Truncation = "error",
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> EmbeddingResult:
        several = as_texts(texts)
        return await self.embed_batch(
            several, max(1, len(several)), truncate=truncate, request_id=request_id, options=options
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
        self._check("embed", options)
        check_texts(texts, truncate)
        if batch_size < 1:
            raise InvalidRequest(f"batch_size must be at least 1, got {batch_size}")
        extra: Mapping[str, Any] = {}
        if truncate == "end":
            if self.dialect not in _TRUNCATE:
                raise UnsupportedFeature("OpenAI's API does not truncate texts; shorten them")
            extra = _TRUNCATE[self.dialect]
        data, tokens = bytearray(), 0
        for start in range(0, len(texts), batch_size):
            part = [
                text if isinstance(text, str) else list(text) for text in texts[start : start + batch_size]
            ]
            vectors, _, used = await self._ended(self._vectors(part, extra, options), request_id, options)
            data += vectors
            tokens += used
        usage = Usage(prompt_tokens=tokens)
        return EmbeddingResult(
            model_id=self.model.model_id, dim=self._dim, data=memoryview(data), usage=usage
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
        self._check("rerank", options)
        if not documents:
            return RerankResult(model_id=self.model.model_id, hits=(), usage=Usage(prompt_tokens=0))
        body: dict[str, Any] = {
            "model": self.model.model_id,
            "query": query,
            "documents": list(documents),
            "return_documents": False,
        }
        if top_n is not None:
            body["top_n"] = top_n
        answer = await self._ended(self.server.post("/v1/rerank", body, options), request_id, options)
        hits = tuple(
            RerankHit(index=row["index"], score=float(row["relevance_score"])) for row in answer["results"]
        )
        used = (answer.get("usage") or {}).get("prompt_tokens") or (answer.get("usage") or {}).get(
            "total_tokens"
        )
        return RerankResult(model_id=self.model.model_id, hits=hits, usage=Usage(prompt_tokens=used or 0))

    def _check(self, feature: str, options: RequestOptions | None) -> None:
        self.check_running()
        check_claims(self.features(), backend=self.name, options=options)
        if feature not in self.features():
            raise UnsupportedFeature(
                f"{self.model.model_id} is a {self.model.model_type}; it cannot {feature}"
            )

    async def _ended(
        self, work: Awaitable[Any], request_id: str | None, options: RequestOptions | None
    ) -> Any:
        """Wait for a request that ``abort``, the deadline or ``close`` can end."""
        with self.requests.call(request_id, options=options) as request:
            task = asyncio.ensure_future(work)
            request.on_cancel(lambda _: task.cancel())
            self.counts.running += 1
            try:
                return await task
            except asyncio.CancelledError:
                request.check()
                task.cancel()
                raise
            finally:
                self.counts.running -= 1
                self.counts.steps += 1

    async def _vectors(
        self, texts: list[Any], extra: Mapping[str, Any], options: RequestOptions | None = None
    ) -> tuple[bytes, int, int]:
        """Return the vectors as float32 of this machine, the length of one, and the number of prompt tokens."""
        body = {"model": self.model.model_id, "input": texts, "encoding_format": "base64", **extra}
        answer = await self.server.post("/v1/embeddings", body, options)
        rows = sorted(answer["data"], key=lambda row: row["index"])
        vectors = array("f")
        for row in rows:
            vectors.extend(_floats(row["embedding"]))
        used = (answer.get("usage") or {}).get("prompt_tokens") or 0
        self.counts.prompt_tokens += used
        return vectors.tobytes(), len(vectors) // max(1, len(rows)), used


def _floats(embedding: str | list[float]) -> array[float]:
    """Return a vector: little-endian float32 in base64, or numbers."""
    if not isinstance(embedding, str):
        return array("f", embedding)
    found = array("f")
    found.frombytes(b64decode(embedding))
    if sys.byteorder == "big":
        found.byteswap()
    return found

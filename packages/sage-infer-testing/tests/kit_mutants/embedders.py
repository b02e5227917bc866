"""Embedders and rerankers with one fault each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from kit_reference.embedding import ReferenceEmbedder
from sage_infer.schemas import EmbeddingResult, RerankResult, Usage
from sage_infer_testing import EmbeddingBackendContract

from kit_mutants.table import mutant


def embedder(fault: str, test: str, says: str, **settings: Any) -> Callable[[type], type]:
    """Register an embedder under its fault, the test that fails on it and words of the failure."""

    def register(broken: type) -> type:
        made = {"make_backend": lambda self: broken()}
        mutant(
            "embedder", EmbeddingBackendContract, made, broken, fault, test, says, normalized=True, **settings
        )
        return broken

    return register


@embedder("vectors are not normalized", "test_vectors_have_length_one", "normalized=True, lengths")
class DoesNotNormalize(ReferenceEmbedder):
    def vector(self, words: list[str]) -> list[float]:
        return [value * len(words) for value in super().vector(words)]


@embedder("vectors of a batch come sorted by length", "test_batch_keeps_the_order", "in the batch is")
class SortsByLength(ReferenceEmbedder):
    async def embed_batch(self, texts: Any, *rest: Any, **options: Any) -> EmbeddingResult:
        return await super().embed_batch(sorted(texts, key=len), *rest, **options)


@embedder("truncate keeps the end", "test_truncation_keeps_the_beginning", "differ over the limit")
class KeepsTheEnd(ReferenceEmbedder):
    def words(self, index: int, text: Any, truncate: str) -> list[str]:
        if isinstance(text, str) and truncate == "end":
            text = " ".join(text.split()[-self.limit :])
        return super().words(index, text, truncate)


@embedder(
    "long texts are cut without being asked",
    "test_text_over_the_limit_is_refused",
    "DID NOT RAISE .*InvalidRequest",
)
class CutsUnasked(ReferenceEmbedder):
    def words(self, index: int, text: Any, truncate: str) -> list[str]:
        return super().words(index, text, "end")


@embedder("usage counts the first text only", "test_usage_counts_every_text", "usage of the batch counts")
class CountsTheFirstText(ReferenceEmbedder):
    async def embed_batch(self, texts: Any, *rest: Any, **options: Any) -> EmbeddingResult:
        result = await super().embed_batch(texts, *rest, **options)
        first = len(self.words(0, texts[0], "end")) if texts else 0
        return attrs.evolve(result, usage=Usage(prompt_tokens=first))


@embedder("hits of rerank are not sorted", "test_rerank_orders_by_relevance", "not in descending order")
class DoesNotSort(ReferenceEmbedder):
    async def rerank(self, query: str, documents: Any, **rest: Any) -> RerankResult:
        result = await super().rerank(query, documents, **rest)
        return attrs.evolve(result, hits=tuple(sorted(result.hits, key=lambda hit: hit.index)))


@embedder("rerank ignores the query", "test_the_query_decides", "give the same scores")
class IgnoresTheQuery(ReferenceEmbedder):
    async def rerank(self, query: str, documents: Any, **rest: Any) -> RerankResult:
        return await super().rerank("What is the capital of France?", documents, **rest)


@embedder("top_n is dropped", "test_top_n_limits_the_hits", "top_n=1 returned")
class DropsTopN(ReferenceEmbedder):
    async def rerank(self, query: str, documents: Any, *, top_n: Any = None, **rest: Any) -> RerankResult:
        return await super().rerank(query, documents, **rest)

"""Embedders with one mistake each."""

from __future__ import annotations

import array
from typing import Any

import attrs
from kit_reference.embedding import ReferenceEmbedder
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import EmbeddingResult, Usage
from sage_infer_testing import EmbeddingBackendContract

from kit_broken.suites import COUNTER, suite


def embedder(*tests: str, **settings: Any) -> Any:
    return suite(EmbeddingBackendContract, "make_backend", *tests, **settings)


@embedder("test_batch_keeps_the_order", "test_concurrent_calls_do_not_mix")
class SortsTheBatch(ReferenceEmbedder):
    async def embed_batch(self, texts: Any, *rest: Any, **options: Any) -> EmbeddingResult:
        words = sorted(texts, key=len) if len(texts) > 1 else [f"{texts[0]} {next(COUNTER)}"]
        return await super().embed_batch(words, *rest, **options)


@embedder("test_embedding_is_deterministic", "test_embed_gives_one_vector")
class Random(ReferenceEmbedder):
    def get_embedding_dim(self) -> int:
        return 32

    async def embed_batch(self, texts: Any, *rest: Any, **options: Any) -> EmbeddingResult:
        return await super().embed_batch([f"{text} {next(COUNTER)}" for text in texts], *rest, **options)


@embedder("test_vectors_have_length_one", normalized=False)
class Normalizes(ReferenceEmbedder):
    pass


@embedder("test_meaning_decides")
class Meaningless(ReferenceEmbedder):
    def words(self, *args: Any) -> list[str]:
        return [" ".join(super().words(*args))]


@embedder("test_token_ids_may_be_given")
class AddsTokens(ReferenceEmbedder):
    async def embed_batch(self, texts: Any, *rest: Any, **options: Any) -> EmbeddingResult:
        result = await super().embed_batch(texts, *rest, **options)
        return attrs.evolve(result, usage=Usage(prompt_tokens=result.usage.prompt_tokens + 2))


@embedder("test_no_texts_give_no_vectors", "test_empty_text_is_refused")
class NeedsTexts(ReferenceEmbedder):
    def words(self, index: int, text: Any, truncate: str) -> list[str]:
        return super().words(index, text or "empty", truncate)

    async def embed_batch(self, texts: Any, *rest: Any, **options: Any) -> EmbeddingResult:
        return await super().embed_batch(texts or ["nothing"], *rest, **options)


@embedder("test_text_over_the_limit_is_refused")
class AlwaysCuts(ReferenceEmbedder):
    def words(self, index: int, text: Any, truncate: str) -> list[str]:
        return super().words(index, text, "end")


@embedder("test_text_over_the_limit_is_refused")
class VagueAboutLimits(ReferenceEmbedder):
    def words(self, index: int, text: Any, truncate: str) -> list[str]:
        try:
            return super().words(index, text, truncate)
        except InvalidRequest:
            raise InvalidRequest(f"text {index} is no good") from None


@embedder("test_text_over_the_limit_is_cut")
class CutsTooLate(ReferenceEmbedder):
    def words(self, index: int, text: Any, truncate: str) -> list[str]:
        return [
            word for part in text.split() for word in super(CutsTooLate, self).words(index, part, truncate)
        ]


@embedder("test_claims_what_it_does", "test_limits_are_positive")
class ClaimsNothing(ReferenceEmbedder):
    def get_capability(self) -> Any:
        return attrs.evolve(super().get_capability(), features=(), max_sequence_length=7)


@embedder("test_refuses_to_rerank")
class ReranksAnyway(ReferenceEmbedder):
    def get_capability(self) -> Any:
        return attrs.evolve(super().get_capability(), features=("embed",))


@embedder("test_rerank_orders_by_relevance", "test_top_n_limits_the_hits")
class WorstFirst(ReferenceEmbedder):
    async def rerank(self, query: str, documents: Any, *, top_n: int | None = None, **options: Any) -> Any:
        result = await super().rerank(query, documents, **options)
        return attrs.evolve(result, hits=result.hits[::-1])


@embedder("test_work_after_close_is_refused")
class WorksAfterClose(ReferenceEmbedder):
    def words(self, *args: Any) -> list[str]:
        self.state = "ok"
        return super().words(*args)


@embedder("test_embed_takes_one_text_or_a_list")
class OneTextOnly(ReferenceEmbedder):
    async def embed(self, texts: Any, **options: Any) -> EmbeddingResult:
        return await self.embed_batch([texts if isinstance(texts, str) else texts[0]], **options)


@embedder("test_batch_size_changes_no_vector")
class KeepsTheFirstBatch(ReferenceEmbedder):
    async def embed_batch(self, texts: Any, batch_size: int = 32, **options: Any) -> EmbeddingResult:
        return await super().embed_batch(texts[:batch_size], batch_size, **options)


@embedder("test_abort_ends_a_call")
class HearsNoAbort(ReferenceEmbedder):
    async def abort(self, request_id: str) -> None:
        """Does nothing."""


@embedder("test_deadline_ends_a_call")
class HasTime(ReferenceEmbedder):
    async def compute(self, batches: int, request_id: Any, options: Any) -> None:
        await super().compute(batches, request_id, None)


@embedder("test_every_call_refuses_unknown_options")
class RanksWithAnything(ReferenceEmbedder):
    async def rerank(self, *args: Any, options: Any = None, **more: Any) -> Any:
        return await super().rerank(*args, **more)


@embedder("test_a_result_is_a_sequence_of_vectors")
class ResultOfDoubles(ReferenceEmbedder):
    async def embed(self, texts: Any, **options: Any) -> Any:
        result = await super().embed(texts, **options)

        class Doubles(EmbeddingResult):
            def __iter__(self) -> Any:
                return iter([array.array("d", vector) for vector in self.vectors])

        return Doubles(model_id=result.model_id, dim=result.dim, data=result.data, usage=result.usage)

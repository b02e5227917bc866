"""The kit for embedding and reranking engines."""

from __future__ import annotations

import asyncio
import math
import operator
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
from sage_infer.contracts import EmbeddingBackend
from sage_infer.errors import EngineDead, InvalidRequest, UnsupportedFeature
from sage_infer.schemas import EmbeddingResult, RerankResult
from sage_infer.specs import ServedType

from sage_infer_testing.features import unless_claimed, when_claimed
from sage_infer_testing.kits.embedding_calls import EmbeddingCallTests
from sage_infer_testing.kits.reporting import ReportTests

__all__ = ["EmbeddingBackendContract"]

_SAME_SCORE = 1e-9  # scores that differ by less are the same
_CLOSE_SCORE = 0.05  # by which kernels may round differently, as a share


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Cosine of the angle between two vectors; 0 where one of them is zero."""
    norm = math.hypot(*one) * math.hypot(*other)
    return sum(map(operator.mul, one, other)) / norm if norm else 0.0


class EmbeddingBackendContract(EmbeddingCallTests, ReportTests, kit=True):
    """Guarantees of an ``EmbeddingBackend``.

    An instance claims ``embed``, ``rerank`` or both. Tests of unclaimed features are skipped.

    Attributes:
        texts: distinct texts of very different lengths.
        alike: pairs of texts with the same meaning; each pair must be closer than texts of different pairs.
        normalized: whether vectors have length 1; None skips the test.
        batch_tolerance: maximum distance (1 − cosine) between a text's vectors in a batch and alone.
        query: query to rerank ``documents`` by.
        documents: documents with the most relevant one first.
    """

    serves: ClassVar[ServedType] = "embedding"
    protocol: ClassVar[type] = EmbeddingBackend
    sequence_limit: ClassVar[int | None] = None
    texts: ClassVar[Sequence[str]] = (
        "cat",
        "The quick brown fox jumps over the lazy dog near the river bank on a sunny afternoon in late spring.",
        "Water boils at a hundred degrees.",
        "Prices of houses have risen for ten years, and nobody in the city can say when that will end or why it began.",
        "yes",
        "A small boat crossed the lake.",
    )
    alike: ClassVar[Sequence[tuple[str, str]]] = (
        ("A man is playing a guitar.", "Someone plays the guitar."),
        ("The stock market fell sharply today.", "Shares lost much of their value today."),
    )
    normalized: ClassVar[bool | None] = None
    batch_tolerance: ClassVar[float] = 1e-4
    query: ClassVar[str] = "What is the capital of France?"
    documents: ClassVar[Sequence[str]] = (
        "Paris is the capital and largest city of France.",
        "Bananas are rich in potassium.",
        "The recipe needs two eggs and some flour.",
    )

    async def ask(self, backend: Any, *, options: Any = None) -> None:
        """One text, or one document to rank."""
        if backend.get_capability().supports("embed"):
            await backend.embed(self.texts[0], options=options)
        else:
            await backend.rerank(self.query, self.documents[:1], options=options)

    def too_long(self, backend: Any) -> str:
        """Return a text over the limit in any vocabulary: each word is at least one token."""
        limit: int = backend.get_max_length()
        return "word " * (limit + 8)

    # --- capability

    def test_claims_what_it_does(self, backend: Any) -> None:
        """The capability claims ``embed`` or ``rerank``, and is of instance type ``embedding``.

        How to fix: list "embed", "rerank" or both in ``CapabilityDescriptor.features``.
        """
        capability = backend.get_capability()
        assert {"embed", "rerank"} & set(capability.features), (
            f"claims neither embed nor rerank: {capability.features}"
        )
        assert capability.instance_type == "embedding", f"instance_type is {capability.instance_type!r}"

    def test_limits_are_positive(self, backend: Any) -> None:
        """``get_max_length`` is positive and is the capability's ``max_sequence_length``.

        How to fix: read both from the loaded model's configuration, including special tokens.
        """
        limit = backend.get_max_length()
        assert limit > 0, f"get_max_length() is {limit}"
        assert limit == backend.get_capability().max_sequence_length, (
            "the capability has another max_sequence_length"
        )

    async def test_work_after_close_is_refused(self, closed_backend: Any) -> None:
        """A closed instance raises ``EngineDead``.

        How to fix: first check whether the instance is running.
        """
        with pytest.raises(EngineDead):
            await closed_backend.embed_batch(self.texts[:1])

    # --- embedding

    @when_claimed("embed")
    async def test_embed_gives_one_vector(self, backend: Any) -> None:
        """``embed`` returns one vector of ``get_embedding_dim`` finite numbers, and counts the text's tokens.

        How to fix: return an ``EmbeddingResult`` over a float32 buffer of ``dim`` numbers.
        """
        result = await backend.embed(self.texts[0])
        assert isinstance(result, EmbeddingResult), f"embed() returned a {type(result).__name__}"
        assert len(result) == 1, f"embed() returned {len(result)} vectors"
        assert result.dim == backend.get_embedding_dim(), (
            f"dim {result.dim}, promised {backend.get_embedding_dim()}"
        )
        assert all(map(math.isfinite, result.vectors[0])), "the vector has infinite or undefined numbers"
        assert any(result.vectors[0]), "the vector is zero"
        assert result.usage.prompt_tokens > 0, "usage counts no tokens"

    @when_claimed("embed")
    async def test_embedding_is_deterministic(self, backend: Any) -> None:
        """The same text produces the same vector twice.

        How to fix: disable dropout and all other sources of randomness.
        """
        first, second = await backend.embed(self.texts[1]), await backend.embed(self.texts[1])
        assert cosine(first.vectors[0], second.vectors[0]) >= 1 - self.batch_tolerance, "two runs differ"

    @when_claimed("embed")
    async def test_batch_keeps_the_order(self, backend: Any) -> None:
        """Each text has the same vector in a batch of mixed lengths as alone, and the order is kept.

        How to fix: undo the sorting by length; exclude padding from attention and pooling with the attention mask.
        """
        batch = await backend.embed_batch(self.texts)
        assert len(batch) == len(self.texts), f"{len(self.texts)} texts returned {len(batch)} vectors"
        for index, text in enumerate(self.texts):
            alone = (await backend.embed(text)).vectors[0]
            apart = 1 - cosine(batch.vectors[index], alone)
            assert apart <= self.batch_tolerance, (
                f"text {index} in the batch is {apart:.2g} from itself alone: {text!r}"
            )

    @when_claimed("embed")
    async def test_vectors_have_length_one(self, backend: Any) -> None:
        """If ``normalized`` is True, all vectors have length 1; if it is False, some do not.

        How to fix: set ``normalized`` to the behaviour of the backend, or to None.
        """
        if self.normalized is None:
            pytest.skip("normalized is None")
        lengths = [math.hypot(*vector) for vector in (await backend.embed_batch(self.texts)).vectors]
        unit = all(abs(length - 1) < 1e-3 for length in lengths)
        assert unit is self.normalized, f"normalized={self.normalized}, lengths {lengths}"

    @when_claimed("embed")
    async def test_meaning_decides(self, backend: Any) -> None:
        """Texts with the same meaning are closer than texts with different meanings.

        How to fix: check the pooling (mean, cls or last token) and the special tokens against the model's card.
        """
        flat = [text for pair in self.alike for text in pair]
        vectors = (await backend.embed_batch(flat)).vectors
        within = [cosine(vectors[i], vectors[i + 1]) for i in range(0, len(flat), 2)]
        across = [
            cosine(vectors[i], vectors[j])
            for i in range(len(flat))
            for j in range(i + 1, len(flat))
            if i // 2 != j // 2
        ]
        assert min(within) > max(across), f"pairs with the same meaning: {within}; others: {across}"

    @when_claimed("embed")
    async def test_concurrent_calls_do_not_mix(self, backend: Any) -> None:
        """Each of several concurrent calls returns its own vector.

        How to fix: if calls are merged into one batch, return to each caller its own rows.
        """
        alone = [(await backend.embed(text)).vectors[0] for text in self.texts]
        together = await asyncio.gather(*[backend.embed(text) for text in self.texts])
        for text, expected, result in zip(self.texts, alone, together, strict=True):
            apart = 1 - cosine(result.vectors[0], expected)
            assert apart <= self.batch_tolerance, f"{text!r} among others is {apart:.2g} from itself alone"
        await self.idle(backend)

    @when_claimed("embed")
    async def test_token_ids_may_be_given(self, backend: Any) -> None:
        """``embed`` accepts token ids instead of a text.

        How to fix: use the ids unchanged, without adding special tokens.
        """
        result = await backend.embed([1, 2, 3])
        assert result.usage.prompt_tokens == 3, f"3 token ids, usage counts {result.usage.prompt_tokens}"

    @when_claimed("embed")
    async def test_no_texts_give_no_vectors(self, backend: Any) -> None:
        """An empty list returns an empty result.

        How to fix: return an ``EmbeddingResult`` without data, without calling the model.
        """
        result = await backend.embed_batch([])
        assert len(result) == 0, f"no texts returned {len(result)} vectors"
        assert result.usage.prompt_tokens == 0

    @when_claimed("embed")
    async def test_empty_text_is_refused(self, backend: Any) -> None:
        """An empty text is an ``InvalidRequest``; in a batch the message names its index.

        How to fix: check all texts first: "text 1 is empty".
        """
        with pytest.raises(InvalidRequest):
            await backend.embed("")
        with pytest.raises(InvalidRequest, match="1"):
            await backend.embed_batch(["fine", ""])

    @when_claimed("embed")
    async def test_text_over_the_limit_is_refused(self, backend: Any) -> None:
        """With ``truncate="error"`` a text over the limit is an ``InvalidRequest`` with its index and the limit.

        How to fix: count tokens before the model is called: "text 1 has 700 tokens, the limit is 512".
        """
        with pytest.raises(InvalidRequest, match=r"\b1\b") as caught:
            await backend.embed_batch(["fine", self.too_long(backend)])
        limit = str(backend.get_max_length())
        assert limit in str(caught.value).replace(",", ""), (
            f"the message does not name the limit {limit}: {caught.value}"
        )

    @when_claimed("embed")
    async def test_text_over_the_limit_is_cut(self, backend: Any) -> None:
        """With ``truncate="end"`` a text over the limit is truncated; a short text is unchanged.

        How to fix: truncate the token ids to ``get_max_length``, keeping the special tokens at both ends.
        """
        result = await backend.embed(self.too_long(backend), truncate="end")
        used, limit = result.usage.prompt_tokens, backend.get_max_length()
        assert 0 < used <= limit, f"{used} tokens were used, the limit is {limit}"
        short, same = await backend.embed(self.texts[0]), await backend.embed(self.texts[0], truncate="end")
        assert cosine(short.vectors[0], same.vectors[0]) >= 1 - self.batch_tolerance, (
            "truncate changes a short text"
        )

    @when_claimed("embed")
    async def test_truncation_keeps_the_beginning(self, backend: Any) -> None:
        """With ``truncate="end"`` what stands over the limit does not matter.

        How to fix: cut at the end, not at the beginning or in the middle.
        """
        one = await backend.embed(self.too_long(backend) + "cats sleep all day", truncate="end")
        other = await backend.embed(self.too_long(backend) + "ships cross the sea", truncate="end")
        apart = 1 - cosine(one.vectors[0], other.vectors[0])
        assert apart <= self.batch_tolerance, f"texts that differ over the limit alone are {apart:.2g} apart"

    @when_claimed("embed")
    async def test_usage_counts_every_text(self, backend: Any) -> None:
        """The usage of a batch is the sum over its texts.

        How to fix: count the tokens of all texts, without padding.
        """
        alone = [(await backend.embed(text)).usage.prompt_tokens for text in self.texts]
        counted = (await backend.embed_batch(self.texts)).usage.prompt_tokens
        assert counted == sum(alone), f"texts of {alone} tokens, usage of the batch counts {counted}"

    # --- reranking

    @unless_claimed("rerank")
    async def test_refuses_to_rerank(self, backend: Any) -> None:
        """A model that is not a reranker raises ``UnsupportedFeature``.

        How to fix: raise it from ``rerank``; do not return cosine similarities of embeddings instead.
        """
        with pytest.raises(UnsupportedFeature):
            await backend.rerank(self.query, self.documents)

    @when_claimed("rerank")
    async def test_rerank_orders_by_relevance(self, backend: Any) -> None:
        """The relevant document is first, each document occurs once, and scores are in descending order.

        How to fix: sort by score, highest first; ``RerankHit.index`` is the document's index in the request.
        """
        for shift in range(len(self.documents)):
            documents = [*self.documents[shift:], *self.documents[:shift]]
            result = await backend.rerank(self.query, documents)
            assert isinstance(result, RerankResult), f"rerank() returned a {type(result).__name__}"
            assert sorted(hit.index for hit in result.hits) == list(range(len(documents))), (
                f"hits {result.hits}"
            )
            scores = [hit.score for hit in result.hits]
            assert scores == sorted(scores, reverse=True), f"scores are not in descending order: {scores}"
            best = documents[result.hits[0].index]
            assert best == self.documents[0], f"for {self.query!r} the best document is {best!r}"

    @when_claimed("rerank")
    async def test_the_query_decides(self, backend: Any) -> None:
        """Scores depend on the query, and a document's score not on the other documents.

        How to fix: compute each pair of query and document on its own, with padding masked out.
        """
        other = "How many eggs does the recipe need?"

        async def scores(query: str, documents: Sequence[str]) -> list[float]:
            hits = (await backend.rerank(query, documents)).hits
            return [hit.score for hit in sorted(hits, key=lambda hit: hit.index)]

        first, second = await scores(self.query, self.documents), await scores(other, self.documents)
        changed = max(abs(a - b) for a, b in zip(first, second, strict=True))
        assert changed > _SAME_SCORE, f"{self.query!r} and {other!r} give the same scores: {first}"
        for index, document in enumerate(self.documents):
            (alone,) = await scores(self.query, [document])
            limit = _CLOSE_SCORE * max(1.0, abs(alone))
            assert abs(alone - first[index]) <= limit, (
                f"document {index} has the score {first[index]} among others, {alone} alone"
            )

    @when_claimed("rerank")
    async def test_no_documents_give_no_hits(self, backend: Any) -> None:
        """An empty list of documents returns no hits.

        How to fix: return a ``RerankResult`` without hits before the model is called.
        """
        result = await backend.rerank(self.query, [])
        assert len(result.hits) == 0, f"no documents gave {result.hits}"

    @when_claimed("rerank")
    async def test_top_n_limits_the_hits(self, backend: Any) -> None:
        """``top_n`` limits the number of hits; a value above the number of documents has no effect.

        How to fix: score all documents, then keep the first ``top_n`` hits.
        """
        everything = await backend.rerank(self.query, self.documents)
        first = await backend.rerank(self.query, self.documents, top_n=1)
        assert [hit.index for hit in first.hits] == [everything.hits[0].index], (
            f"top_n=1 returned {first.hits}"
        )
        more = await backend.rerank(self.query, self.documents, top_n=len(self.documents) + 5)
        assert len(more.hits) == len(self.documents), (
            f"{len(self.documents)} documents returned {len(more.hits)} hits"
        )

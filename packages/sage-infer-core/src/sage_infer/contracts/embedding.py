"""The contract of an engine that turns text into vectors or scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, get_args, runtime_checkable

from sage_infer.contracts.inference import Lifecycle
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import EmbeddingResult, RerankResult

__all__ = ["EmbeddingBackend", "Truncation", "check_texts"]

Truncation = Literal["error", "end"]
"""What to do with a text over the limit: refuse it, or keep its beginning."""


@runtime_checkable
class EmbeddingBackend(Lifecycle, Protocol):
    """An engine with one encoder loaded."""

    async def embed(self, text: str | Sequence[int], *, truncate: Truncation = "error") -> EmbeddingResult:
        """One text (or its token ids) as one vector.

        Raises:
            InvalidRequest: the text is empty, or longer than ``get_max_length`` and ``truncate`` is "error".
        """
        ...

    async def embed_batch(
        self, texts: Sequence[str | Sequence[int]], *, truncate: Truncation = "error"
    ) -> EmbeddingResult:
        """Several texts, in their order; the backend batches them as suits it. No texts give an empty result.

        Token ids are used as they are, without special tokens.

        Raises:
            InvalidRequest: as for ``embed``, naming the text's index; nothing was computed.
        """
        ...

    def get_embedding_dim(self) -> int:
        """Length of a vector."""
        ...

    def get_max_length(self) -> int:
        """Longest text, in tokens with the special ones; the capability's ``max_sequence_length``."""
        ...

    async def rerank(self, query: str, documents: Sequence[str], *, top_n: int | None = None) -> RerankResult:
        """Documents by relevance to the query, best first.

        Raises:
            UnsupportedFeature: the model is not a reranker.
        """
        ...


def check_texts(texts: Sequence[object], truncate: str) -> None:
    """What every backend refuses before it computes: no list, an empty text, neither text nor token ids.

    Raises:
        InvalidRequest: it names the text's index.
    """
    if isinstance(texts, str):
        raise InvalidRequest("texts must be a list of texts, got one string; use embed")
    if truncate not in get_args(Truncation):
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

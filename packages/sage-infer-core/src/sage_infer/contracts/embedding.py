"""The contract of an engine that turns text into vectors or scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, get_args, runtime_checkable

from sage_infer.contracts.lifecycle import Lifecycle
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import EmbeddingResult, RequestOptions, RerankResult

__all__ = ["EmbeddingBackend", "TextLike", "Truncation", "as_texts", "check_texts"]

TextLike = str | Sequence[int]
"""Text, or token ids."""

Truncation = Literal["error", "end"]
"""What happens to a text over the limit: it is refused, or cut at its end."""


@runtime_checkable
class EmbeddingBackend(Lifecycle, Protocol):
    """An engine with one encoder loaded."""

    async def embed(
        self,
        texts: TextLike | Sequence[TextLike],
        *,
        truncate: Truncation = "error",
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> EmbeddingResult:
        """One vector per text, in their order; the backend batches them as suits it. No texts give an empty
        result.

        One text, or one text's token ids, is taken as a list of one. Token ids are used as they are, without
        special tokens. ``abort(request_id)`` ends the call with ``RequestCancelled``.

        Raises:
            InvalidRequest: a text is empty, or longer than ``get_max_length`` and ``truncate`` is "error";
                it names the text's index. Nothing was computed.
            UnsupportedFeature: ``options`` set what this backend does not claim.
            Overloaded: the queue is full; nothing was started.
        """
        ...

    async def embed_batch(
        self,
        texts: Sequence[TextLike],
        batch_size: int = 32,
        *,
        truncate: Truncation = "error",
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> EmbeddingResult:
        """``embed`` of a list of texts, of which at most ``batch_size`` are computed together."""
        ...

    def get_embedding_dim(self) -> int:
        """Length of a vector."""
        ...

    def get_max_length(self) -> int:
        """Longest text, in tokens with the special ones; the capability's ``max_sequence_length``."""
        ...

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> RerankResult:
        """Documents by relevance to the query, best first.

        Raises:
            UnsupportedFeature: the model is not a reranker, or ``options`` set what this backend does not
                claim.
        """
        ...

    async def abort(self, request_id: str) -> None:
        """End a call of this id with ``RequestCancelled``; unknown ids are ignored."""
        ...


def as_texts(texts: TextLike | Sequence[TextLike]) -> list[TextLike]:
    """One or several texts as a list; a flat list of integers is the token ids of one text."""
    if isinstance(texts, str):
        return [texts]
    if texts and isinstance(texts[0], int):
        return [texts]  # type: ignore[list-item]  # token ids, recognized by their first element
    return list(texts)  # type: ignore[arg-type]


def check_texts(texts: Sequence[object], truncate: str) -> None:
    """What every backend refuses before it computes: no list, an empty text, neither text nor token ids.

    Raises:
        InvalidRequest: it names the text's index.
    """
    if isinstance(texts, str):
        raise InvalidRequest("texts must be a list of texts, got one string; pass it in a list")
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

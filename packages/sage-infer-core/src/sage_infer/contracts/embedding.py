"""Contract of embedding and reranking engines."""

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
"""Handling of texts over the length limit: reject them, or truncate them at the end."""


@runtime_checkable
class EmbeddingBackend(Lifecycle, Protocol):
    """An engine with one loaded encoder."""

    async def embed(
        self,
        texts: TextLike | Sequence[TextLike],
        *,
        truncate: Truncation = "error",
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> EmbeddingResult:
        """Return one vector per text, in the order of the texts. The backend chooses the batches.

        An empty list returns an empty result. A single text, or the token ids of a single text, is treated as a
        list of one. Token ids are used unchanged; no special tokens are added. ``abort(request_id)`` ends the
        call with ``RequestCancelled``.

        Raises:
            InvalidRequest: a text is empty, or longer than ``get_max_length`` and ``truncate`` is "error". The
                message names the index of the text; nothing was computed.
            UnsupportedFeature: ``options`` sets a field that this backend does not claim.
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
        """Embed a list of texts in batches of at most ``batch_size``; otherwise like ``embed``."""
        ...

    def get_embedding_dim(self) -> int:
        """Return the length of a vector."""
        ...

    def get_max_length(self) -> int:
        """Return the maximum length of a text in tokens, including special tokens.

        It equals the capability's ``max_sequence_length``.
        """
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
        """Rank documents by relevance to the query, best first; ``top_n`` limits the result.

        Raises:
            UnsupportedFeature: the model is not a reranker, or ``options`` sets a field that this backend does
                not claim.
        """
        ...

    async def abort(self, request_id: str) -> None:
        """End the call with this id with ``RequestCancelled``; unknown ids are ignored."""
        ...


def as_texts(texts: TextLike | Sequence[TextLike]) -> list[TextLike]:
    """Convert one or several texts to a list; a flat list of integers is the token ids of one text."""
    if isinstance(texts, str):
        return [texts]
    if texts and isinstance(texts[0], int):
        return [texts]  # type: ignore[list-item]  # token ids, recognized by their first element
    return list(texts)  # type: ignore[arg-type]


def check_texts(texts: Sequence[object], truncate: str) -> None:
    """Validate the arguments of ``embed`` and ``embed_batch``, as every backend does before it computes.

    Raises:
        InvalidRequest: ``texts`` is a single string, ``truncate`` is unknown, or a text is empty or is neither a
            string nor token ids; the message names the index of the text.
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

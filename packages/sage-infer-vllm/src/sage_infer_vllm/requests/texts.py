"""Tokenization of texts for the pooling runner, with validation and truncation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import frozen
from sage_infer.errors import ContextLengthExceeded, InvalidRequest

__all__ = ["TokenizedText", "tokenize_pairs", "tokenize_texts"]


@frozen
class TokenizedText:
    """Token ids of a text or a pair; ``second_from`` is the start of a pair's second part."""

    token_ids: list[int]
    second_from: int | None = None


def tokenize_texts(
    tokenizer: Any, texts: Sequence[str | Sequence[int]], *, limit: int, cut: bool, vocab_size: int
) -> list[TokenizedText]:
    """Token ids of every text, with special tokens; inputs of token ids are used unchanged.

    ``cut`` truncates inputs over ``limit`` at the end, and keeps special tokens at both ends.

    Raises:
        InvalidRequest: a text is too long, or has a token id outside the vocabulary.
    """
    found = []
    for index, text in enumerate(texts):
        if isinstance(text, str):
            ids = list(tokenizer(text, truncation=cut, max_length=limit if cut else None)["input_ids"])
        else:
            ids = list(text)[:limit] if cut else list(text)
            if max(ids) >= vocab_size or min(ids) < 0:
                raise InvalidRequest(
                    f"text {index} has token id {max(ids)}; the vocabulary ends at {vocab_size - 1}"
                )
        _check_length(f"text {index}", len(ids), limit)
        found.append(TokenizedText(ids))
    return found


def tokenize_pairs(
    tokenizer: Any, query: str, documents: Sequence[str], *, limit: int
) -> list[TokenizedText]:
    """Token ids of the query with each document, in the cross-encoder's format.

    Raises:
        InvalidRequest: a pair is longer than ``limit``.
    """
    found = []
    for index, document in enumerate(documents):
        encoded = tokenizer(query, document)
        ids, kinds = list(encoded["input_ids"]), list(encoded.get("token_type_ids") or ())
        _check_length(f"the query with document {index}", len(ids), limit)
        # vLLM requires the position where token types change from 0 to 1; models without token types have none.
        found.append(TokenizedText(ids, kinds.index(1) if 1 in kinds else None))
    return found


def _check_length(what: str, length: int, limit: int) -> None:
    if length > limit:
        raise ContextLengthExceeded(
            f"{what} has {length} tokens, but the limit is {limit}; shorten it, or set truncate to 'end'"
        )

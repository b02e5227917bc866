"""Merge the results of a call's parts."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import evolve
from sage_infer.schemas import EmbeddingResult, RerankHit, RerankResult, Usage

__all__ = ["merge_embeddings", "merge_hits"]


def merge_embeddings(parts: Sequence[EmbeddingResult]) -> EmbeddingResult:
    """One result with all vectors in order."""
    if len(parts) == 1:
        return parts[0]
    counts = [part.text_tokens for part in parts]
    return evolve(
        parts[0],
        data=memoryview(b"".join(part.data for part in parts)),
        usage=Usage(prompt_tokens=sum(part.usage.prompt_tokens for part in parts)),
        text_tokens=None if any(c is None for c in counts) else tuple(n for c in counts for n in c or ()),
    )


def merge_hits(parts: Sequence[RerankResult], sizes: Sequence[int], top_n: int | None) -> RerankResult:
    """One result, best first, with indices over all documents; ``sizes`` are the numbers of documents per part."""
    hits: list[RerankHit] = []
    start = 0
    for part, size in zip(parts, sizes, strict=True):
        hits += [evolve(hit, index=hit.index + start) for hit in part.hits]
        start += size
    hits.sort(key=lambda hit: hit.score, reverse=True)
    tokens = sum(part.usage.prompt_tokens for part in parts)
    return evolve(parts[0], hits=tuple(hits[:top_n]), usage=Usage(prompt_tokens=tokens))

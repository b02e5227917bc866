"""Results of a call that ran in slices."""

from __future__ import annotations

import array

import attrs
from sage_infer.schemas import EmbeddingResult, Usage
from sage_infer_hybrid.slices import merge_embeddings


def part(*numbers: float, counts: tuple[int, ...] | None) -> EmbeddingResult:
    return EmbeddingResult(
        model_id="m",
        dim=1,
        data=memoryview(array.array("f", numbers).tobytes()),
        usage=Usage(prompt_tokens=sum(counts or (0,))),
        text_tokens=counts,
    )


def test_vectors_and_tokens_of_all_slices_are_joined_in_order() -> None:
    merged = merge_embeddings([part(1.0, 2.0, counts=(3, 4)), part(5.0, counts=(6,))])
    assert bytes(merged.data) == array.array("f", [1.0, 2.0, 5.0]).tobytes()
    assert (merged.usage.prompt_tokens, merged.text_tokens) == (13, (3, 4, 6))


def test_counts_that_one_slice_does_not_know_are_unknown() -> None:
    known = part(1.0, counts=(3,))
    merged = merge_embeddings([known, attrs.evolve(known, text_tokens=None)])
    assert (len(merged), merged.text_tokens) == (2, None)

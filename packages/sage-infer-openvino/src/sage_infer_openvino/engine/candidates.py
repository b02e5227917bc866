"""Candidate selection for sampling, and the draw.

Works on *weights*: unnormalized probabilities, 1 for the most likely token. The vocabulary is never sorted: a bound
first reduces it to the candidates, usually a few hundred tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sage_infer.schemas import SamplingParams

__all__ = ["candidates", "draw", "most_likely", "to_weights"]

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.intp]

_BLOCK = 128


def to_weights(logits: Floats, temperatures: Sequence[float]) -> Floats:
    """Convert logits ``[rows, vocab]`` to weights in place; one temperature per row."""
    logits -= logits.max(axis=1, keepdims=True)
    logits /= np.asarray(temperatures, np.float32)[:, None]
    return np.exp(logits, out=logits)


def candidates(weights: Floats, params: SamplingParams) -> tuple[Ids | None, Floats]:
    """Candidate token ids (None: all) and their weights, from a row of weights.

    The filters apply in order, each to the distribution left by the previous one: ``top_k``, ``top_p``,
    ``min_p``.
    """
    if 0 < params.top_k < len(weights):
        ids = most_likely(weights, params.top_k)
        enough = params.top_p * weights[ids].sum(dtype=np.float64)
    elif params.top_p < 1:
        total = float(weights.sum())
        enough = params.top_p * total
        # The total of all tokens below this weight is less than 1 - top_p, so none of them is needed.
        ids = np.flatnonzero(weights >= np.float32((total - enough) / len(weights)))
        ids = ids[np.argsort(-weights[ids], kind="stable")]
    elif params.min_p > 0:
        ids = np.flatnonzero(weights >= np.float32(params.min_p))
        return ids, weights[ids]
    else:
        return None, weights
    kept = weights[ids]
    if params.top_p < 1:
        count = int(np.searchsorted(np.cumsum(kept, dtype=np.float64), enough)) + 1
        ids, kept = ids[:count], kept[:count]
    if params.min_p > 0:
        count = int(np.count_nonzero(kept >= np.float32(params.min_p)))
        ids, kept = ids[:count], kept[:count]
    return ids, kept


def most_likely(values: Floats, count: int) -> Ids:
    """Ids of the ``count`` largest values of a row, in descending order; ties by id."""
    blocks = values[: len(values) // _BLOCK * _BLOCK].reshape(-1, _BLOCK).max(axis=1)
    if count <= len(blocks):
        # ``count`` blocks have a value of at least this, so the ``count`` largest values are at least this, too.
        bound = np.partition(blocks, -count)[-count]
        ids = np.flatnonzero(values >= bound)
    else:
        ids = np.arange(len(values))
    return ids[np.argsort(-values[ids], kind="stable")[:count]]


def draw(weights: Floats, uniform: float) -> int:
    """The index in ``weights`` selected by a number from [0, 1). Zero weights are never selected."""
    sums = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK))
    block, rest = _place(sums, uniform)
    start = block * _BLOCK
    return start + _place(weights[start : start + _BLOCK], rest)[0]


def _place(weights: Floats, uniform: float) -> tuple[int, float]:
    """The index selected by a number from [0, 1), and the position within it, again from [0, 1)."""
    ends = np.cumsum(weights, dtype=np.float64)
    target = min(uniform * ends[-1], np.nextafter(ends[-1], 0))
    at = int(np.searchsorted(ends, target, side="right"))
    start = ends[at - 1] if at else 0.0
    return at, float((target - start) / (ends[at] - start))

"""Sampling in Python, for engines without their own sampler."""

from __future__ import annotations

import random
from collections.abc import Mapping

from sage_infer.schemas import SamplingParams

__all__ = ["choose_token"]


def choose_token(weights: Mapping[int, float], params: SamplingParams, draw: random.Random) -> int:
    """Sample a token id; ``temperature`` is applied first, then ``top_k``, ``top_p`` and ``min_p``.

    Args:
        weights: positive numbers proportional to the probabilities of the tokens, by token id; not empty.
        draw: random number generator of the request, seeded with its seed.
    """
    ranked = sorted(weights, key=lambda token: (-weights[token], token))
    if params.temperature == 0:
        return ranked[0]
    ranked, highest = ranked[: params.top_k or None], weights[ranked[0]]
    scaled = [(weights[token] / highest) ** (1 / params.temperature) for token in ranked]
    total, kept, reached = sum(scaled), 0, 0.0
    for weight in scaled:
        if kept and (reached >= params.top_p * total or weight < params.min_p):
            break
        kept, reached = kept + 1, reached + weight
    return draw.choices(ranked[:kept], scaled[:kept])[0]

"""Rotary scaling for texts longer than in training.

Each function returns divisors of the ``dimensions / 2`` angular frequencies and a factor on cosine and sine, both
constant over positions. Formulas: transformers' ``modeling_rope_utils.py``; llama.cpp's ``ggml_rope_yarn_corr_dims``
agrees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from attrs import frozen

__all__ = ["RopeScaling", "linear", "llama3", "longrope", "yarn"]


@frozen
class RopeScaling:
    """``factors`` divide the frequencies (``None``: all 1), ``scale`` multiplies cosine and sine, and ``limit`` is the
    maximum length in tokens (``None``: no limit).
    """

    factors: tuple[float, ...] | None = None
    scale: float = 1.0
    limit: int | None = None


def linear(dimensions: int, factor: float) -> RopeScaling:
    """Divide all frequencies by ``factor`` (position interpolation)."""
    return RopeScaling((factor,) * (dimensions // 2) if factor != 1.0 else None)


def llama3(
    dimensions: int, theta: float, factor: float, low: float, high: float, original_length: float
) -> RopeScaling:
    """Llama 3: keep frequencies with more than ``high`` turns over the original context, divide those with fewer than
    ``low`` turns by ``factor``, and interpolate in between.
    """
    factors = []
    for exponent in np.arange(0, dimensions, 2) / dimensions:
        turns = original_length / (2 * math.pi * theta**exponent)
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(float(1.0 / ((1.0 - smooth) / factor + smooth)))
    return RopeScaling(tuple(factors))


def yarn(
    dimensions: int,
    theta: float,
    factor: float,
    original_length: float,
    *,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    scale: float | None = None,
    truncate: bool = True,
) -> RopeScaling:
    """YaRN (https://arxiv.org/abs/2309.00071): a ramp over the indices between the frequencies with ``beta_fast`` and
    ``beta_slow`` turns; ``scale`` defaults to ``0.1 ln(factor) + 1``.
    """

    def number(turns: float) -> float:
        return dimensions * math.log(original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = number(beta_fast), number(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dimensions - 1)
    width = high - low if high != low else 0.001
    factors = []
    for index in range(dimensions // 2):
        stretched = min(max((index - low) / width, 0.0), 1.0)
        share = stretched / factor + 1.0 - stretched
        factors.append(1.0 / share if share else factor)  # an absurd factor rounds to none
    if scale is None:
        scale = 0.1 * math.log(factor) + 1.0 if factor > 1.0 else 1.0
    return RopeScaling(tuple(factors), scale)


def longrope(
    short_factors: Sequence[float], factor: float, original_length: int, scale: float | None = None
) -> RopeScaling:
    """LongRoPE (https://arxiv.org/abs/2402.13753), limited to the original context.

    Beyond it, all angles change, including those of cached keys, which is not supported. ``factor`` is the ratio of the
    model's whole context to the original one.
    """
    if scale is None:
        scale = math.sqrt(1 + math.log(factor) / math.log(original_length)) if factor > 1.0 else 1.0
    return RopeScaling(tuple(map(float, short_factors)), scale, original_length)

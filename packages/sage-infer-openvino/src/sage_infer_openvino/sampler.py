"""Chooses the next token of every sequence from the batch's logits.

Greedy rows are one vectorised argmax. A sampled token depends on (seed, index, position) alone, by a counter-based
generator, so it is the same whether the sequence was batched, preempted, or continued in another process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from sage_infer.schemas import SamplingParams, TokenLogprob

from sage_infer_openvino.sequence import SequenceState
from sage_infer_openvino.tokenizer import TextTokenizer

__all__ = ["Sampler", "candidates"]

Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[np.intp]
Allowed = npt.NDArray[np.bool_]

_COLDEST = 1e-5  # below this temperature nothing but the most likely token has a chance
_FIRST_GUESS = 64  # tokens of a nucleus that are tried first


class Sampler:
    """Sampling for one model."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._eos = tokenizer.eos_token_ids

    def choose(
        self,
        sequences: Sequence[SequenceState],
        logits: Logits,
        allowed: Mapping[int, Allowed] = MappingProxyType({}),
    ) -> list[tuple[int, TokenLogprob | None]]:
        """The next token of each sequence, with log probabilities where asked for.

        ``logits`` is ``[n, vocab]``, and is changed; ``allowed`` masks the rows of guided sequences. Log
        probabilities are of the model's own distribution: before temperature, penalties, masks and cuts.
        """
        asked = {i: s.request.params.logprobs for i, s in enumerate(sequences)}
        raw = {i: logits[i].copy() for i, count in asked.items() if count is not None}
        for i, sequence in enumerate(sequences):
            self._adjust(logits[i], sequence, allowed.get(i))
        tokens = logits.argmax(axis=1).tolist()
        for i, sequence in enumerate(sequences):
            if sequence.request.params.temperature >= _COLDEST:
                tokens[i] = _draw(logits[i], sequence)
        return [
            (token, self._logprob(raw[i], token, asked[i] or 0) if i in raw else None)
            for i, token in enumerate(tokens)
        ]

    def _adjust(self, row: Logits, sequence: SequenceState, allowed: Allowed | None = None) -> None:
        """Apply penalties, and forbid what a constraint does not allow and an early end, in place."""
        params = sequence.request.params
        if params.repetition_penalty != 1.0:
            seen = np.unique(sequence.tokens)
            values = row[seen]
            penalty = np.float32(params.repetition_penalty)
            row[seen] = np.where(values > 0, values / penalty, values * penalty)
        if (params.presence_penalty or params.frequency_penalty) and sequence.output_length:
            seen, counts = np.unique(sequence.tokens[sequence.prompt_length :], return_counts=True)
            row[seen] -= np.float32(params.presence_penalty) + np.float32(params.frequency_penalty) * counts
        ends: list[int] = []
        if sequence.output_length < params.min_tokens:
            stops = {*params.stop_token_ids, *(() if params.ignore_eos else self._eos)}
            ends = [token for token in stops if token < len(row)]
        if allowed is not None:
            row[~allowed] = -np.inf
            if np.count_nonzero(allowed) == np.count_nonzero(allowed[ends]):
                return  # a constraint that ends here knows better than min_tokens
        row[ends] = -np.inf

    def _logprob(self, row: Logits, token: int, count: int) -> TokenLogprob:
        logprobs = row - row.max()
        logprobs -= np.log(np.exp(logprobs).sum())
        best: list[int] = []
        if count:
            count = min(count, len(row))
            best = np.argpartition(logprobs, -count)[-count:].tolist()
            best.sort(key=lambda i: (-logprobs[i], i))
        return TokenLogprob(
            token_id=token,
            text=self._text(token),
            logprob=float(logprobs[token]),
            alternatives=tuple((i, self._text(i), float(logprobs[i])) for i in best),
        )

    def _text(self, token: int) -> str:
        return self._tokenizer.token_bytes[token].decode("utf-8", "replace")


def _draw(row: Logits, sequence: SequenceState) -> int:
    ids, weights = candidates(row, sequence.request.params)
    total = np.cumsum(weights, dtype=np.float64)
    uniform = _uniform(sequence.request.seed, sequence.index, len(sequence.tokens))
    at = min(int(np.searchsorted(total, uniform * total[-1], side="right")), len(weights) - 1)
    return at if ids is None else int(ids[at])


def candidates(row: Logits, params: SamplingParams) -> tuple[Ids | None, npt.NDArray[np.float32]]:
    """Token ids that stay in the running (None: all) and their probabilities up to a common factor.

    The cuts apply one after the other, each to the distribution that the one before it left: ``top_k``, ``top_p``,
    ``min_p``. Only as much of the vocabulary is sorted as they need.
    """
    temperature = np.float32(params.temperature)
    top = row.max()
    if not 0 < params.top_k < len(row) and params.top_p == 1 and params.min_p == 0:
        return None, np.exp((row - top) / temperature)
    if 0 < params.top_k < len(row):
        ids = _most_likely(row, params.top_k)
        weights = np.exp((row[ids] - top) / temperature)
        if params.top_p < 1:
            ids, weights = _nucleus(ids, weights, params.top_p * weights.sum(dtype=np.float64))
    elif params.top_p < 1:
        every = np.exp((row - top) / temperature)
        enough, count = params.top_p * every.sum(dtype=np.float64), _FIRST_GUESS
        ids = _most_likely(row, count)
        while every[ids].sum(dtype=np.float64) < enough and len(ids) < len(row):
            count *= 4
            ids = _most_likely(row, count)
        ids, weights = _nucleus(ids, every[ids], enough)
    else:
        ids = np.flatnonzero(row - top >= temperature * np.float32(math.log(params.min_p)))
        return ids, np.exp((row[ids] - top) / temperature)
    if params.min_p > 0:
        keep = int(np.count_nonzero(weights >= params.min_p))  # the most likely one has weight 1
        ids, weights = ids[:keep], weights[:keep]
    return ids, weights


def _most_likely(row: Logits, count: int) -> Ids:
    """Ids of the ``count`` largest, largest first; equal ones in their own order."""
    if count == 1:
        return np.array([row.argmax()])
    ids = np.sort(np.argpartition(row, -count)[-count:]) if count < len(row) else np.arange(len(row))
    return ids[np.argsort(-row[ids], kind="stable")]


def _nucleus(
    ids: Ids, weights: npt.NDArray[np.float32], enough: float
) -> tuple[Ids, npt.NDArray[np.float32]]:
    """The first ids whose weights reach ``enough`` together."""
    keep = int(np.searchsorted(np.cumsum(weights, dtype=np.float64), enough)) + 1
    return ids[:keep], weights[:keep]


def _uniform(seed: int, index: int, position: int) -> float:
    """A number in [0, 1) from three others: SplitMix64 (Steele, Lea, Flood 2014) over their mixture."""
    mask = (1 << 64) - 1
    z = (seed + 0x9E3779B97F4A7C15 * (position + 1) + 0xD1B54A32D192ED03 * index) & mask
    for _ in range(2):
        z = (z + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        z ^= z >> 31
    return (z >> 11) / (1 << 53)

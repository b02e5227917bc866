"""Selects the next token of every sequence from the batch's logits.

Greedy rows share one vectorized argmax, and all other rows one vectorized exponential. The random number of a token
depends only on (seed, index, position), by a counter-based generator. So batching, preemption and continuation in
another process do not change it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from sage_infer.schemas import TokenLogprob

from sage_infer_openvino.engine.candidates import candidates, draw, most_likely, to_weights
from sage_infer_openvino.engine.sequence import SequenceState
from sage_infer_openvino.models.tokenizer import TextTokenizer

__all__ = ["Sampler"]

Logits = npt.NDArray[np.float32]
Allowed = npt.NDArray[np.bool_]

_COLDEST = 1e-5  # minimum temperature; below it, sampling is greedy
_LARGEST = np.float32(1e30)  # logit after penalties, so that tiny factors do not make it infinite


class Sampler:
    """Samples tokens for one model."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._eos = tokenizer.eos_token_ids

    def choose(
        self,
        sequences: Sequence[SequenceState],
        logits: Logits,
        allowed: Mapping[int, Allowed] = MappingProxyType({}),
    ) -> list[tuple[int, TokenLogprob | None] | None]:
        """The next token of each sequence, with log probabilities if requested; None if no token has a finite logit.

        ``logits`` is ``[n, vocab]`` and is modified; ``allowed`` masks the rows of guided sequences. Log probabilities
        are those of the model's distribution, before penalties, masks, temperature and truncation.
        """
        asked = {i: s.request.params.logprobs for i, s in enumerate(sequences)}
        raw = {i: logits[i].copy() for i, count in asked.items() if count is not None}
        for i, sequence in enumerate(sequences):
            self._adjust(logits[i], sequence, allowed.get(i))
        tokens = logits.argmax(axis=1).tolist()
        valid = np.isfinite(
            logits[np.arange(len(tokens)), tokens]
        )  # the largest of a row, or NaN if it has any
        drawn = [i for i, s in enumerate(sequences) if valid[i] and s.request.params.temperature >= _COLDEST]
        if drawn:
            temperatures = [sequences[i].request.params.temperature for i in drawn]
            weights = to_weights(logits if len(drawn) == len(logits) else logits[drawn], temperatures)
            for i, row in zip(drawn, weights, strict=True):
                tokens[i] = _draw(row, sequences[i])
        return [
            (token, self._logprob(raw[i], token, asked[i] or 0) if i in raw else None) if valid[i] else None
            for i, token in enumerate(tokens)
        ]

    def _adjust(self, row: Logits, sequence: SequenceState, allowed: Allowed | None = None) -> None:
        """Apply penalties, constraint masks and ``min_tokens``, in place."""
        params = sequence.request.params
        if params.repetition_penalty != 1.0:
            seen = np.unique(sequence.tokens)
            values = row[seen]
            with np.errstate(divide="ignore", over="ignore", invalid="ignore", under="ignore"):
                penalty = np.float32(params.repetition_penalty)
                values = np.where(values > 0, values / penalty, values * penalty)
            row[seen] = np.clip(values, -_LARGEST, _LARGEST)
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
                return  # the end of a constrained output takes precedence over min_tokens
        row[ends] = -np.inf

    def _logprob(self, row: Logits, token: int, count: int) -> TokenLogprob:
        logprobs = row - row.max()
        logprobs -= np.log(np.exp(logprobs).sum())
        best = most_likely(logprobs, min(count, len(row))).tolist() if count else []
        return TokenLogprob(
            token_id=token,
            text=self._text(token),
            logprob=float(logprobs[token]),
            alternatives=tuple((i, self._text(i), float(logprobs[i])) for i in best),
            data=self._tokenizer.token_bytes[token],
            alternative_data=tuple(self._tokenizer.token_bytes[i] for i in best),
        )

    def _text(self, token: int) -> str:
        return self._tokenizer.token_bytes[token].decode("utf-8", "replace")


def _draw(weights: Logits, sequence: SequenceState) -> int:
    ids, kept = candidates(weights, sequence.request.params)
    at = draw(kept, _uniform(sequence.request.seed, sequence.index, len(sequence.tokens)))
    return at if ids is None else int(ids[at])


def _uniform(seed: int, index: int, position: int) -> float:
    """A number in [0, 1) from three integers, by SplitMix64 (Steele, Lea, Flood 2014)."""
    mask = (1 << 64) - 1
    z = (seed + 0x9E3779B97F4A7C15 * (position + 1) + 0xD1B54A32D192ED03 * index) & mask
    for _ in range(2):
        z = (z + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        z ^= z >> 31
    return (z >> 11) / (1 << 53)

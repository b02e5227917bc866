"""From probabilities to a token, and from tokens to text that never shows half a character or a stop string."""

from __future__ import annotations

import codecs
import random
from collections.abc import Sequence

from sage_infer.schemas import FinishReason, SamplingParams, TokenDelta

from ngram_sage.model import END, Ngrams

__all__ = ["Completion"]


class Completion:
    """One of a request's ``n`` outputs while it grows."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int], index: int, seed: int, limit: int):
        self.params, self.index, self.tokens, self.made = params, index, list(prompt), 0
        self.longest = min(limit - len(prompt), params.max_tokens or limit)
        self.finish_reason: FinishReason | None = None
        self._random = random.Random(f"{seed}/{index}")
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # text that may turn out to begin a stop string

    def step(self, model: Ngrams) -> TokenDelta:
        """Choose the next token."""
        params, likely = self.params, model.probabilities(self.tokens)
        if params.ignore_eos or self.made < params.min_tokens:
            likely[END] = 0.0
        token = self._choose(likely)
        self.tokens.append(token)
        self.made += 1
        early = self.made < params.min_tokens
        stopped = token == END or (token in params.stop_token_ids and not early)
        text = self._held + ("" if stopped else self._decoder.decode(bytes([token])))
        cuts = [] if early else [at for stop in params.stop if (at := text.find(stop)) >= 0]
        if cuts:
            text, self.finish_reason = text[: min(cuts)], "stop"
        elif stopped or self.made >= self.longest:
            text += self._decoder.decode(b"", final=True)
            self.finish_reason = "stop" if stopped else "length"
        held = 0 if self.finish_reason else max((_overlap(text, stop) for stop in params.stop), default=0)
        self._held = text[len(text) - held :]
        return TokenDelta(text[: len(text) - held], (token,), self.index, finish_reason=self.finish_reason)

    def _choose(self, likely: list[float]) -> int:
        ranked = sorted((i for i, p in enumerate(likely) if p > 0), key=lambda i: (-likely[i], i))
        if self.params.temperature == 0:
            return ranked[0]
        ranked = ranked[: self.params.top_k or None]
        weights = [(likely[i] / likely[ranked[0]]) ** (1 / self.params.temperature) for i in ranked]
        kept, reached = 0, 0.0
        while kept < len(ranked) and (kept == 0 or reached < self.params.top_p * sum(weights)):
            reached += weights[kept]
            kept += 1
        return self._random.choices(ranked[:kept], weights[:kept])[0]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of ``text`` with which ``stop`` may begin."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)

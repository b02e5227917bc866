"""How much of the prompts a step may compute while somebody is reading along."""

from __future__ import annotations

__all__ = ["Pacer"]

_WEIGHT = 0.2  # of the newest measurement in a running mean
_LARGEST_MOVE = 2.0  # one measurement counts as this many times the mean at most: a machine has hiccups


class Pacer:
    """Keeps the steps that carry prompts from stalling the streams that are being read.

    A step's time is taken as one part for its decoding sequences and one for each prompt token; both are learned from
    the steps that were run. ``slowdown`` is how many times longer than a step of the decoding sequences alone a step
    with prompt tokens may take, and is more than 1.
    """

    def __init__(self, slowdown: float, *, smallest: int) -> None:
        self._slowdown = slowdown
        self._smallest = smallest
        self._decode_s: float | None = None
        self._prompt_token_s: float | None = None

    def prompt_tokens(self, limit: int) -> int:
        """Prompt tokens for the next step beside sequences that decode: ``limit`` at most, and never none."""
        smallest = min(self._smallest, limit)
        if self._decode_s is None or self._prompt_token_s is None:
            return smallest  # the first of them shows what they cost
        spare = (self._slowdown - 1) * self._decode_s
        return max(smallest, min(limit, int(spare / self._prompt_token_s)))

    def ran(self, decoding: int, prompt_tokens: int, seconds: float) -> None:
        """A step of so many decoding sequences and prompt tokens took so long."""
        if decoding and not prompt_tokens:
            self._decode_s = _mean(self._decode_s, seconds)
        elif prompt_tokens:
            base = (self._decode_s or 0.0) if decoding else 0.0
            # A step is never faster for what it carries besides; what the estimate says beyond it is noise.
            self._prompt_token_s = _mean(
                self._prompt_token_s, max(seconds - base, 0.1 * seconds) / prompt_tokens
            )


def _mean(old: float | None, new: float) -> float:
    if old is None:
        return new
    new = min(max(new, old / _LARGEST_MOVE), old * _LARGEST_MOVE)
    return old + _WEIGHT * (new - old)

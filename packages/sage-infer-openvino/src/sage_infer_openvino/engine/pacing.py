"""How much of the prompts a step may compute while somebody is reading along."""

from __future__ import annotations

__all__ = ["Pacer"]

_WEIGHT = 0.2  # of the newest measurement in a running mean
_LARGEST_MOVE = 2.0  # one measurement counts as this many times the mean at most: a machine has hiccups


class Pacer:
    """Keeps the steps that carry prompts from stalling the streams that are being read.

    A step's time is taken as that of the last step that only decoded, and as much again for each row beyond its rows,
    be it a prompt's token or one more sequence: on CPUs a row costs its products. Both are learned from the steps that
    were run. ``slowdown`` is how many times longer than a step of the decoding sequences alone a step with prompt
    tokens may take, and is more than 1. With more prompts than one it may take longer still, by their number beside
    that of the decoding sequences: who waits for a first token counts as much as who waits for the next one.
    """

    def __init__(self, slowdown: float, *, smallest: int) -> None:
        self._slowdown = slowdown
        self._smallest = smallest
        self._decode_s: float | None = None
        self._decode_rows = 0  # that many sequences took so long
        self._row_s: float | None = None

    def prompt_tokens(self, decoding: int, prompts: int, limit: int) -> int:
        """Prompt tokens of ``prompts`` for a step beside ``decoding`` sequences: never none, ``limit`` at most."""
        smallest = min(self._smallest, limit)
        if self._row_s is None:
            return smallest  # the first of them shows what they cost
        spare = (self._slowdown * (1 + max(0, prompts - 1) / decoding) - 1) * self._decode(decoding)
        return max(smallest, min(limit, int(spare / self._row_s)))

    def ran(self, decoding: int, prompt_tokens: int, seconds: float) -> None:
        """A step of so many decoding sequences and prompt tokens took so long."""
        if decoding and not prompt_tokens:
            expected = self._decode(decoding) if self._decode_s is not None else None
            self._decode_s, self._decode_rows = _mean(expected, seconds), decoding
        elif prompt_tokens:
            base = self._decode(decoding) if decoding else 0.0
            # A step is never faster for what it carries besides; what the estimate says beyond it is noise.
            self._row_s = _mean(self._row_s, max(seconds - base, 0.1 * seconds) / prompt_tokens)

    def _decode(self, decoding: int) -> float:
        """Seconds of a step of so many decoding sequences alone."""
        row_s = self._row_s or 0.0
        if self._decode_s is None:
            return decoding * row_s
        # Fewer sequences take less, but a step of one reads all weights as well.
        return max(self._decode_s + (decoding - self._decode_rows) * row_s, 0.5 * self._decode_s)


def _mean(old: float | None, new: float) -> float:
    if old is None:
        return new
    new = min(max(new, old / _LARGEST_MOVE), old * _LARGEST_MOVE)
    return old + _WEIGHT * (new - old)

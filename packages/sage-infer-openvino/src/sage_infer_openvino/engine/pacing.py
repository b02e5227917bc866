"""Limits the prompt tokens of a step while outputs are streamed, and the excess sequences beside other tenants."""

from __future__ import annotations

__all__ = ["Pacer"]

_WEIGHT = 0.2  # weight of the newest measurement in a running mean
_USUAL_PROMPT = 16  # prompt tokens of a step, fewer of which say less about the cost of one
_EXCESS_SLOWDOWN = 1.25  # of a step by the excess sequences of calls, or by prompts of other tenants
_SHARED_STEP_S = 0.1  # of a step with prompts while there are several tenants
_LARGEST_MOVE = 2.0  # outliers are clipped to this multiple of the mean


class Pacer:
    """Keeps steps with prompt tokens from stalling active streams.

    A step's estimated time is that of the last decode-only step plus a constant per additional row (a prompt token or
    another sequence), because on CPUs the cost of products grows with rows. Both are learned from measured steps.
    ``slowdown`` is the maximum ratio, above 1, of the time of a step with prompt tokens to that of a decode-only step.
    Several prompts raise the limit by their number relative to that of decoding sequences: waiting for a first token
    counts as much as waiting for the next one.
    """

    def __init__(self, slowdown: float, *, smallest: int) -> None:
        self._slowdown = slowdown
        self._smallest = smallest
        self._decode_s: float | None = None
        self._decode_rows = 0  # number of sequences in that measurement
        self._row_s: float | None = None
        self._decodes = DecodeTimes()

    def excess(self, sequences: int, more: int) -> int:
        """How many of ``more`` sequences may decode beside ``sequences``, without a much longer step."""
        return self._decodes.within(_EXCESS_SLOWDOWN, sequences, more)

    def prompt_beside(self, sequences: int, prompt_tokens: int) -> int:
        """Prompt tokens of other tenants beside those of a step, without a much longer step."""
        if self._row_s is None:
            return 1
        step_s = self._decode(sequences) + prompt_tokens * self._row_s
        return max(1, int((_EXCESS_SLOWDOWN - 1) * step_s / self._row_s))

    def prompt_alone(self) -> int:
        """Prompt tokens of a step that other tenants may have to wait for."""
        return (
            self._smallest if self._row_s is None else max(self._smallest, int(_SHARED_STEP_S / self._row_s))
        )

    def prompt_tokens(self, decoding: int, prompts: int, limit: int) -> int:
        """Prompt tokens of ``prompts`` for a step beside ``decoding`` sequences: at least 1, at most ``limit``."""
        smallest = min(self._smallest, limit)
        if self._row_s is None:
            return smallest  # measures their cost
        spare = (self._slowdown * (1 + max(0, prompts - 1) / decoding) - 1) * self._decode(decoding)
        return max(smallest, min(limit, int(spare / self._row_s)))

    def ran(self, decoding: int, prompt_tokens: int, seconds: float) -> None:
        """Record the time of a step with this many decoding sequences and prompt tokens."""
        if decoding and not prompt_tokens:
            self._decodes.ran(decoding, seconds)
            expected = self._decode(decoding) if self._decode_s is not None else None
            self._decode_s, self._decode_rows = _mean(expected, seconds), decoding
        elif prompt_tokens:
            base = self._decode(decoding) if decoding else 0.0
            # Additional rows never make a step faster; a lower measurement is noise.
            weight = min(1.0, prompt_tokens / _USUAL_PROMPT)
            self._row_s = _mean(self._row_s, max(seconds - base, 0.1 * seconds) / prompt_tokens, weight)

    def _decode(self, decoding: int) -> float:
        """Seconds of a decode-only step of this many sequences."""
        row_s = self._row_s or 0.0
        if self._decode_s is None:
            return decoding * row_s
        # Fewer sequences take less time, but even a single one reads all weights.
        return max(self._decode_s + (decoding - self._decode_rows) * row_s, 0.5 * self._decode_s)


class DecodeTimes:
    """Measured times of decode-only steps, by their number of sequences."""

    def __init__(self) -> None:
        self._known: dict[int, float] = {}

    def ran(self, sequences: int, seconds: float) -> None:
        """Record a step."""
        self._known[sequences] = _mean(self._known.get(sequences), seconds)

    def within(self, slowdown: float, sequences: int, more: int) -> int:
        """How many of ``more`` sequences can be added to ``sequences`` in at most ``slowdown`` times their time."""
        most = slowdown * self.seconds(max(1, sequences))
        low, high = 0, more
        while low < high:
            middle = (low + high + 1) // 2
            if self.seconds(sequences + middle) <= most:
                low = middle
            else:
                high = middle - 1
        return low

    def seconds(self, sequences: int) -> float:
        """Time of a step: interpolated, and in proportion to the sequences outside of what was measured.

        So a small step that was never measured is expected to be fast, and measured soon.
        """
        below = max((known for known in self._known if known <= sequences), default=None)
        above = min((known for known in self._known if known >= sequences), default=None)
        if below is None and above is None:
            return float(sequences)
        if below is None or above is None:
            nearest = below or above or 1
            return self._known[nearest] * sequences / nearest
        if below == above:
            return self._known[below]
        share = (sequences - below) / (above - below)
        return self._known[below] + share * (self._known[above] - self._known[below])


def _mean(old: float | None, new: float, weight: float = 1.0) -> float:
    if old is None:
        return new
    new = min(max(new, old / _LARGEST_MOVE), old * _LARGEST_MOVE)
    return old + weight * _WEIGHT * (new - old)

"""Live streams of a device, derived from the engines' counters."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sage_infer_hybrid.loaded import LoadedModel

__all__ = ["DeviceStreams"]

_WINDOW_S = 0.1  # window for counting tokens
_STALE_S = 5.0  # age at which a count is discarded


class DeviceStreams:
    """The streams of ``models()``, the generating models of one device."""

    def __init__(self, models: Callable[[], Iterable[LoadedModel]], *, clock: Callable[[], float]) -> None:
        self._models, self._clock = models, clock
        self._counted_at, self._tokens = clock(), 0
        self._step_s: float | None = None

    def weight(self) -> float:
        """Sum of the weights of busy models; 0 if none is busy."""
        return sum(model.weight for model in self._models() if model.is_busy)

    def step_s(self) -> float | None:
        """Recent seconds between tokens of a stream; None if unknown."""
        each = [model.backend.stats() for model in self._models()]
        tokens, running = sum(s.output_tokens for s in each), sum(s.running for s in each)
        passed = self._clock() - self._counted_at
        if passed > _STALE_S or tokens < self._tokens:
            self._step_s = None
        elif passed < _WINDOW_S or tokens == self._tokens:
            return self._step_s
        else:
            self._step_s = passed * max(running, 1) / (tokens - self._tokens)
        self._counted_at, self._tokens = self._clock(), tokens
        return self._step_s

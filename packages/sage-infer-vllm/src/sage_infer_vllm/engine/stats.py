"""Gauges and counters of one engine, from vLLM's own statistics."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from attrs import define, field

__all__ = ["EngineCounters"]

_WINDOW_S = 10.0


@define(eq=False)
class EngineCounters:
    """Filled by the stat logger that the engine calls after each step.

    Attributes:
        steps: engine steps since the start.
        step_s: seconds between the last two steps without idle time between them; None before the second step.
        running: sequences in the batch after the last step.
        waiting: requests in the queue after the last step.
        kv_usage: share of KV blocks in use after the last step, 0 to 1.
        prompt_tokens: computed prompt tokens.
        output_tokens: generated tokens.
        cache_queries: prompt tokens looked up in the prefix cache.
        cache_hits: prompt tokens found there.
        preemptions: number of preempted requests.
        on_step: called after each step.
    """

    steps: int = 0
    step_s: float | None = None
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cache_queries: int = 0
    cache_hits: int = 0
    preemptions: int = 0
    on_step: Callable[[], None] | None = None
    _recent: deque[tuple[float, int, int]] = field(factory=deque)
    _last_step: float | None = None

    def record(self, scheduler: Any, iteration: Any) -> None:
        """Record the statistics of one engine step; either may be None."""
        if scheduler is not None:
            self._count_step(busy=scheduler.num_running_reqs > 0)
            self.running, self.waiting = scheduler.num_running_reqs, scheduler.num_waiting_reqs
            self.waiting += getattr(scheduler, "num_skipped_waiting_reqs", 0)
            self.kv_usage = scheduler.kv_cache_usage
            cache = scheduler.prefix_cache_stats
            if cache is not None:
                self.cache_queries += cache.queries
                self.cache_hits += cache.hits
        if iteration is not None:
            by_source = getattr(iteration, "prompt_token_stats", None)  # else cached tokens count too
            prompt = iteration.num_prompt_tokens if by_source is None else by_source.computed
            output = iteration.num_generation_tokens
            self.prompt_tokens += prompt
            self.output_tokens += output
            self.preemptions += iteration.num_preempted_reqs
            self._recent.append((time.monotonic(), prompt, output))
            self._forget()
        if self.on_step is not None:
            self.on_step()

    def _count_step(self, *, busy: bool) -> None:
        now = time.monotonic()
        self.steps += 1
        if self._last_step is not None:
            self.step_s = now - self._last_step
        # The time until the next step measures that step only while requests run.
        self._last_step = now if busy else None

    def clear(self) -> None:
        """Reset the counters."""
        self.steps, self.step_s, self._last_step = 0, None, None
        self.prompt_tokens = self.output_tokens = self.cache_queries = self.cache_hits = self.preemptions = 0
        self._recent.clear()

    def rates(self) -> tuple[float, float]:
        """Prompt tokens and output tokens per second, over the last ten seconds."""
        self._forget()
        prompt = sum(entry[1] for entry in self._recent)
        output = sum(entry[2] for entry in self._recent)
        return prompt / _WINDOW_S, output / _WINDOW_S

    def _forget(self) -> None:
        oldest = time.monotonic() - _WINDOW_S
        while self._recent and self._recent[0][0] < oldest:
            self._recent.popleft()

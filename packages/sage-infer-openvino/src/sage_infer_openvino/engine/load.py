"""Load gauges of a scheduler, read from any thread while the engine runs."""

from __future__ import annotations

import time
from collections.abc import Collection

from attrs import frozen

from sage_infer_openvino.engine.scheduler import Scheduler
from sage_infer_openvino.engine.sequence import EngineRequest

__all__ = ["Load", "load_of"]


@frozen(kw_only=True)
class Load:
    """The gauges of ``EngineStats`` that are sums over sequences."""

    running: int
    waiting: int
    waiting_prompt_tokens: int
    running_context_tokens: int
    oldest_wait_s: float


def load_of(scheduler: Scheduler, arriving: Collection[EngineRequest]) -> Load:
    """The current load; ``arriving`` are requests that the engine thread has not accepted yet.

    That thread may change the scheduler meanwhile, so the numbers are only approximately consistent.
    """
    running, waiting = list(scheduler.running), list(scheduler.waiting)
    to_prefill, prompts = 0, set()
    for sequence in (*running, *waiting):
        left = len(sequence.tokens) - sequence.computed
        if sequence.output_length == 0 and not sequence.computed:
            if id(sequence.request) in prompts:
                continue  # completions after the first share its prompt
            prompts.add(id(sequence.request))
        elif left == 1:
            continue  # decoding
        to_prefill += left
    to_prefill += sum(len(request.prompt) for request in arriving)
    requests = [*(sequence.request for sequence in waiting), *arriving]
    arrivals = [request.clock.accepted for request in requests if request.clock.started is None]
    return Load(
        running=len(running),
        waiting=len(waiting) + sum(len(request.sequences) for request in arriving),
        waiting_prompt_tokens=to_prefill,
        running_context_tokens=sum(sequence.computed for sequence in running),
        oldest_wait_s=max(time.perf_counter() - min(arrivals), 0.0) if arrivals else 0.0,
    )

"""Load of open requests in tokens, which vLLM's statistics lack."""

from __future__ import annotations

import time
from collections.abc import Iterable

from attrs import frozen

from sage_infer_vllm.requests.delivery import Delivery
from sage_infer_vllm.requests.pooling import PoolingCall

__all__ = ["Load", "load_of"]


@frozen(kw_only=True)
class Load:
    """Gauges with the same names as in ``EngineStats``."""

    waiting_prompt_tokens: int = 0
    running_context_tokens: int = 0
    oldest_wait_s: float = 0.0


def load_of(deliveries: Iterable[Delivery], calls: Iterable[PoolingCall], *, waiting: int) -> Load:
    """The load of requests and calls, ``waiting`` of which have not begun.

    A prompt counts as waiting until its first token, because vLLM does not report the progress of prefill. The most
    recent requests without a token are assumed to be the waiting ones.
    """
    prompts, context, starts = 0, 0, []
    for delivery in deliveries:
        if delivery.has_output:
            context += delivery.context_tokens
        else:
            prompts += delivery.prompt_tokens
            starts.append(delivery.started)
    for call in calls:
        prompts += call.tokens
        starts += [call.started] * call.texts
    starts.sort(reverse=True)
    oldest = starts[min(waiting, len(starts)) - 1] if waiting and starts else None
    return Load(
        waiting_prompt_tokens=prompts,
        running_context_tokens=context,
        oldest_wait_s=0.0 if oldest is None else max(time.perf_counter() - oldest, 0.0),
    )

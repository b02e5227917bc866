"""Prefill without decode: requests that stop after their first token, and their results."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sage_infer.contracts import PrefillResult
from sage_infer.schemas import DecodeState, Timing, Usage

from sage_infer_openvino.engine.sequence import EngineRequest

__all__ = ["hold", "prefill_result"]


def hold(request: EngineRequest, hold_s: float) -> asyncio.Future[None]:
    """Hold a request for ``hold_s`` seconds after its first token; the future is done when it is held."""
    held: asyncio.Future[None] = request.loop.create_future()

    def on_held(error: BaseException | None) -> None:
        if not held.done():
            held.set_result(None) if error is None else held.set_exception(error)

    request.hold, request.hold_s, request.on_held = True, hold_s, on_held
    return held


def prefill_result(requests: Sequence[EngineRequest], states: Sequence[DecodeState]) -> PrefillResult:
    """The states of one call's requests, with their total usage and timing."""
    timings = [request.timing() for request in requests]
    return PrefillResult(
        states=tuple(states),
        usage=Usage(
            prompt_tokens=sum(len(request.prompt) for request in requests),
            completion_tokens=len(requests),
            cached_tokens=sum(request.cached_tokens or 0 for request in requests),
        ),
        timing=Timing(
            queue_s=min(timing.queue_s for timing in timings),
            ttft_s=max(timing.ttft_s for timing in timings),
            total_s=max(timing.total_s for timing in timings),
        ),
    )

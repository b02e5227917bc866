"""Calls and outputs that the tests of separate prefill and decode share."""

from __future__ import annotations

from typing import Any

import pytest
from sage_infer.contracts import TokenStream
from sage_infer.schemas import SamplingParams

__all__ = ["apart", "generated", "prompt_of", "read", "used", "used_in_engine"]


def prompt_of(length: int, start: int = 1000) -> list[int]:
    return [start + (i * 7) % 5000 for i in range(length)]


async def read(stream: TokenStream) -> dict[str, Any]:
    deltas = [delta async for delta in stream]
    return {
        "tokens": [token for delta in deltas for token in delta.token_ids],
        "text": "".join(delta.text for delta in deltas),
        "logprobs": [
            (entry.token_id, pytest.approx(entry.logprob, abs=1e-4))
            for delta in deltas
            for entry in delta.logprobs or ()
        ],
        "reason": stream.finish_reason,
    }


async def generated(backend: Any, prompt: Any, params: SamplingParams, **more: Any) -> dict[str, Any]:
    (stream,) = await backend.generate(prompt, params, **more)
    return await read(stream)


async def apart(
    backend: Any, prompt: Any, params: SamplingParams, *, move: bool = False, **more: Any
) -> dict[str, Any]:
    """The output of prefill and decode; with ``move`` the KV leaves the engine and comes back in between."""
    result = await backend.prefill(prompt, request_id="apart", params=params, **more)
    (state,) = result.states
    if move:
        state, buffers = await backend.export_kv(state)
        await backend.abort("apart")
        state = await backend.import_kv(state, [memoryview(bytes(buffer)) for buffer in buffers])
    return await read((await backend.decode(state, request_id="apart")).stream)


def used(backend: Any) -> int:
    stats = backend.stats()
    return int(stats.kv_blocks_total - stats.kv_blocks_free)


async def used_in_engine(backend: Any) -> float:
    """Share of the blocks that vLLM itself counts as used, after one more request has ended."""
    await generated(backend, "and on", SamplingParams(temperature=0, max_tokens=2, ignore_eos=True))
    return float(backend._running.engine.counters.kv_usage)

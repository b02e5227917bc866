"""A small KV cache: preemption of resumed requests, no room beside a hold, and the death of the engine."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import attrs
import pytest
from sage_infer.errors import EngineDead, Overloaded
from sage_infer.schemas import SamplingParams
from sage_infer_testing.waiting import eventually
from vllm_apart import apart, generated, prompt_of, read, used, used_in_engine
from vllm_toys import have_vllm

pytestmark = [
    pytest.mark.vllm_newest,
    pytest.mark.skipif(
        not have_vllm("0.23"),
        reason="vLLM 0.23 or newer is not installed in this environment; `hatch run vllm:test` has it",
    ),
]


def test_a_small_cache_preempts_and_a_killed_engine_is_noticed(live: Any) -> None:
    """A resumed request that is preempted computes its prompt again, to the same tokens."""
    small = {"kv_cache_gb": 0.011, "kv_schema": {"page_size": 32}, "max_sequence_length": 128}
    live.use(live.make(**small, prefix_caching=False, adapters={}))
    params = SamplingParams(temperature=1.0, seed=4, max_tokens=80, ignore_eos=True)

    async def main() -> None:
        backend = live.backend
        total = backend.stats().kv_blocks_total
        assert 4 <= total < 8  # the requests need 8 together
        prompts = [prompt_of(40, start=1000 * number) for number in (1, 2)]
        expected = [await generated(backend, prompt, params) for prompt in prompts]
        result = await backend.prefill(prompts, request_id="many", params=params)
        assert used(backend) == 4
        with pytest.raises(Overloaded, match="held requests leave"):
            await backend.prefill([prompt_of(100)], request_id="more", params=params)
        before = backend._running.engine.counters.preemptions
        streams = [
            (await backend.decode(state, request_id=state.request_id)).stream for state in result.states
        ]
        assert await asyncio.gather(*[read(stream) for stream in streams]) == expected
        assert backend._running.engine.counters.preemptions > before
        assert await used_in_engine(backend) == 0
        whole = prompt_of(120, start=4000)  # more than half of the cache: no room for a copy beside the hold
        short = attrs.evolve(params, max_tokens=5)
        assert await apart(backend, whole, short) == await generated(backend, whole, short)
        assert await used_in_engine(backend) == 0
        result = await backend.prefill(prompts[0], request_id="lost", params=params)
        for leader in backend._running.engine.processes.leaders:
            os.kill(leader, signal.SIGKILL)
        await eventually(lambda: backend._running.stopped, "the death is not noticed", within_s=300)
        with pytest.raises(EngineDead):
            await backend.decode(result.states[0], request_id="lost")
        with pytest.raises(EngineDead):
            await backend.export_kv(result.states[0])

    try:
        live.run(main())
    finally:
        live.stop()

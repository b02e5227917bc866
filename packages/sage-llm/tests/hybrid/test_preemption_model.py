"""Batch requests on the real embedded engine are paused for an urgent one, and continue with exactly their tokens."""

from __future__ import annotations

import asyncio
from typing import Any

import attrs
import plane
import pytest
from plane import read, running_plane, small_llm, until
from sage_infer.schemas import SLO, RequestOptions, SamplingParams

pytestmark = pytest.mark.long

BATCH, URGENT = RequestOptions(service_class="batch"), RequestOptions(slo=SLO(ttft_s=0.02))
PLACES, TOKENS = 2, 48
SHORT = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)


def test_paused_requests_continue_with_equal_tokens(smollm2: str, cache_dir: str) -> None:
    params = [attrs.evolve(one, presence_penalty=0.5) for one in plane.mixed_params(PLACES + 2, TOKENS)]
    model = small_llm(smollm2, cache_dir, replicas=1, max_batch_size=PLACES)

    async def main() -> None:
        async with running_plane([model]) as manager:
            dispatcher = manager.dispatcher

            async def batch(number: int) -> Any:
                message = {"role": "user", "content": plane.QUESTIONS[number]}
                return await read(await manager.chat([message], params[number], options=BATCH))

            numbers = range(len(params))  # as many as the instance accepts beyond its batch
            expected = await asyncio.gather(*map(batch, numbers))
            for _ in range(8):  # a request may end before it is paused
                before = dispatcher.pauses
                reading = [asyncio.ensure_future(batch(number)) for number in numbers]
                await until(
                    lambda: len([r for r in dispatcher.open.values() if r.ledger.has_started]) >= PLACES
                )
                running = list(dispatcher.open.values())
                (stream,) = await manager.generate(["urgent"], SHORT, options=URGENT)
                assert len((await read(stream))[0]) == SHORT.max_tokens
                assert await asyncio.gather(*reading) == expected
                if any(request.pauses and request.ledger.records[0].token_ids for request in running):
                    break
            assert dispatcher.pauses > before
            assert dispatcher.ends["failed"] == dispatcher.ends["refused"] == 0

    asyncio.run(asyncio.wait_for(main(), plane.GUARD_S))

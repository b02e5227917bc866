"""Concurrent requests: outputs do not mix, and all requests finish."""

from __future__ import annotations

import asyncio
from typing import Any

from sage_infer.schemas import RequestOptions

from sage_infer_testing.features import when_claimed
from sage_infer_testing.kits.generation.base import GenerationSuite
from sage_infer_testing.reading import Output, generate_all, generate_one, greedy, read

__all__ = ["ConcurrencyTests"]


class ConcurrencyTests(GenerationSuite, kit=True):
    """Requests in the same batch do not influence each other."""

    async def test_concurrent_requests_do_not_mix(self, backend: Any) -> None:
        """Concurrent prompts produce the same output as each alone.

        How to fix: check block tables and positions after sequences join or leave the batch. If only the rounding of
        the kernels depends on the batch size, set ``exact_batch_invariance = False``.
        """
        alone = [await self.greedy_output(backend, prompt) for prompt in self.prompts]
        together = await asyncio.gather(*[self.greedy_output(backend, prompt) for prompt in self.prompts])
        for prompt, expected, output in zip(self.prompts, alone, together, strict=True):
            self.same(output, expected, f"{prompt!r} among others and alone")

    async def test_requests_of_different_lengths_join_and_leave(self, backend: Any) -> None:
        """Requests that join and leave a running batch have the same lengths and outputs as alone.

        How to fix: as for concurrent requests; check the rows after a row that is removed.
        """
        lengths = [max(2 * self.max_output - 4 * i, 2) for i in range(len(self.prompts))]
        alone = [
            await self.greedy_output(backend, prompt, max_tokens=length)
            for prompt, length in zip(self.prompts, lengths, strict=True)
        ]
        waves: list[asyncio.Task[Output]] = []
        for prompt, length in zip(self.prompts, lengths, strict=True):
            (stream,) = await backend.generate(prompt, greedy(length))
            waves.append(asyncio.ensure_future(read(stream, begun := asyncio.Event())))
            await begun.wait()
        for prompt, expected, output in zip(self.prompts, alone, await asyncio.gather(*waves), strict=True):
            assert len(output.token_ids) == len(expected.token_ids), (
                f"{prompt!r} returned {len(output.token_ids)} tokens"
            )
            self.same(output, expected, f"{prompt!r} among others and alone")

    async def test_more_requests_than_the_batch_holds(self, backend: Any) -> None:
        """If there are more requests than ``max_batch_size``, the others wait and all finish.

        How to fix: queue requests that do not fit; start a waiting request whenever another one ends.
        """
        size = backend.get_capability().max_batch_size
        count = min(size + 2, 12, self.max_queue or 12)
        prompts = [self.prompts[i % 3] for i in range(count)]
        outputs = await generate_all(backend, prompts, greedy(4))
        for prompt, output in zip(prompts, outputs, strict=True):
            assert len(output.token_ids) == 4, f"{prompt!r} returned {len(output.token_ids)} tokens"
        firsts: dict[str, int] = {}
        for prompt, output in zip(prompts, outputs, strict=True):
            assert firsts.setdefault(prompt, output.token_ids[0]) == output.token_ids[0], (
                f"{prompt!r} differs"
            )

    async def test_equal_prompts_at_once_agree(self, backend: Any) -> None:
        """The same prompt several times in one call produces the same output each time.

        How to fix: if prefixes are shared, do not write a block that another sequence reads.
        """
        outputs = await generate_all(backend, [self.prompts[0]] * 3, greedy(self.max_output))
        for output in outputs[1:]:
            self.same(output, outputs[0], "the same prompt twice in one call")

    @when_claimed("seed")
    async def test_seeds_do_not_depend_on_neighbours(self, backend: Any) -> None:
        """A seeded request in a batch produces the same output as alone.

        How to fix: use one random number generator per request, advanced only by the request's own tokens.
        """
        params = greedy(self.max_output, temperature=1.0, seed=3)
        alone = await generate_one(backend, self.prompts[0], params)
        noise = [asyncio.ensure_future(self.greedy_output(backend, prompt)) for prompt in self.prompts[1:]]
        beside = await generate_one(backend, self.prompts[0], params)
        await asyncio.gather(*noise)
        self.same(beside, alone, "seed 3 beside others and alone")

    @when_claimed("priority")
    async def test_priorities_are_accepted(self, backend: Any) -> None:
        """Requests of any priority are served.

        How to fix: order the queue by (priority, arrival); negative numbers are allowed.
        """
        for priority in (-1, 0, 5):
            await generate_one(backend, self.prompts[0], greedy(1), options=RequestOptions(priority=priority))

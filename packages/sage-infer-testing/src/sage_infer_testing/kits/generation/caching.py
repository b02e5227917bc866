"""What a prefix cache shares, and with whom."""

from __future__ import annotations

import random
import uuid
from typing import Any

from sage_infer.schemas import RequestOptions

from sage_infer_testing.features import unless_claimed, when_claimed
from sage_infer_testing.kits.generation.base import GenerationSuite
from sage_infer_testing.reading import Output, generate_one, greedy

__all__ = ["CacheTests"]


class CacheTests(GenerationSuite, kit=True):
    """``Usage.cached_tokens`` and salts."""

    async def shuffled_prompt(self, backend: Any) -> tuple[int, ...]:
        """Token ids in an order that no instance has run before."""
        capability = backend.get_capability()
        page = backend.get_kv_schema().page_size if capability.kv_schema is not None else 16
        length = min(capability.max_sequence_length - 8, max(3 * page + 1, 24))
        ids = list(await self.long_prompt(backend, length))
        random.Random(uuid.uuid4().int).shuffle(ids)
        return tuple(ids)

    async def run_salted(self, backend: Any, prompt: tuple[int, ...], salt: str) -> Output:
        """Two tokens for the prompt, under a salt."""
        options = RequestOptions(cache_salt=salt) if salt else None
        output = await generate_one(backend, prompt, greedy(2), options=options)
        await self.idle(backend)
        return output

    @unless_claimed("prefix_caching")
    async def test_cached_tokens_are_not_invented(self, backend: Any) -> None:
        """Without ``prefix_caching`` no token of a prompt comes from a cache, also the second time.

        How to fix: leave ``Usage.cached_tokens`` at 0, or claim the feature.
        """
        for _ in range(2):
            usage = (await self.greedy_output(backend, max_tokens=2)).counted()
            assert usage.cached_tokens == 0, (
                f"prefix_caching is not claimed, and {usage} counts cached tokens"
            )

    @when_claimed("prefix_caching")
    async def test_a_new_prompt_is_not_cached(self, backend: Any) -> None:
        """A prompt that was never run has next to no cached tokens, and ``stats`` counts those that were found.

        How to fix: count the tokens whose blocks were found before the prompt was computed, not after it.
        """
        prompt = await self.shuffled_prompt(backend)
        first = (await self.run_salted(backend, prompt, "")).counted()
        assert first.cached_tokens < len(prompt) / 2, f"a prompt that was never run is cached: {first}"
        before = await self.idle(backend)
        again = (await self.run_salted(backend, prompt, "")).counted()
        grown = backend.stats().prefix_hit_tokens - before.prefix_hit_tokens
        assert grown == again.cached_tokens, (
            f"usage counts {again.cached_tokens} cached tokens, stats().prefix_hit_tokens grew by {grown}"
        )

    @when_claimed("prefix_caching", "cache_salt")
    async def test_salts_do_not_share(self, backend: Any) -> None:
        """A prompt is found again under its own ``cache_salt`` only.

        How to fix: let the salt go into the keys of the blocks, as ``sage_infer.contracts.block_keys`` does.
        """
        prompt = await self.shuffled_prompt(backend)
        first = (await self.run_salted(backend, prompt, "kit-a")).counted()
        other = (await self.run_salted(backend, prompt, "kit-b")).counted()
        plain = (await self.run_salted(backend, prompt, "")).counted()
        own = (await self.run_salted(backend, prompt, "kit-a")).counted()
        for what, usage in (("another salt", other), ("no salt", plain)):
            assert usage.cached_tokens < len(prompt) / 2, f"{what} found the blocks of a salt: {usage}"
        assert own.cached_tokens > first.cached_tokens, f"the same salt found nothing: {own}"

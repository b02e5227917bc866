"""Limits: refused calls, their errors, and that a refused call starts nothing."""

from __future__ import annotations

from typing import Any

import pytest
from sage_infer.errors import EngineDead, InvalidRequest, Overloaded, UnsupportedFeature
from sage_infer.schemas import KVCacheSchema

from sage_infer_testing.features import when_claimed
from sage_infer_testing.kits.generation.base import GenerationSuite
from sage_infer_testing.reading import generate_one, greedy

__all__ = ["LimitTests"]

_NO_TOKEN = 2**31 - 1  # no vocabulary is that large


class LimitTests(GenerationSuite, kit=True):
    """Invalid input immediately raises the documented error."""

    def test_kv_schema_is_the_capability_s(self, backend: Any) -> None:
        """``get_kv_schema`` equals the capability's schema, and the page size is not zero.

        How to fix: create one ``KVCacheSchema`` from the loaded engine's cache and return it in both places. Without
        KV, the capability has null and ``get_kv_schema`` raises ``UnsupportedFeature``.
        """
        if backend.get_capability().kv_schema is None:
            with pytest.raises(UnsupportedFeature):
                backend.get_kv_schema()
            return
        schema = backend.get_kv_schema()
        assert isinstance(schema, KVCacheSchema), f"get_kv_schema() returned a {type(schema).__name__}"
        assert backend.get_capability().kv_schema == schema, "the capability's kv_schema differs"
        assert schema.bytes_per_page > 0

    async def test_prompt_over_the_limit_is_refused(self, backend: Any) -> None:
        """A prompt over ``max_sequence_length`` is an ``InvalidRequest`` that names its length and the limit.

        How to fix: check in ``generate`` before anything is queued: "prompt has 600 tokens, the limit is 512".
        """
        limit = backend.get_capability().max_sequence_length
        prompt = await self.long_prompt(backend, limit + 1)
        with pytest.raises(InvalidRequest) as caught:
            await generate_one(backend, prompt, greedy(1))
        message = str(caught.value).replace(",", "")
        assert str(limit + 1) in message, (
            f"the message does not name the prompt's {limit + 1} tokens: {message}"
        )
        assert str(limit) in message.replace(str(limit + 1), ""), (
            f"the message does not name the limit {limit}: {message}"
        )

    async def test_prompt_that_leaves_no_room_is_refused(self, backend: Any) -> None:
        """A prompt of exactly ``max_sequence_length`` tokens is refused, because the limit includes the output.

        How to fix: refuse the prompt if prompt tokens + 1 > limit.
        """
        prompt = await self.long_prompt(backend, backend.get_capability().max_sequence_length)
        with pytest.raises(InvalidRequest):
            await generate_one(backend, prompt, greedy(1))

    async def test_output_ends_at_the_sequence_limit(self, backend: Any) -> None:
        """A prompt near the limit is accepted; its output ends with ``length`` at the sequence limit.

        How to fix: treat ``max_tokens`` as an upper bound: reduce it to the room left in the sequence, also if it is
        None.
        """
        limit = backend.get_capability().max_sequence_length
        prompt = await self.long_prompt(backend, limit - 3)
        for max_tokens in (10, None):
            output = await self.greedy_output(backend, prompt, max_tokens=max_tokens)
            assert len(output.token_ids) == 3, (
                f"room for 3 tokens, max_tokens={max_tokens}: got {output.token_ids}"
            )
            assert output.finish_reason == "length", f"ended with {output.finish_reason!r}, not 'length'"

    async def test_empty_prompt_is_refused(self, backend: Any) -> None:
        """Empty text, an empty list of ids and an empty list of prompts are ``InvalidRequest``.

        How to fix: ``sage_infer.contracts.as_prompts`` rejects the first two; also check for an empty list of prompts.
        """
        nothing: tuple[Any, ...] = ("", [], [[]], ["fine", ""])
        for empty in nothing:
            with pytest.raises(InvalidRequest):
                await backend.generate(empty, greedy(1))

    async def test_token_outside_the_vocabulary_is_refused(self, backend: Any) -> None:
        """A token id outside the vocabulary is an ``InvalidRequest``, not an engine crash.

        How to fix: compare the largest id with the vocabulary before the request is queued.
        """
        ids = await self.first_prompt_ids(backend)
        with pytest.raises(InvalidRequest, match=str(_NO_TOKEN)):
            await generate_one(backend, [*ids, _NO_TOKEN], greedy(1))
        await self.greedy_output(backend)

    async def test_one_wrong_prompt_starts_none(self, backend: Any) -> None:
        """If one of several prompts is refused, none is started.

        How to fix: check all prompts before the first one is queued.
        """
        wrong = await self.long_prompt(backend, backend.get_capability().max_sequence_length + 1)
        before = await self.idle(backend)
        with pytest.raises(InvalidRequest):
            await backend.generate([self.prompts[0], wrong], greedy(4))
        after = await self.idle(backend, free_blocks=before.kv_blocks_free)
        assert after.output_tokens == before.output_tokens, f"a prompt was started: {before}, then {after}"

    async def test_request_id_in_use_is_refused(self, backend: Any) -> None:
        """A second request with the id of an open one is an ``InvalidRequest`` that names it; the first continues.

        How to fix: keep a table of open requests, and look up the id before queuing.
        """
        (stream,) = await backend.generate(
            self.prompts[0], self.endless(backend), request_id=(request_id := self.new_id())
        )
        async with stream:
            with pytest.raises(InvalidRequest, match=request_id):
                await generate_one(backend, self.prompts[1], greedy(1), request_id=request_id)
            delta = await anext(aiter(stream))
            assert delta.index == 0
        await self.idle(backend)

    async def test_full_queue_is_overloaded(self, backend: Any) -> None:
        """With ``max_queue`` open requests, ``generate`` raises ``Overloaded`` with a wait; capacity is freed later.

        How to fix: count running and waiting requests in ``generate``, and estimate ``retry_after`` from the rate at
        which requests finish. If there is no limit, leave ``max_queue`` at None.
        """
        if self.max_queue is None:
            pytest.skip("max_queue is not set")
        streams: list[Any] = []
        try:
            for _ in range(self.max_queue):
                streams += await backend.generate(self.prompts[0], self.endless(backend))
            with pytest.raises(Overloaded) as caught:
                streams += await backend.generate(self.prompts[0], self.endless(backend))
            assert caught.value.retry_after > 0, f"retry_after is {caught.value.retry_after}"
        finally:
            for stream in streams:
                stream.cancel()
        await self.idle(backend)
        await self.greedy_output(backend)

    async def test_work_after_close_is_refused(self, closed_backend: Any) -> None:
        """``generate`` on a closed instance raises ``EngineDead``.

        How to fix: check in ``generate`` and ``prefill`` whether the instance is running.
        """
        with pytest.raises(EngineDead):
            await closed_backend.generate(self.prompts[0], greedy(1))

    @when_claimed("prefill_decode")
    async def test_prefill_over_the_limit_is_refused(self, backend: Any) -> None:
        """``prefill`` refuses the same prompts as ``generate``.

        How to fix: use the same checks in both methods.
        """
        prompt = await self.long_prompt(backend, backend.get_capability().max_sequence_length + 1)
        with pytest.raises(InvalidRequest):
            await backend.prefill(prompt, request_id=self.new_id(), params=greedy(1))

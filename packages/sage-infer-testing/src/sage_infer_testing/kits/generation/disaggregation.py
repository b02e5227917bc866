"""Prefill and decode as two calls, which together equal ``generate``."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import DecodeState, SamplingParams
from sage_infer.schemas.codec import from_json, to_json

from sage_infer_testing.features import when_claimed
from sage_infer_testing.kits.generation.base import GenerationSuite
from sage_infer_testing.kits.options import UnheardOptions, refused_by_name
from sage_infer_testing.reading import Output, generate_one, greedy, read

__all__ = ["DisaggregationTests"]


def through_json(state: DecodeState) -> DecodeState:
    """Return the state as another process receives it."""
    return from_json(to_json(state), DecodeState)


class DisaggregationTests(GenerationSuite, kit=True):
    """``prefill`` and ``decode`` in one instance, if they are claimed."""

    async def prefilled(self, backend: Any, params: SamplingParams) -> DecodeState:
        """Return the state of the first prompt after ``prefill``."""
        result = await backend.prefill(self.prompts[0], request_id=self.new_id(), params=params)
        assert len(result.states) == 1, f"one prompt must return one state, got {len(result.states)}"
        state: DecodeState = result.states[0]
        return state

    async def decoded(self, backend: Any, state: DecodeState) -> Output:
        """Return the whole output of ``decode`` for a state."""
        return await read((await backend.decode(state, request_id=state.request_id)).stream)

    @when_claimed("prefill_decode")
    async def test_prefill_and_decode_equal_generate(self, backend: Any) -> None:
        """Greedy prefill and decode produce the output of ``generate``, including the first token.

        How to fix: start the stream of ``decode`` with the token that ``prefill`` sampled; count ``max_tokens``, stops
        and positions from the start of the output.
        """
        expected = await self.greedy_output(backend)
        output = await self.decoded(backend, await self.prefilled(backend, greedy(self.max_output)))
        assert output.token_ids == expected.token_ids, f"{output.text!r}, generate: {expected.text!r}"
        assert output.text == expected.text
        assert output.finish_reason == expected.finish_reason

    @when_claimed("prefill_decode", "seed")
    async def test_prefill_and_decode_with_a_seed_equal_generate(self, backend: Any) -> None:
        """Seeded prefill and decode produce the output of ``generate``.

        How to fix: continue the random number generator after the one draw of ``prefill``.
        """
        params = greedy(self.max_output, temperature=1.0, seed=9)
        expected = await generate_one(backend, self.prompts[0], params)
        output = await self.decoded(backend, await self.prefilled(backend, params))
        assert output.token_ids == expected.token_ids, f"{output.text!r}, generate: {expected.text!r}"

    @when_claimed("prefill_decode")
    async def test_state_survives_json(self, backend: Any) -> None:
        """A state survives a round trip through JSON and decodes to the same output.

        How to fix: put only numbers, strings, lists and maps into ``DecodeState``; store the engine's objects in the
        instance, under the request id.
        """
        expected = await self.greedy_output(backend)
        state = await self.prefilled(backend, greedy(self.max_output))
        copy = through_json(state)
        assert copy == state, "the state read from JSON differs"
        output = await self.decoded(backend, copy)
        assert output.token_ids == expected.token_ids, f"{output.text!r}, generate: {expected.text!r}"

    @when_claimed("prefill_decode")
    async def test_state_describes_the_request(self, backend: Any) -> None:
        """The state has the prompt's tokens, one output token, the parameters, and chunks that cover the prompt.

        How to fix: list the computed KV as ``KVChunk``s in token order, without gaps, from token 0 to at least the
        prompt's second-to-last token.
        """
        params = greedy(self.max_output)
        result = await backend.prefill(
            self.prompts[0], request_id=(request_id := self.new_id()), params=params
        )
        (state,) = result.states
        await backend.abort(request_id)
        assert state.request_id == request_id, (
            f"prefill of {request_id!r} returned the state of {state.request_id!r}"
        )
        assert len(state.output_token_ids) == 1, f"prefill chooses one token, got {state.output_token_ids}"
        assert state.params == params, f"asked for {params}, the state has {state.params}"
        assert state.kv_schema == backend.get_kv_schema(), "the state's kv_schema is not the instance's"
        assert result.usage.prompt_tokens == len(state.prompt_token_ids), f"{result.usage}"
        assert 0 <= result.timing.queue_s <= result.timing.ttft_s <= result.timing.total_s, result.timing
        covered = 0
        for chunk in state.chunks:
            assert chunk.token_start <= covered, f"tokens {covered} to {chunk.token_start} are in no chunk"
            covered = max(covered, chunk.token_end)
        needed = len(state.prompt_token_ids) - 1
        assert covered >= needed, f"chunks cover {covered} of the {needed + 1} prompt tokens"

    @when_claimed("prefill_decode")
    async def test_several_prompts_give_states_in_order(self, backend: Any) -> None:
        """Each prompt has its state, in order, with the ids ``id/0``, ``id/1``; each decodes to its own output.

        How to fix: name the parts with ``request_ids``, as in ``generate``.
        """
        prompts = list(self.prompts[:2])
        expected = [await self.greedy_output(backend, prompt) for prompt in prompts]
        request_id = self.new_id()
        result = await backend.prefill(prompts, request_id=request_id, params=greedy(self.max_output))
        assert [state.request_id for state in result.states] == [f"{request_id}/0", f"{request_id}/1"]
        for state, wanted in zip(result.states, expected, strict=True):
            self.same(await self.decoded(backend, state), wanted, f"{state.request_id} and generate")

    @when_claimed("prefill_decode")
    async def test_a_request_that_prefill_finishes(self, backend: Any) -> None:
        """With ``max_tokens=1`` the state is already finished, and ``decode`` only delivers its one token.

        How to fix: set ``DecodeState.finish_reason`` in ``prefill``, and do not compute anything in ``decode``.
        """
        before = await self.idle(backend)
        state = await self.prefilled(backend, greedy(1))
        assert state.finish_reason == "length", f"finish_reason of the state is {state.finish_reason!r}"
        output = await self.decoded(backend, state)
        assert output.token_ids == tuple(state.output_token_ids)
        assert output.finish_reason == "length"
        await self.idle(backend, free_blocks=before.kv_blocks_free)

    @when_claimed("prefill_decode")
    async def test_a_state_decodes_once(self, backend: Any) -> None:
        """A second ``decode`` of the same state is an ``InvalidRequest``, because its KV is no longer held.

        How to fix: remove the entry of the held KV when ``decode`` takes it over, and raise if there is none.
        """
        state = await self.prefilled(backend, greedy(4))
        await self.decoded(backend, state)
        with pytest.raises(InvalidRequest):
            await self.decoded(backend, state)

    @when_claimed("prefill_decode")
    async def test_abort_after_prefill_frees_the_kv(self, backend: Any) -> None:
        """KV is held after ``prefill`` until ``abort`` frees it; then ``decode`` is an ``InvalidRequest``.

        How to fix: do not count held KV in ``kv_blocks_free``, and look it up by request id in ``abort``.
        """
        before = await self.idle(backend)
        state = await self.prefilled(backend, greedy(4))
        if before.kv_blocks_total:
            held = backend.stats().kv_blocks_free
            assert held < before.kv_blocks_free, f"{held} blocks free while a prefilled request is held"
        await backend.abort(state.request_id)
        await self.idle(backend, free_blocks=before.kv_blocks_free)
        with pytest.raises(InvalidRequest):
            await self.decoded(backend, state)

    @when_claimed("prefill_decode")
    async def test_a_hold_ends_by_itself(self, backend: Any) -> None:
        """KV is freed ``hold_s`` seconds after ``prefill`` if it was not decoded; then ``decode`` is
        ``InvalidRequest``.

        How to fix: record the end of each hold, and free expired holds in the engine's loop, even while it is idle.
        """
        before = await self.idle(backend)
        result = await backend.prefill(
            self.prompts[0], request_id=self.new_id(), params=greedy(4), hold_s=0.05
        )
        await self.idle(backend, free_blocks=before.kv_blocks_free)
        (state,) = result.states

        with pytest.raises(InvalidRequest):
            await self.decoded(backend, state)

    @when_claimed("prefill_decode")
    async def test_unknown_options_are_refused_in_both_phases(self, backend: Any) -> None:
        """``prefill`` and ``decode`` refuse an unknown option as ``generate`` does.

        How to fix: check ``options`` first in both methods.
        """
        unheard = UnheardOptions(unheard_of="x")
        problem = await refused_by_name(
            backend.prefill(self.prompts[0], request_id=self.new_id(), params=greedy(4), options=unheard),
            "unheard_of",
        )
        assert not problem, f"prefill: {problem}"
        state = await self.prefilled(backend, greedy(4))
        problem = await refused_by_name(
            backend.decode(state, request_id=state.request_id, options=unheard), "unheard_of"
        )
        assert not problem, f"decode: {problem}"

    @when_claimed("prefill_decode")
    async def test_decode_frees_the_kv(self, backend: Any) -> None:
        """The request's KV is freed when ``decode`` has ended or was cancelled.

        How to fix: transfer the KV to the stream in ``decode``, and free it as after ``generate``.
        """
        before = await self.idle(backend)
        await self.decoded(backend, await self.prefilled(backend, greedy(4)))
        await self.idle(backend, free_blocks=before.kv_blocks_free)
        state = await self.prefilled(backend, self.endless(backend))
        stream = (await backend.decode(state, request_id=state.request_id)).stream
        async for _ in stream:
            break
        await self.idle(backend, free_blocks=before.kv_blocks_free)

    @when_claimed("prefill_decode")
    async def test_unknown_state_is_refused(self, backend: Any) -> None:
        """A state of an unknown request is an ``InvalidRequest``.

        How to fix: look up ``state.request_id``; do not silently recompute the prompt.
        """
        state = await self.prefilled(backend, greedy(4))
        await backend.abort(state.request_id)
        with pytest.raises(InvalidRequest):
            await self.decoded(backend, attrs.evolve(state, request_id="kit-never-was"))

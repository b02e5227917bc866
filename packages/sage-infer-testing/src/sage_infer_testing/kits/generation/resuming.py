"""``resume``: a request that was interrupted at any token continues exactly."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar

import attrs
import pytest
from sage_infer.contracts import Resuming
from sage_infer.errors import CapabilityMismatch, InvalidRequest, RequestCancelled, UnsupportedFeature
from sage_infer.schemas import DecodeState, GuidedDecoding, RequestOptions, SamplingParams

from sage_infer_testing.features import when_claimed
from sage_infer_testing.kits.generation.base import GenerationSuite
from sage_infer_testing.kits.generation.stopping import spanning_stop
from sage_infer_testing.reading import Output, generate_one, greedy, read
from sage_infer_testing.shape import shape_problems

__all__ = ["ResumingTests"]

_CLOSE = 1e-3  # tolerance between log probabilities that should be equal
_NO_TOKEN = 2**31 - 1
_SEED = 7


def states_after(start: DecodeState, output: Output, count: int) -> list[DecodeState]:
    """Return the states of the completions that are unfinished after the first ``count`` deltas of an output."""
    states = []
    for index in range(start.params.n):
        given = [delta for delta in output.deltas[:count] if delta.index == index]
        if not any(delta.finish_reason for delta in given):
            states.append(
                attrs.evolve(
                    start,
                    index=index,
                    output_token_ids=[token for delta in given for token in delta.token_ids],
                    delivered_chars=sum(len(delta.text) for delta in given),
                )
            )
    return states


class ResumingTests(GenerationSuite, kit=True):
    """Tests of backends that claim ``resume``: each interrupts an output at several tokens and resumes it.

    A backend can refuse to resume parameters that it cannot continue exactly (``UnsupportedFeature``); the test of
    these parameters is then skipped. Greedy output must be resumed.

    Attributes:
        resume_model_id: the model's id in a ``DecodeState``; required if the backend is created by ``make_backend`` and
            claims neither ``prefill_decode`` nor ``reports``.
    """

    resume_model_id: ClassVar[str] = ""

    async def start_state(self, backend: Any, params: SamplingParams) -> DecodeState:
        """Return the state of the first prompt before its first output token."""
        capability = backend.get_capability()
        model_id = self.resume_model_id
        if not model_id and capability.supports("prefill_decode"):
            result = await backend.prefill(
                self.prompts[0], request_id=(request_id := self.new_id()), params=greedy(1)
            )
            await backend.abort(request_id)
            model_id = result.states[0].model_id
        elif not model_id:
            described = capability.supports("reports")
            model_id = backend.describe().model_ids[0] if described else self._descriptor().model_id
        ids = (
            await backend.tokenize(self.prompts[0])
            if capability.supports("tokenize")
            else await self.first_prompt_ids(backend)
        )
        return DecodeState(
            request_id="kit-elsewhere", model_id=model_id, instance_id="kit-elsewhere", prompt_token_ids=ids,
            params=params, seed=_SEED if params.seed is None else params.seed,
        )  # fmt: skip

    async def resumed(self, backend: Any, states: Sequence[DecodeState]) -> Output:
        """Return the whole output of ``resume`` for these states."""
        return await read(await backend.resume(states, request_id=self.new_id()))

    async def resumes_exactly(self, backend: Any, params: SamplingParams) -> Output:
        """Interrupt and resume the output of the first prompt at several tokens; return the whole output."""
        __tracebackhide__ = True
        whole = await generate_one(backend, self.prompts[0], params)
        start = await self.start_state(backend, params)
        last = len(whole.deltas) - 1
        cuts = sorted({0, 1, last // 2, last - 1, last} & set(range(last + 1)))
        parts = [states_after(start, whole, cut) for cut in cuts]
        try:
            rests = await asyncio.gather(*[self.resumed(backend, states) for states in parts])
        except UnsupportedFeature as error:
            if params == greedy(self.max_output):
                raise
            pytest.skip(f"the backend does not resume these parameters: {error}")
        for cut, states, rest in zip(cuts, parts, rests, strict=True):
            self.continues(whole, states, rest, f"resumed after {cut} of {last + 1} deltas")
        return whole

    def continues(self, whole: Output, states: Sequence[DecodeState], rest: Output, when: str) -> None:
        """Fail unless ``rest`` is the part of ``whole`` after ``states``."""
        __tracebackhide__ = True
        indices = [state.index for state in states]
        assert sorted(rest.completions) == indices, (
            f"{when}: states of completions {indices}, deltas of {sorted(rest.completions)}"
        )
        usage = rest.counted()
        made = sum(len(c.token_ids) for c in rest.completions.values())
        made += sum(len(state.output_token_ids) for state in states)
        assert usage.completion_tokens == made, f"{when}: {made} tokens of output in all, {usage}"
        assert usage.prompt_tokens == whole.counted().prompt_tokens, f"{when}: {usage}, whole: {whole.usage}"
        for state in states:
            wanted, got = whole.completions[state.index], rest.completions[state.index]
            given = len(state.output_token_ids)
            length = None if self.exact_batch_invariance else 1
            assert got.token_ids[:length] == wanted.token_ids[given:][:length], (
                f"{when}: tokens {wanted.token_ids[:given]} continue with {got.token_ids}, "
                f"without interruption with {wanted.token_ids[given:]}"
            )
            if length is None:
                text = wanted.text[state.delivered_chars :]
                assert got.text == text, f"{when}: the text continues with {got.text!r}, expected {text!r}"
                assert got.finish_reason == wanted.finish_reason, (
                    f"{when}: ended with {got.finish_reason!r}, expected {wanted.finish_reason!r}"
                )

    async def resume_refused(
        self, backend: Any, error: type[Exception], states: Sequence[DecodeState]
    ) -> None:
        """Fail unless the states are refused with this error."""
        __tracebackhide__ = True
        try:
            stream = await backend.resume(states, request_id=self.new_id())
        except error:
            return
        stream.cancel()
        pytest.fail(f"accepted instead of {error.__name__}: {states}")

    # --- exact continuation

    @when_claimed("resume")
    async def test_resume_continues_greedy_output(self, backend: Any) -> None:
        """Interrupted greedy output continues with the same tokens, text, finish reason and usage.

        How to fix: compute the KV of prompt and given tokens, then generate. Send deltas only for new tokens, and text
        only after ``delivered_chars``. Count the given tokens as output in ``max_tokens`` and ``Usage``, and only the
        original prompt as prompt.
        """
        problems = shape_problems(backend, Resuming)
        assert not problems, f"not a Resuming: {'; '.join(problems)}"
        await self.resumes_exactly(backend, greedy(self.max_output))

    @when_claimed("resume", "seed")
    async def test_resume_continues_seeded_sampling(self, backend: Any) -> None:
        """Seeded output continues with the same draws as without interruption.

        How to fix: derive each draw from the seed, the completion's index and the token's position, or advance the
        generator by one draw per given token.
        """
        params = greedy(self.max_output, temperature=1.0, seed=9)
        await self.resumes_exactly(backend, params)

    @when_claimed("resume", "penalties")
    async def test_resume_penalizes_given_tokens(self, backend: Any) -> None:
        """Presence and frequency penalties count the given tokens as output, but not the prompt's tokens.

        How to fix: store the length of the original prompt with the sequence, and treat given tokens as output.
        """
        for penalties in ({"presence_penalty": 1.5, "frequency_penalty": 1.5}, {"repetition_penalty": 1.5}):
            await self.resumes_exactly(backend, greedy(self.max_output, **penalties))

    @when_claimed("resume")
    async def test_resume_finds_a_stop_string_across_the_cut(self, backend: Any) -> None:
        """A stop string that started in the given tokens ends the output, and no new delta contains any part of it.

        How to fix: pass the text of the given tokens to the stop-string detector before the first new token.
        """
        stop = spanning_stop(await self.greedy_output(backend))
        if not stop:
            pytest.skip("the greedy output has no string that spans two deltas; set other prompts")
        whole = await self.resumes_exactly(backend, greedy(self.max_output, stop=[stop]))
        assert whole.finish_reason == "stop", f"the stop string {stop!r} did not end {whole.text!r}"

    @when_claimed("resume")
    async def test_resume_counts_min_tokens_from_the_start(self, backend: Any) -> None:
        """``min_tokens`` counts the given tokens.

        How to fix: compare ``min_tokens`` with the sum of given and new tokens.
        """
        tokens = (await self.greedy_output(backend)).token_ids
        least = self.max_output // 2
        stop = next((t for i, t in enumerate(tokens) if i >= least and tokens.index(t) == i), None)
        if stop is None:
            pytest.skip("the second half of the greedy output has no new token; set other prompts")
        params = greedy(self.max_output, stop_token_ids=[stop], min_tokens=least)
        await self.resumes_exactly(backend, params)

    @when_claimed("resume", "guided_json")
    async def test_resume_continues_a_constraint(self, backend: Any) -> None:
        """Constrained output continues its constraint and does not restart it.

        How to fix: advance the constraint's matcher over the given tokens.
        """
        properties = {"ready": {"type": "boolean"}, "colour": {"enum": ["red", "blue"]}}
        schema = {
            "type": "object", "properties": properties, "required": ["ready", "colour"], "additionalProperties": False,
        }  # fmt: skip
        params = SamplingParams(temperature=0.0, max_tokens=64, guided=GuidedDecoding(json_schema=schema))
        await self.resumes_exactly(backend, params)

    @when_claimed("resume", "logprobs")
    async def test_resume_reports_logprobs_of_new_tokens(self, backend: Any) -> None:
        """New tokens have the same log probabilities as without interruption; given tokens have none.

        How to fix: attach log probabilities to deltas of new tokens only.
        """
        params = greedy(self.max_output, logprobs=2)
        whole = await self.resumes_exactly(backend, params)
        cut = len(whole.deltas) // 2
        states = states_after(await self.start_state(backend, params), whole, cut)
        rest = await self.resumed(backend, states)
        entries, expected = rest.completions[0].logprobs, whole.completions[0].logprobs
        assert [e.token_id for e in entries] == list(rest.token_ids), f"{entries} for {rest.token_ids}"
        if self.exact_batch_invariance:
            pairs = zip(entries, expected[len(states[0].output_token_ids) :], strict=True)
            wrong = [(a, b) for a, b in pairs if abs(a.logprob - b.logprob) > _CLOSE]
            assert not wrong, f"log probabilities after the cut and without it differ: {wrong}"

    @when_claimed("resume", "parallel_sampling", "seed")
    async def test_resume_continues_every_completion(self, backend: Any) -> None:
        """Each given completion of ``n`` continues, and others do not appear.

        How to fix: take the index of the completion from ``DecodeState.index``. It can be any number below ``n``, and
        determines the completion's random draws.
        """
        params = greedy(self.max_output, temperature=1.0, seed=5, n=3)
        whole = await self.resumes_exactly(backend, params)
        states = states_after(await self.start_state(backend, params), whole, len(whole.deltas) // 2)[1:]
        self.continues(whole, states, await self.resumed(backend, states), "resumed without completion 0")

    @when_claimed("resume")
    async def test_resume_delivers_text_that_was_held_back(self, backend: Any) -> None:
        """The stream starts with undelivered text of the given tokens.

        How to fix: start the text at ``delivered_chars``, which can be any position in the text of the given tokens.
        """
        whole = await self.greedy_output(backend)
        start = await self.start_state(backend, greedy(self.max_output))
        (state,) = states_after(start, whole, len(whole.deltas) // 2)
        for delivered in {0, state.delivered_chars // 2}:
            state = attrs.evolve(state, delivered_chars=delivered)
            rest = await self.resumed(backend, [state])
            self.continues(whole, [state], rest, f"{delivered} characters delivered")

    # --- cancellation

    @when_claimed("resume")
    async def test_giving_up_a_resumed_request_frees_it(self, backend: Any) -> None:
        """A resumed request can be cancelled and aborted like any other; its KV is freed, and ``abort`` ends the
        stream.

        How to fix: add resumed requests to the same table of open requests as those of ``generate``.
        """
        before = await self.idle(backend)
        params = self.endless(backend)
        start = await self.start_state(backend, params)
        state = attrs.evolve(start, output_token_ids=start.prompt_token_ids[-1:])
        (await backend.resume([state], request_id=self.new_id())).cancel()
        await self.idle(backend, free_blocks=before.kv_blocks_free)
        stream = await backend.resume([state], request_id=(request_id := self.new_id()))
        with pytest.raises(InvalidRequest, match=request_id):
            await backend.resume([state], request_id=request_id)
        await backend.abort(request_id)
        with pytest.raises(RequestCancelled):
            await read(stream)
        await self.idle(backend, free_blocks=before.kv_blocks_free)

    @when_claimed("resume", "deadline")
    async def test_a_resumed_request_has_a_deadline(self, backend: Any) -> None:
        """A deadline in the options of ``resume`` ends the request with ``RequestCancelled`` (by ``deadline``).

        How to fix: treat ``options`` as in ``generate``.
        """
        state = await self.start_state(backend, self.endless(backend))
        options = RequestOptions(deadline=0.001)
        with pytest.raises(RequestCancelled) as caught:
            await read(await backend.resume([state], request_id=self.new_id(), options=options))
        assert caught.value.by == "deadline", f"cancelled by {caught.value.by}"

    # --- refusals

    @when_claimed("resume")
    async def test_resume_refuses_what_is_not_one_open_request(self, backend: Any) -> None:
        """States that are not the unfinished completions of one request are ``InvalidRequest``.

        How to fix: before queuing, check that there is at least one state, that prompt, params and seed are equal, that
        each index is unique and below ``n``, and that no state has finished or has ``max_tokens`` tokens.
        """
        n = 2 if backend.get_capability().supports("parallel_sampling") else 1
        first = await self.start_state(backend, greedy(4, n=n))
        ids = first.prompt_token_ids
        second = attrs.evolve(first, index=1)
        wrong: list[list[DecodeState]] = [
            [],
            [first, first],
            [attrs.evolve(first, index=n)],
            [attrs.evolve(first, finish_reason="stop")],
            [attrs.evolve(first, output_token_ids=(ids * 4)[:4])],
        ]
        if n > 1:
            wrong += [
                [first, attrs.evolve(second, prompt_token_ids=ids[:-1] or ids * 2)],
                [first, attrs.evolve(second, params=greedy(5, n=n))],
                [first, attrs.evolve(second, seed=first.seed + 1)],
            ]
        for states in wrong:
            await self.resume_refused(backend, InvalidRequest, states)

    @when_claimed("resume")
    async def test_resume_refuses_output_that_cannot_be(self, backend: Any) -> None:
        """Tokens outside the vocabulary, and ``delivered_chars`` beyond the tokens' text, are ``InvalidRequest``.

        How to fix: check given tokens like those of a prompt, and ``delivered_chars`` against the length of their text.
        """
        whole = await self.greedy_output(backend)
        start = await self.start_state(backend, greedy(self.max_output))
        (state,) = states_after(start, whole, len(whole.deltas) // 2)
        tokens = (*state.output_token_ids[1:], _NO_TOKEN)
        unknown = attrs.evolve(state, output_token_ids=tokens, delivered_chars=0)
        await self.resume_refused(backend, InvalidRequest, [unknown])
        beyond = len(whole.text) + 100
        await self.resume_refused(backend, InvalidRequest, [attrs.evolve(state, delivered_chars=beyond)])

    @when_claimed("resume", "guided_choice")
    async def test_resume_refuses_output_against_its_constraint(self, backend: Any) -> None:
        """Given tokens that violate the constraint are ``InvalidRequest``.

        How to fix: advance the constraint's matcher over the given tokens before queuing the request; raise an error
        with the position of the first token that it rejects.
        """
        whole = await self.greedy_output(backend)
        choice = "x" if whole.text.strip().startswith("z") else "z"
        params = greedy(self.max_output, guided=GuidedDecoding(choice=(choice * 8,)))
        start = await self.start_state(backend, params)
        (state,) = states_after(start, whole, len(whole.deltas) // 2)
        try:
            await self.resume_refused(backend, InvalidRequest, [attrs.evolve(state, delivered_chars=0)])
        except UnsupportedFeature as error:
            pytest.skip(f"the backend does not resume these parameters: {error}")

    @when_claimed("resume")
    async def test_resume_refuses_another_model(self, backend: Any) -> None:
        """A state of another model is a ``CapabilityMismatch``.

        How to fix: compare ``model_id``, and ``weights_id`` if both sides know it.
        """
        state = await self.start_state(backend, greedy(4))
        await self.resume_refused(
            backend, CapabilityMismatch, [attrs.evolve(state, model_id="another-model")]
        )

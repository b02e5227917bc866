"""Engines with one mistake each in ``resume``, and the contract tests that must find it."""

from __future__ import annotations

from typing import Any

import attrs
from kit_reference.llm import ReferenceLLM
from kit_reference.request import Request
from kit_reference.sampling import Sequence_
from sage_infer.contracts import BufferedTokenStream
from sage_infer.schemas import DecodeState, Prompt, TokenDelta, Usage

from kit_broken.mistakes import found_by


@found_by(
    "test_resume_penalizes_given_tokens", "test_resume_finds_a_stop_string_across_the_cut",
    "test_resume_counts_min_tokens_from_the_start", "test_resume_continues_a_constraint",
    "test_resume_continues_greedy_output",
)  # fmt: skip
class ReplaysAsPrompt(ReferenceLLM):
    async def resume(self, states: Any, *, request_id: str, options: Any = None) -> BufferedTokenStream:
        self.check_states(states)
        (state,) = states
        prompt = Prompt(token_ids=state.prompt_token_ids + state.output_token_ids)
        limit = state.params.max_tokens
        params = attrs.evolve(state.params, max_tokens=limit and limit - len(state.output_token_ids))
        (stream,) = await self.generate(prompt, params, request_id=request_id, options=options)
        return stream


class WrongReplay(ReferenceLLM):
    """Replays a changed state."""

    def changed(self, state: DecodeState) -> DecodeState:
        raise NotImplementedError

    def replay(self, request: Request, sequence: Sequence_, state: DecodeState) -> None:
        super().replay(request, sequence, self.changed(state))


@found_by("test_resume_continues_greedy_output")
class RepeatsDeliveredText(WrongReplay):
    def changed(self, state: DecodeState) -> DecodeState:
        return attrs.evolve(state, delivered_chars=0)


@found_by(
    "test_resume_delivers_text_that_was_held_back", "test_resume_refuses_output_that_cannot_be"
)  # fmt: skip
class IgnoresDeliveredChars(ReferenceLLM):
    def replay(self, request: Request, sequence: Sequence_, state: DecodeState) -> None:
        super().replay(request, sequence, attrs.evolve(state, delivered_chars=0))
        sequence.given = len(sequence.text) - sequence.held_back()


@found_by("test_resume_continues_greedy_output")
class RepeatsTheGivenTokens(ReferenceLLM):
    def replay(self, request: Request, sequence: Sequence_, state: DecodeState) -> None:
        super().replay(request, sequence, state)
        request.stream.push(TokenDelta("", state.output_token_ids, state.index))


@found_by("test_resume_continues_greedy_output")
class CountsOnlyNewTokens(ReferenceLLM):
    async def resume(self, states: Any, **options: Any) -> BufferedTokenStream:
        stream = await super().resume(states, **options)
        given, finish = sum(len(s.output_token_ids) for s in states), stream.finish

        def counted(reason: Any, usage: Usage, timing: Any) -> None:
            finish(reason, attrs.evolve(usage, completion_tokens=usage.completion_tokens - given), timing)

        stream.finish = counted  # type: ignore[method-assign]
        return stream


@found_by("test_resume_continues_seeded_sampling")
class DrawsItsOwnSeed(ReferenceLLM):
    def replay(self, request: Request, sequence: Sequence_, state: DecodeState) -> None:
        super().replay(request, sequence, state)
        sequence.seed += 1


@found_by("test_resume_continues_every_completion")
class NumbersCompletionsAnew(ReferenceLLM):
    async def resume(self, states: Any, **options: Any) -> BufferedTokenStream:
        renumbered = [attrs.evolve(state, index=i) for i, state in enumerate(states)]
        return await super().resume(renumbered, **options)


@found_by("test_resume_reports_logprobs_of_new_tokens")
class ForgetsLogprobs(WrongReplay):
    def replay(self, request: Request, sequence: Sequence_, state: DecodeState) -> None:
        super().replay(request, sequence, state)
        sequence.params = attrs.evolve(sequence.params, logprobs=None)

    def changed(self, state: DecodeState) -> DecodeState:
        return state


@found_by(
    "test_resume_refuses_what_is_not_one_open_request", "test_resume_refuses_output_that_cannot_be",
    "test_resume_refuses_another_model",
)  # fmt: skip
class TrustsStates(ReferenceLLM):
    def check_states(self, states: Any) -> None:
        """Looks at nothing."""


@found_by("test_resume_refuses_output_against_its_constraint")
class IgnoresTheConstraint(WrongReplay):
    def changed(self, state: DecodeState) -> DecodeState:
        return state if state.params.guided is None else attrs.evolve(state, output_token_ids=())


@found_by("test_giving_up_a_resumed_request_frees_it")
class ForgetsResumedRequests(ReferenceLLM):
    async def abort(self, request_id: str) -> None:
        """Does not know resumed requests."""


@found_by("test_a_resumed_request_has_a_deadline")
class IgnoresOptions(ReferenceLLM):
    async def resume(self, states: Any, *, request_id: str, options: Any = None) -> BufferedTokenStream:
        return await super().resume(states, request_id=request_id)

"""Engines that end outputs wrongly, or report them wrongly."""

from __future__ import annotations

import functools
from typing import Any

import attrs
from kit_reference.llm import ReferenceLLM
from kit_reference.request import Request
from kit_reference.sampling import Sequence_
from sage_infer.schemas import SamplingParams, TokenDelta, Usage

from kit_mutants.engines import Rewritten, always, backend, sequences


class Taking(ReferenceLLM):
    """Takes tokens in a way of its own."""

    def taken(self, sequence: Sequence_, token: int, full: bool) -> str:
        """The text that a token adds to what can be shown."""
        return Sequence_.take(sequence, token, full)

    def accept(self, *args: Any) -> list[Request]:
        requests = super().accept(*args)
        for sequence in sequences(requests):
            sequence.take = functools.partial(self.taken, sequence)  # type: ignore[method-assign]
        return requests


class Pushing(ReferenceLLM):
    """Delivers deltas in a way of its own."""

    def pushed(self, request: Request, sequence: Sequence_, delta: TokenDelta) -> list[TokenDelta]:
        """What is delivered instead of a delta."""
        return [delta]

    def advance(self, request: Request, sequence: Sequence_) -> None:
        deltas: list[TokenDelta] = []
        real, request.stream.push = request.stream.push, deltas.append  # type: ignore[method-assign]
        super().advance(request, sequence)
        request.stream.push = real  # type: ignore[method-assign]
        for delta in deltas:
            for changed in self.pushed(request, sequence, delta):
                real(changed)


class Finishing(ReferenceLLM):
    """Ends streams in a way of its own."""

    def finished(self, reason: Any, usage: Usage, timing: Any) -> tuple[Any, Usage, Any]:
        """What the stream says instead."""
        return reason, usage, timing

    def settle(self, request: Request) -> None:
        finish = request.stream.finish
        request.stream.finish = lambda *said: finish(*self.finished(*said))  # type: ignore[method-assign]
        super().settle(request)
        request.stream.finish = finish  # type: ignore[method-assign]


@backend("stop strings are dropped", "test_stop_string_ends_the_output", "stop string .* is in the output")
class DropsStopStrings(Rewritten):
    rewritten = always(stop=())


@backend(
    "the stop string itself is delivered",
    "test_stop_string_ends_the_output",
    "stop string .* is in the output",
)
class LeaksTheStopString(Taking):
    def taken(self, sequence: Sequence_, token: int, full: bool) -> str:
        text = super().taken(sequence, token, full)
        stops = sequence.params.stop
        return text + stops[0] if stops and sequence.finish_reason == "stop" else text


@backend(
    "the text that may begin a stop string is lost at the end",
    "test_text_held_for_a_stop_is_given_at_the_end",
    "became",
)
class LosesHeldText(Taking):
    def taken(self, sequence: Sequence_, token: int, full: bool) -> str:
        text = super().taken(sequence, token, full)
        cut = sequence.held_back() if sequence.finish_reason == "length" else 0
        return text[:-cut] if cut else text


@backend("stop_token_ids are dropped", "test_stop_token_ends_the_output", "not 'stop'")
class DropsStopTokens(Rewritten):
    rewritten = always(stop_token_ids=())


@backend(
    "the delta of a stop token lacks its id",
    "test_stop_token_ends_the_output",
    "the last delta carries the stop token's id",
)
class HidesTheStopToken(Pushing):
    def pushed(self, request: Request, sequence: Sequence_, delta: TokenDelta) -> list[TokenDelta]:
        if not set(delta.token_ids) & set(sequence.params.stop_token_ids):
            return [delta]
        del sequence.output[-1]
        return [attrs.evolve(delta, token_ids=(), logprobs=None)]


@backend(
    "stops of one request hold for its neighbours",
    "test_parameters_stay_with_their_request",
    "(neighbour's stop|beside other parameters)",
)
class SharesStops(ReferenceLLM):
    def advance(self, request: Request, sequence: Sequence_) -> None:
        stops = {stop for s in sequences(self.running) for stop in s.params.stop}
        sequence.params = attrs.evolve(sequence.params, stop=tuple(stops))
        super().advance(request, sequence)


@backend("min_tokens does not hold for stop tokens", "test_min_tokens_delays_stops", "min_tokens=4 returned")
class MinTokensNotForStopTokens(Rewritten):
    def rewritten(self, params: SamplingParams) -> SamplingParams:
        return attrs.evolve(params, min_tokens=0) if params.stop_token_ids else params


@backend(
    "min_tokens does not hold for stop strings",
    "test_min_tokens_delays_stop_strings",
    "min_tokens=6 and stop=",
)
class MinTokensNotForStrings(Rewritten):
    def rewritten(self, params: SamplingParams) -> SamplingParams:
        return attrs.evolve(params, min_tokens=0) if params.stop else params


@backend(
    "min_tokens does not hold for the end-of-sequence token",
    "test_min_tokens_outlasts_the_end",
    "min_tokens=.* returned",
)
class MinTokensNotForTheEnd(Rewritten):
    def rewritten(self, params: SamplingParams) -> SamplingParams:
        return params if params.stop or params.stop_token_ids else attrs.evolve(params, min_tokens=0)


@backend("min_tokens is taken for max_tokens", "test_min_tokens_is_no_longest_output", "returned 2 tokens")
class TakesMinForMax(Rewritten):
    def rewritten(self, params: SamplingParams) -> SamplingParams:
        return attrs.evolve(params, max_tokens=params.min_tokens or params.max_tokens)


@backend("ignore_eos is dropped", "test_ignore_eos_outlasts_the_end", "with ignore_eos the output has")
class DropsIgnoreEos(Rewritten):
    rewritten = always(ignore_eos=False)


@backend(
    "the end of one completion ends all n", "test_completions_end_on_their_own", "should have ended after"
)
class OneEndForAll(ReferenceLLM):
    def settle(self, request: Request) -> None:
        if any(s.finish_reason for s in request.sequences):
            for sequence in (s for s in request.sequences if not s.finish_reason):
                sequence.finish_reason = "stop"
                request.stream.push(TokenDelta("", (), sequence.index, None, "stop"))
        super().settle(request)


@backend("outputs of full length end with stop", "test_max_tokens_is_kept", "ended with 'stop', not 'length'")
class CallsLengthStop(Taking):
    def taken(self, sequence: Sequence_, token: int, full: bool) -> str:
        text = super().taken(sequence, token, full)
        sequence.finish_reason = sequence.finish_reason and "stop"
        return text


@backend("a token after the end", "test_every_completion_finishes_once", "after its finish_reason")
class ContinuesAfterTheEnd(ReferenceLLM):
    def settle(self, request: Request) -> None:
        if all(s.finish_reason for s in request.sequences):
            request.stream.push(TokenDelta("more", (1,)))
        super().settle(request)


@backend("neighbouring deltas are swapped", "test_a_shorter_output_is_a_prefix", "out of order")
class SwapsDeltas(Pushing):
    def pushed(self, request: Request, sequence: Sequence_, delta: TokenDelta) -> list[TokenDelta]:
        held: dict[int, TokenDelta] = self.__dict__.setdefault("held_deltas", {})
        if delta.finish_reason or id(sequence) in held:
            before = held.pop(id(sequence), None)
            both = [before, delta] if delta.finish_reason else [delta, before]
            return [one for one in both if one is not None]
        held[id(sequence)] = delta
        return []


@backend("text and token ids do not belong together", "test_text_is_that_of_the_tokens", "their token ids")
class OtherIds(Pushing):
    def pushed(self, request: Request, sequence: Sequence_, delta: TokenDelta) -> list[TokenDelta]:
        return [attrs.evolve(delta, token_ids=tuple(90 - token % 90 for token in delta.token_ids))]


@backend("usage counts one token too many", "test_usage_counts_the_tokens", "deltas carried")
class CountsOneTooMany(Finishing):
    def finished(self, reason: Any, usage: Usage, timing: Any) -> tuple[Any, Usage, Any]:
        return reason, attrs.evolve(usage, completion_tokens=usage.completion_tokens + 1), timing


@backend(
    "usage counts the prompt once for each of n completions",
    "test_n_completions_all_finish",
    "usage with n=3 counts",
)
class CountsThePromptAgain(ReferenceLLM):
    def settle(self, request: Request) -> None:
        finish, counted = request.stream.finish, len(request.prompt) * len(request.sequences)
        request.stream.finish = lambda reason, usage, timing: finish(  # type: ignore[method-assign]
            reason, attrs.evolve(usage, prompt_tokens=counted), timing
        )
        super().settle(request)


@backend("times are in milliseconds", "test_timing_is_ordered", "and the stream says")
class ReportsMilliseconds(Finishing):
    def finished(self, reason: Any, usage: Usage, timing: Any) -> tuple[Any, Usage, Any]:
        gap = timing.inter_token_s
        return reason, usage, attrs.evolve(
            timing, queue_s=1000 * timing.queue_s, ttft_s=1000 * timing.ttft_s + 1,
            total_s=1000 * timing.total_s + 1, inter_token_s=gap and 1000 * gap,
        )  # fmt: skip

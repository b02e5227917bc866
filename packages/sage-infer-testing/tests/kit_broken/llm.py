"""Engines with one mistake each, and the contract tests that must find it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import kit_reference.sampling as sampling
from kit_reference.llm import ReferenceLLM
from kit_reference.request import SCHEMA, TOKEN_BYTES, Request
from kit_reference.sampling import Sequence_
from sage_infer.contracts import BufferedTokenStream, ChatAnswer, Health
from sage_infer.errors import CapabilityMismatch, InvalidRequest, SageInferError
from sage_infer.schemas import Prompt, SamplingParams, Timing, TokenDelta, TokenLogprob, Usage

from kit_broken.mistakes import found_by


class ChangedParams(ReferenceLLM):
    """Runs every request with other parameters than were asked for."""

    changes: Mapping[str, Any] = {}

    def accept(self, prompts: Any, params: SamplingParams, *rest: Any) -> list[Request]:
        requests = super().accept(prompts, params, *rest)
        for request in requests:
            for sequence in request.sequences:
                sequence.params = attrs.evolve(sequence.params, **self.changes)
        return requests


def ignoring(name: str, value: Any, *tests: str) -> None:
    """An engine that runs with ``name=value`` whatever was asked for."""
    engine = type(
        f"Always_{name}_{str(value).replace('.', '_').strip('()')}",
        (ChangedParams,),
        {"changes": {name: value}},
    )
    globals()[engine.__name__] = found_by(*tests)(engine)


ignoring("stop", (), "test_stop_string_ends_the_output", "test_the_earliest_of_several_stops_counts")
ignoring("stop_token_ids", (), "test_stop_token_ends_the_output")
ignoring("min_tokens", 0, "test_min_tokens_delays_stops")
ignoring("top_k", 0, "test_filters_that_leave_one_token_are_greedy")
ignoring("top_p", 1.0, "test_filters_that_leave_one_token_are_greedy")
ignoring("min_p", 0.0, "test_min_p_of_one_is_greedy")
ignoring("repetition_penalty", 1.0, "test_penalties_reduce_repetition")
ignoring("guided", None, "test_guided_choice", "test_guided_regex", "test_guided_json", "test_guided_grammar")
ignoring("logprobs", None, "test_logprobs_of_every_token")
ignoring("temperature", 0.0, "test_seeds_differ", "test_sampling_without_a_seed_varies")
ignoring("temperature", 1.0, "test_greedy_is_deterministic")


@found_by("test_a_seed_reproduces", "test_prefill_and_decode_with_a_seed_equal_generate")
class IgnoresTheSeed(ReferenceLLM):
    def seed_of(self, params: SamplingParams) -> int:
        return super().seed_of(attrs.evolve(params, seed=None))


@found_by("test_n_completions_with_a_seed_differ_and_reproduce")
class OneGeneratorForAllCompletions(ReferenceLLM):
    def accept(self, *args: Any) -> list[Request]:
        requests = super().accept(*args)
        for sequence in (s for r in requests for s in r.sequences):
            sequence.draw_index = 0
        return requests


@found_by("test_seeds_do_not_depend_on_neighbours")
class GeneratorSharedByTheBatch(ReferenceLLM):
    def choose(self, sequence: Sequence_) -> tuple[int, Any]:
        sequence.seed += len(self.running) - 1
        return super().choose(sequence)


@found_by("test_max_tokens_is_kept", "test_usage_counts_the_tokens")
class CountsWrongly(ReferenceLLM):
    def advance(self, request: Request, sequence: Sequence_) -> None:
        super().advance(request, sequence)
        request.stream.push(
            TokenDelta("", (1,), sequence.index, None, None)
        ) if not sequence.finish_reason else None


@found_by("test_every_completion_finishes_once")
class EmitsAfterTheEnd(ReferenceLLM):
    def settle(self, request: Request) -> None:
        if all(s.finish_reason for s in request.sequences):
            request.stream.push(TokenDelta("more", (1,)))
        super().settle(request)


@found_by("test_every_completion_finishes_once")
class ForgetsTheFinishReason(ReferenceLLM):
    def advance(self, request: Request, sequence: Sequence_) -> None:
        push = request.stream.push
        request.stream.push = lambda delta: push(attrs.evolve(delta, finish_reason=None))  # type: ignore[method-assign]
        super().advance(request, sequence)


class EarlyStream(BufferedTokenStream):
    @property
    def usage(self) -> Usage:
        return Usage(prompt_tokens=1)


class ReplayingStream(BufferedTokenStream):
    def __aiter__(self) -> Any:
        self._ready[:0] = self.__dict__.setdefault("old", [])
        return super().__aiter__()

    def push(self, delta: TokenDelta) -> None:
        super().push(delta)
        self.__dict__.setdefault("late", []).append(delta)

    def finish(self, *args: Any) -> None:
        super().finish(*args)
        self.old = self.late


class DeafStream(BufferedTokenStream):
    def cancel(self) -> None:
        """Does not hear."""


def streaming(stream: type, *tests: str) -> None:
    class WithStream(ReferenceLLM):
        def accept(self, *args: Any) -> list[Request]:
            requests = super().accept(*args)
            for request in requests:
                request.stream.__class__ = stream
            return requests

    WithStream.__name__ = f"With{stream.__name__}"
    globals()[WithStream.__name__] = found_by(*tests)(WithStream)


streaming(EarlyStream, "test_results_are_none_until_the_end")
streaming(ReplayingStream, "test_a_finished_stream_stays_finished")
streaming(
    DeafStream, "test_leaving_the_loop_frees_the_request", "test_cancel_frees_the_request",
    "test_leaving_async_with_frees_the_request", "test_cancelling_the_reading_task_frees_the_request",
    "test_cancel_ends_all_completions",
)  # fmt: skip


@found_by("test_cancel_frees_the_request", "test_leaving_the_loop_frees_the_request")
class LeaksOnCancel(ReferenceLLM):
    def drop(self, request_id: str) -> None:
        self.running = [r for r in self.running if r.request_id != request_id]
        self.waiting = [r for r in self.waiting if r.request_id != request_id]


@found_by(
    "test_abort_frees_the_request", "test_abort_reaches_every_part", "test_abort_after_prefill_frees_the_kv"
)
class IgnoresAborts(ReferenceLLM):
    async def abort(self, request_id: str) -> None:
        """Does nothing."""


@found_by("test_abort_reaches_every_part")
class AbortsWhatBeginsAlike(ReferenceLLM):
    def belongs(self, part: str, request_id: str) -> bool:
        return part.startswith(request_id)


@found_by("test_abort_of_an_unknown_request_does_nothing")
class KnowsEveryRequest(ReferenceLLM):
    async def abort(self, request_id: str) -> None:
        if not any(self.belongs(r.request_id, request_id) for r in [*self.running, *self.waiting]):
            raise InvalidRequest(f"no request {request_id!r}")
        await super().abort(request_id)


@found_by(
    "test_concurrent_requests_do_not_mix",
    "test_several_prompts_give_streams_in_order", "test_requests_of_different_lengths_join_and_leave",
)  # fmt: skip
class MixesRequests(ReferenceLLM):
    def choose(self, sequence: Sequence_) -> tuple[int, Any]:
        others = [s for r in self.running for s in r.sequences if s.pages and s is not sequence]
        return super().choose(others[0] if others and len(sequence.output) > 2 else sequence)


@found_by("test_others_go_on_when_one_is_cancelled")
class DisturbsNeighbours(ReferenceLLM):
    def drop(self, request_id: str) -> None:
        super().drop(request_id)
        for request in [*self.running, *self.waiting]:
            request.prompt = (*request.prompt[:-1], 1)
            for sequence in (s for s in request.sequences if s.computed):
                self.slot(sequence, sequence.computed - 1)[:] = bytes(TOKEN_BYTES)


@found_by("test_equal_prompts_at_once_agree", "test_more_requests_than_the_batch_holds")
class DependsOnOrder(ReferenceLLM):
    def choose(self, sequence: Sequence_) -> tuple[int, Any]:
        place = next((i for i, r in enumerate(self.running) if sequence in r.sequences), 0)
        token, logprob = super().choose(sequence)
        return (token + place) % 90, logprob


@found_by("test_deadline_ends_the_request")
class IgnoresDeadlines(ReferenceLLM):
    def expire(self) -> None:
        """Never."""


@found_by("test_close_ends_open_requests")
class LeavesReadersWaiting(ReferenceLLM):
    async def close(self) -> None:
        self.running, self.waiting = [], []
        await super().close()


@found_by("test_close_twice_is_safe")
class ClosesOnce(ReferenceLLM):
    async def close(self) -> None:
        if self.state == "dead":
            raise RuntimeError("closed already")
        await super().close()


@found_by("test_close_without_start_is_safe")
class MustBeStarted(ReferenceLLM):
    async def close(self) -> None:
        assert self.task is not None or self.state == "dead"
        await super().close()


@found_by("test_is_dead_after_close", "test_work_after_close_is_refused")
class NeverDies(ReferenceLLM):
    async def close(self) -> None:
        await super().close()
        self.state = "ok"


@found_by("test_is_dead_after_close", "test_is_healthy")
class SickWithoutReason(ReferenceLLM):
    async def health(self) -> Health:
        return Health(status="dead" if self.state == "dead" else "starting")


@found_by("test_has_the_shape_of_its_protocol")
class LacksAbort(ReferenceLLM):
    async def render_chat(self, messages: Any) -> Prompt:  # type: ignore[override]
        return await super().render_chat(messages)


@found_by("test_tool_calls_are_read_out_of_an_answer")
class NeverCallsATool(ReferenceLLM):
    async def parse_tool_calls(self, text: str, *, tools: Any = None) -> ChatAnswer:
        return ChatAnswer(content=text)


@found_by("test_kv_schema_is_the_capability_s")
class AnotherSchema(ReferenceLLM):
    def get_kv_schema(self) -> Any:
        return attrs.evolve(SCHEMA, page_size=16)


@found_by("test_capability_is_stable")
class CapabilityOfTheMoment(ReferenceLLM):
    def get_capability(self) -> Any:
        self.asked = getattr(self, "asked", 0) + 1
        return attrs.evolve(super().get_capability(), ttft_hint_ms=float(self.asked))


@found_by("test_stats_are_gauges")
class NegativeGauges(ReferenceLLM):
    def stats(self) -> Any:
        return attrs.evolve(super().stats(), kv_blocks_free=self.total + 1)


@found_by("test_counters_grow")
class CountsNothing(ReferenceLLM):
    def stats(self) -> Any:
        return attrs.evolve(super().stats(), finished=0, output_tokens=0)


@found_by("test_timing_is_ordered")
class TimeRunsBackwards(ReferenceLLM):
    timing = Timing(queue_s=3.0, ttft_s=2.0, total_s=1.0, inter_token_s=0.0)

    def settle(self, request: Request) -> None:
        finish = request.stream.finish
        request.stream.finish = lambda reason, usage, timing: finish(reason, usage, self.timing)  # type: ignore[method-assign]
        super().settle(request)


@found_by("test_tokens_arrive_as_they_are_made")
class AllAtOnce(ReferenceLLM):
    def advance(self, request: Request, sequence: Sequence_) -> None:
        held: list[TokenDelta] = self.__dict__.setdefault("deltas", [])
        real, request.stream.push = request.stream.push, held.append  # type: ignore[method-assign]
        super().advance(request, sequence)
        request.stream.push = real  # type: ignore[method-assign]
        if sequence.finish_reason:
            tokens = tuple(t for d in held for t in d.token_ids)
            real(TokenDelta("".join(d.text for d in held), tokens, 0, None, sequence.finish_reason))
            held.clear()


@found_by("test_ignore_eos_goes_on")
class StopsEarly(ReferenceLLM):
    def advance(self, request: Request, sequence: Sequence_) -> None:
        if len(sequence.output) == 5:
            sequence.params = attrs.evolve(sequence.params, max_tokens=6)
        super().advance(request, sequence)


@found_by("test_text_held_for_a_stop_is_given_at_the_end")
class NeverFlushes(ReferenceLLM):
    def accept(self, *args: Any) -> list[Request]:
        requests = super().accept(*args)
        for sequence in (s for r in requests for s in r.sequences):
            sequence.flush = lambda s=sequence: s.give(len(s.text) - s.held_back())  # type: ignore[method-assign]
        return requests


@found_by("test_logprobs_of_every_token")
class UnsortedLogprobs(ReferenceLLM):
    def choose(self, sequence: Sequence_) -> tuple[int, Any]:
        token, entry = super().choose(sequence)
        if entry is not None:
            entry.alternatives = entry.alternatives[::-1]
        return token, entry


@found_by("test_greedy_takes_the_most_likely")
class WrongLogprobs(ReferenceLLM):
    def choose(self, sequence: Sequence_) -> tuple[int, Any]:
        token, entry = super().choose(sequence)
        return token, entry and attrs.evolve(entry, logprob=entry.logprob - 1)


@found_by("test_no_logprobs_unless_asked_for")
class UnaskedLogprobs(ReferenceLLM):
    def choose(self, sequence: Sequence_) -> tuple[int, Any]:
        token, entry = super().choose(sequence)
        return token, entry or TokenLogprob(token, "", -1.0)


@found_by("test_n_completions_all_finish")
class OneCompletion(ReferenceLLM):
    def accept(self, *args: Any) -> list[Request]:
        requests = super().accept(*args)
        for request in requests:
            del request.sequences[1:]
        return requests


@found_by("test_prompt_over_the_limit_is_refused")
class VagueLimit(ReferenceLLM):
    def check_tokens(self, tokens: tuple[int, ...]) -> None:
        try:
            super().check_tokens(tokens)
        except InvalidRequest:
            raise InvalidRequest("prompt too long") from None


@found_by("test_prompt_that_leaves_no_room_is_refused", "test_prompt_over_the_limit_is_refused")
class CutsThePrompt(ReferenceLLM):
    def check_tokens(self, tokens: tuple[int, ...]) -> None:
        """Lets everything in."""

    def accept(self, prompts: Any, *args: Any) -> list[Request]:
        if isinstance(prompts, tuple):
            prompts = prompts[:32]
        return super().accept(prompts, *args)


@found_by("test_token_outside_the_vocabulary_is_refused")
class AnyToken(ReferenceLLM):
    def accept(self, prompts: Any, *args: Any) -> list[Request]:
        if isinstance(prompts, list) and isinstance(prompts[0], int):
            prompts = [token % sampling.VOCABULARY for token in prompts]
        return super().accept(prompts, *args)


@found_by("test_one_wrong_prompt_starts_none")
class StartsTheGoodOnes(ReferenceLLM):
    def accept(self, prompts: Any, *args: Any) -> list[Request]:
        if isinstance(prompts, list) and len(prompts) == 2:
            self.waiting += super().accept(prompts[0], attrs.evolve(args[0], max_tokens=None), *args[1:])
            self.work.set()
        return super().accept(prompts, *args)


@found_by("test_empty_prompt_is_refused")
class NothingIsFine(ReferenceLLM):
    async def generate(self, prompts: Any, *args: Any, **options: Any) -> Any:
        return await super().generate(prompts, *args, **options) if prompts else []


@found_by("test_request_id_in_use_is_refused")
class SharesIds(ReferenceLLM):
    def check_id(self, request_id: str) -> None:
        """Does not look."""


@found_by("test_full_queue_is_overloaded")
class NeverFull(ReferenceLLM):
    def check_queue(self, count: int) -> None:
        """There is always room."""


@found_by("test_one_prompt_keeps_its_request_id")
class OwnIds(ReferenceLLM):
    def accept(self, prompts: Any, params: SamplingParams, request_id: Any, *rest: Any) -> list[Request]:
        return super().accept(prompts, params, f"my-{request_id}", *rest)


@found_by("test_a_finished_request_id_can_be_used_again")
class RemembersIds(ReferenceLLM):
    def check_id(self, request_id: str) -> None:
        ids: set[str] = self.__dict__.setdefault("ids", set())
        if request_id in ids:
            raise InvalidRequest(f"{request_id} was used")
        ids.add(request_id)


@found_by("test_unknown_adapter_is_refused")
class AnyAdapter(ReferenceLLM):
    def check(self, params: SamplingParams, *rest: Any) -> None:
        super().check(attrs.evolve(params, adapter=None), *rest)


@found_by(
    "test_generation_prompt_can_be_left_out", "test_malformed_chat_is_refused", "test_chat_becomes_a_prompt"
)
class CarelessChat(ReferenceLLM):
    async def render_chat(self, messages: Any, **options: Any) -> Prompt:
        return Prompt(text="assistant: ")


@found_by("test_token_ids_are_used_as_they_are")
class AddsToTokenIds(ReferenceLLM):
    def accept(self, prompts: Any, *args: Any) -> list[Request]:
        if isinstance(prompts, list | tuple) and isinstance(prompts[0], int):
            prompts = [5, *prompts]
        return super().accept(prompts, *args)


@found_by("test_text_prompt_may_be_a_string_or_a_prompt")
class WrappedPromptsDiffer(ReferenceLLM):
    def accept(self, prompts: Any, *args: Any) -> list[Request]:
        if isinstance(prompts, Prompt) and prompts.text:
            prompts = prompts.text + " "
        return super().accept(prompts, *args)


@found_by("test_a_cached_prefix_changes_nothing")
class StaleCache(ReferenceLLM):
    def compute_prompt(self, request: Request) -> None:
        super().compute_prompt(request)
        if request.cached:
            self.slot(request.sequences[0], len(request.prompt) - 1)[:] = bytes(TOKEN_BYTES)


# --- how a run ends


@found_by("test_is_healthy")
class CannotStart(ReferenceLLM):
    async def start(self) -> None:
        raise SageInferError("the model is not here")


@found_by("test_greedy_is_deterministic")
class Hangs(ReferenceLLM):
    def admit(self) -> None:
        """Nobody gets in."""


@found_by("test_greedy_is_deterministic")
class BlocksTheLoop(ReferenceLLM):
    def admit(self) -> None:
        time.sleep(2)  # not to wait for something: to do what must not be done


@found_by("test_timing_is_ordered")
class NoGap(TimeRunsBackwards):
    timing = Timing(queue_s=0.0, ttft_s=0.0, total_s=0.0)


@found_by("test_shown_tokens_are_those_computed")
class ShowsNoStartToken(ReferenceLLM):
    async def tokenize(self, prompt: Any) -> list[int]:
        return (await super().tokenize(prompt))[1:]


@found_by("test_tokens_become_their_text")
class LosesBlanks(ReferenceLLM):
    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return (await super().detokenize(token_ids)).replace(" ", "")


@found_by("test_unknown_token_ids_have_no_text")
class InventsText(ReferenceLLM):
    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return await super().detokenize([abs(token) % 90 for token in token_ids])


@found_by("test_names_what_a_profile_asks_too_much")
class RefusesProfilesVaguely(ReferenceLLM):
    def load_quant_profile(self, profile: Any) -> None:
        raise CapabilityMismatch("this profile is not supported")


@found_by("test_a_profile_is_in_force_after_start")
class ForgetsItsProfile(ReferenceLLM):
    def load_quant_profile(self, profile: Any) -> None:
        """Takes it, and says nothing of it."""


@found_by(
    "test_refuses_media", "test_refuses_chats", "test_refuses_prefill", "test_refuses_quant_profiles",
    "test_parameters_that_are_not_claimed_are_refused_by_name", "test_an_unknown_parameter_is_refused_by_name",
    "test_options_that_are_not_claimed_are_refused_by_name", "test_an_unknown_option_is_refused_by_name",
)  # fmt: skip
class AcceptsAnything(ReferenceLLM):
    """Claims little and refuses nothing."""

    def __init__(self) -> None:
        super().__init__(features=("streaming",))

    def needs(self, feature: str, asked: bool) -> None:
        """Takes it."""

    def check(self, *args: Any) -> None:
        """Takes it."""

    def load_quant_profile(self, profile: Any) -> None:
        """Takes it."""

"""Engines with one mistake each in sampling, stopping or log probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from kit_reference.llm import ReferenceLLM
from kit_reference.request import Request
from kit_reference.sampling import Sequence_
from sage_infer.schemas import SamplingParams, TokenLogprob

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


@found_by("test_unknown_adapter_is_refused")
class AnyAdapter(ReferenceLLM):
    def check(self, params: SamplingParams, *rest: Any) -> None:
        super().check(attrs.evolve(params, adapter=None), *rest)

"""Engines that drop or confuse one parameter of sampling."""

from __future__ import annotations

from typing import Any

import attrs
from kit_reference.llm import ReferenceLLM
from kit_reference.request import Request
from kit_reference.sampling import Sequence_, logits, tokenize
from sage_infer.contracts import as_prompts
from sage_infer.schemas import SamplingParams

from kit_mutants.engines import Rewritten, always, backend, sequences


@backend(
    "repetition_penalty is dropped", "test_each_penalty_acts_alone", "repetition_penalty=10.0 changes nothing"
)
class DropsRepetitionPenalty(Rewritten):
    rewritten = always(repetition_penalty=1.0)


@backend(
    "presence_penalty is dropped", "test_each_penalty_acts_alone", "presence_penalty=2.0 changes nothing"
)
class DropsPresencePenalty(Rewritten):
    rewritten = always(presence_penalty=0.0)


@backend(
    "frequency_penalty is dropped", "test_each_penalty_acts_alone", "frequency_penalty=2.0 changes nothing"
)
class DropsFrequencyPenalty(Rewritten):
    rewritten = always(frequency_penalty=0.0)


@backend(
    "presence and frequency penalties also count the prompt's tokens",
    "test_a_first_token_is_not_penalized_for_the_prompt", "penalty.*changes the first token",
)  # fmt: skip
class PenalizesThePrompt(ReferenceLLM):
    def choose(self, sequence: Sequence_) -> tuple[int, Any]:
        params = sequence.params
        if sequence.output or not (params.presence_penalty or params.frequency_penalty):
            return super().choose(sequence)
        values = logits(bytes(self.slot(sequence, sequence.computed - 1)), sequence)
        worst = min(range(len(values)), key=values.__getitem__)  # as if the best had all been in the prompt
        return worst, None


@backend("seed is dropped", "test_a_seed_reproduces", "seed 11 returned")
class DropsTheSeed(ReferenceLLM):
    def seed_of(self, params: SamplingParams) -> int:
        return super().seed_of(attrs.evolve(params, seed=None))


@backend("seed 0 is taken for no seed", "test_a_seed_reproduces", "seed 0 returned")
class TakesZeroForNoSeed(ReferenceLLM):
    def seed_of(self, params: SamplingParams) -> int:
        return params.seed or super().seed_of(attrs.evolve(params, seed=None))


@backend(
    "one random stream for all n completions",
    "test_n_completions_with_a_seed_differ_and_reproduce",
    "all completions",
)
class OneStreamForAll(ReferenceLLM):
    def accept(self, *args: Any) -> list[Request]:
        requests = super().accept(*args)
        for sequence in sequences(requests):
            sequence.draw_index = 0
        return requests


@backend("temperature is 1 whenever it is not 0", "test_temperature_decides", "at temperature 0.01")
class ClampsTheTemperature(Rewritten):
    def rewritten(self, params: SamplingParams) -> SamplingParams:
        return attrs.evolve(params, temperature=float(bool(params.temperature)))


@backend(
    "sampling is always greedy", "test_sampling_without_a_seed_varies", "runs without a seed all returned"
)
class AlwaysGreedy(Rewritten):
    rewritten = always(temperature=0.0)


@backend("top_k is dropped", "test_filters_that_leave_one_token_are_greedy", "top_k=1")
class DropsTopK(Rewritten):
    rewritten = always(top_k=0)


@backend("top_p works for tiny values only", "test_filters_keep_only_likely_tokens", "top_p=0.3 let through")
class DropsTopP(Rewritten):
    def rewritten(self, params: SamplingParams) -> SamplingParams:
        return params if params.top_p < 0.01 else attrs.evolve(params, top_p=1.0)


@backend("min_p works for 1 only", "test_filters_keep_only_likely_tokens", "min_p=0.5 let through")
class DropsMinP(Rewritten):
    def rewritten(self, params: SamplingParams) -> SamplingParams:
        return params if params.min_p == 1 else attrs.evolve(params, min_p=0.0)


@backend("n is dropped", "test_n_completions_all_finish", r"n=3 returned the indices \[0\]")
class DropsN(ReferenceLLM):
    def accept(self, *args: Any) -> list[Request]:
        requests = super().accept(*args)
        for request in requests:
            del request.sequences[1:]
        return requests


@backend("constraints are dropped", "test_guided_choice", "is none of")
class DropsConstraints(Rewritten):
    rewritten = always(guided=None)


@backend(
    "one request's constraint holds for the whole batch",
    "test_constraints_stay_with_their_request",
    "is none of",
)
class OneConstraintForTheBatch(ReferenceLLM):
    def choose(self, sequence: Sequence_) -> tuple[int, Any]:
        guided = next((s.params.guided for s in sequences(self.running) if s.params.guided), None)
        if sequence.params.guided is not None and not sequence.output:
            sequence.params = attrs.evolve(sequence.params, guided=guided)
        return super().choose(sequence)


@backend("log probabilities are left out", "test_logprobs_of_every_token", r"log probabilities of \[\] for")
class LeavesOutLogprobs(Rewritten):
    rewritten = always(logprobs=None)


@backend("one alternative too few beside each token", "test_logprobs_of_every_token", "logprobs=3 returned 2")
class OneAlternativeTooFew(ReferenceLLM):
    def choose(self, sequence: Sequence_) -> tuple[int, Any]:
        token, entry = super().choose(sequence)
        return token, entry and attrs.evolve(entry, alternatives=entry.alternatives[:-1])


@backend("logits are reported as log probabilities", "test_logprobs_are_a_distribution", "add up to")
class ReportsLogits(ReferenceLLM):
    def choose(self, sequence: Sequence_) -> tuple[int, Any]:
        token, entry = super().choose(sequence)
        if entry is not None:
            others = tuple((t, text, value + 1) for t, text, value in entry.alternatives)
            entry = attrs.evolve(entry, alternatives=others)
        return token, entry


@backend("add_special_tokens is dropped", "test_shown_tokens_are_those_computed", "add_special_tokens=False")
class AddsSpecialTokensAnyway(ReferenceLLM):
    def accept(self, prompts: Any, *rest: Any) -> list[Request]:
        several = [
            attrs.evolve(prompt, add_special_tokens=True) if prompt.text else prompt
            for prompt in as_prompts(prompts)
        ]
        assert all(map(tokenize, several))
        return super().accept(several, *rest)


@backend(
    "template variables are dropped",
    "test_template_variables_are_taken",
    "changes nothing",
    template_variables={"tone": "dry"},
)
class DropsTemplateVariables(ReferenceLLM):
    async def render_chat(self, messages: Any, *, template_variables: Any = None, **rest: Any) -> Any:
        return await super().render_chat(messages, **rest)


@backend("system messages are dropped", "test_chat_becomes_a_prompt", "system's message is not in")
class DropsSystemMessages(ReferenceLLM):
    async def render_chat(self, messages: Any, **rest: Any) -> Any:
        return await super().render_chat([m for m in messages if m.get("role") != "system"], **rest)

"""Sampling: seeds, filters, several completions, penalties, log probabilities, guided decoding."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from sage_infer.errors import SageInferError, SchemaError
from sage_infer.schemas import GuidedDecoding, SamplingParams

from sage_infer_testing.features import when_claimed
from sage_infer_testing.kits.generation.base import GenerationSuite
from sage_infer_testing.reading import generate_all, generate_one, greedy

__all__ = ["SamplingTests"]

_SEEDS = (1, 2, 3, 4, 5)
_CLOSE = 1e-4  # between two log probabilities that should be one


class SamplingTests(GenerationSuite, kit=True):
    """What each sampling parameter must do where it is claimed."""

    def random(self, **more: Any) -> SamplingParams:
        """Sampling at temperature 1 of exactly ``max_output`` tokens."""
        return SamplingParams(
            **{"temperature": 1.0, "max_tokens": self.max_output, "ignore_eos": True, **more}
        )

    def test_wrong_parameters_never_reach_the_backend(self) -> None:
        """A negative temperature and the like are refused by ``SamplingParams`` itself.

        How to fix: this is the core's own check; if it fails, the installed sage-infer-core is not the one that this
        kit was made for.
        """
        mistakes: tuple[dict[str, Any], ...] = (
            {"temperature": -1.0},
            {"top_p": 0.0},
            {"n": 0},
            {"max_tokens": 0},
        )
        for wrong in mistakes:
            with pytest.raises(SchemaError):
                SamplingParams(**wrong)

    @when_claimed("seed")
    async def test_a_seed_reproduces(self, backend: Any) -> None:
        """The same seed produces the same output twice at temperature 1.

        How to fix: give each request its own generator, seeded from ``SamplingParams.seed`` alone; a generator that the
        whole batch shares depends on the neighbours.
        """
        first = await generate_one(backend, self.prompts[1], self.random(seed=11))
        second = await generate_one(backend, self.prompts[1], self.random(seed=11))
        assert first.token_ids == second.token_ids, f"seed 11 gave {first.text!r}, then {second.text!r}"

    @when_claimed("seed")
    async def test_seeds_differ(self, backend: Any) -> None:
        """Different seeds do not all give one output.

        How to fix: use the seed. If outputs are greedy, the temperature is not applied either.
        """
        outputs = {
            (await generate_one(backend, self.prompts[1], self.random(seed=s))).token_ids for s in _SEEDS
        }
        assert len(outputs) > 1, f"seeds {_SEEDS} all gave {outputs}"

    async def test_sampling_without_a_seed_varies(self, backend: Any) -> None:
        """Without a seed, runs at temperature 1 do not all give one output.

        How to fix: draw a fresh seed for each request that has none.
        """
        outputs = {(await generate_one(backend, self.prompts[1], self.random())).token_ids for _ in _SEEDS}
        assert len(outputs) > 1, f"{len(_SEEDS)} runs without a seed all gave {outputs}"

    async def test_filters_that_leave_one_token_are_greedy(self, backend: Any) -> None:
        """``top_k=1`` and a tiny ``top_p`` at temperature 1 give the greedy output.

        How to fix: apply the filters to every step's probabilities, and always keep the most likely token.
        """
        expected = await self.greedy_output(backend)
        for name, filtered in (("top_k=1", self.random(top_k=1)), ("top_p=1e-6", self.random(top_p=1e-6))):
            output = await generate_one(backend, self.prompts[0], filtered)
            assert output.token_ids == expected.token_ids, (
                f"{name}: {output.text!r}, greedy: {expected.text!r}"
            )

    @when_claimed("min_p")
    async def test_min_p_of_one_is_greedy(self, backend: Any) -> None:
        """``min_p=1`` keeps only the most likely token.

        How to fix: drop tokens with less than ``min_p`` times the probability of the most likely one.
        """
        expected = await self.greedy_output(backend)
        output = await generate_one(backend, self.prompts[0], self.random(min_p=1.0))
        assert output.token_ids == expected.token_ids, f"min_p=1: {output.text!r}, greedy: {expected.text!r}"

    @when_claimed("penalties")
    async def test_penalties_reduce_repetition(self, backend: Any) -> None:
        """Strong penalties leave fewer repeated tokens in greedy output.

        How to fix: ``repetition_penalty`` divides positive logits and multiplies negative ones of tokens seen in prompt
        or output; the presence and frequency penalties are subtracted for tokens of the output.
        """
        length = 2 * self.max_output

        async def repeated(**penalty: float) -> int:
            params = greedy(length, **penalty)
            outputs = await generate_all(backend, self.prompts, params)
            return sum(length - len(set(output.token_ids)) for output in outputs)

        plain = await repeated()
        for penalty in ({"repetition_penalty": 10.0}, {"presence_penalty": 2.0, "frequency_penalty": 2.0}):
            punished = await repeated(**penalty)
            assert not plain or punished < plain, (
                f"{plain} repeated tokens without, {punished} with {penalty}"
            )

    @when_claimed("parallel_sampling")
    async def test_n_completions_all_finish(self, backend: Any) -> None:
        """``n=3`` returns the indices 0, 1 and 2; each finishes once, and usage counts them all.

        How to fix: set ``TokenDelta.index``; end the stream when the last of the n completions has finished.
        """
        output = await generate_one(backend, self.prompts[1], self.random(n=3))
        assert sorted(output.completions) == [0, 1, 2], f"n=3 gave the indices {sorted(output.completions)}"
        tokens = sum(len(completion.token_ids) for completion in output.completions.values())
        assert output.counted().completion_tokens == tokens, f"{tokens} tokens, {output.usage}"
        assert output.finish_reason == output.completions[0].finish_reason, (
            "finish_reason is not completion 0's"
        )

    @when_claimed("parallel_sampling", "seed")
    async def test_n_completions_with_a_seed_differ_and_reproduce(self, backend: Any) -> None:
        """The completions of one seeded request differ from each other, and come again in a second run.

        How to fix: derive one generator a completion from the seed and the index.
        """
        runs = [await generate_one(backend, self.prompts[1], self.random(n=3, seed=5)) for _ in range(2)]
        first, second = ([run.completions[i].token_ids for i in range(3)] for run in runs)
        assert first == second, "a seeded request with n=3 does not reproduce"
        assert len(set(first)) > 1, f"all completions of one seed are {first[0]}"

    @when_claimed("logprobs")
    async def test_logprobs_of_every_token(self, backend: Any) -> None:
        """Each token has its log probability and as many alternatives as asked for, most likely first.

        How to fix: attach one ``TokenLogprob`` to a delta for each of its token ids, with natural logarithms of the
        softmax over all tokens.
        """
        for count in (0, 3):
            output = await self.greedy_output(backend, logprobs=count)
            entries = output.completions[0].logprobs
            chosen = [entry.token_id for entry in entries]
            assert chosen == list(output.token_ids), (
                f"log probabilities of {chosen} for the tokens {output.token_ids}"
            )
            for entry in entries:
                assert entry.logprob <= _CLOSE, f"a log probability over 0: {entry}"
                assert len(entry.alternatives) == count, (
                    f"logprobs={count} gave {len(entry.alternatives)}: {entry}"
                )
                values = [value for _, _, value in entry.alternatives]
                assert values == sorted(values, reverse=True), f"alternatives are not in order: {entry}"

    @when_claimed("logprobs")
    async def test_greedy_takes_the_most_likely(self, backend: Any) -> None:
        """In greedy output the chosen token's log probability is that of the best alternative.

        How to fix: compute both from the same logits; alternatives include the chosen token where it is among the best.
        """
        output = await self.greedy_output(backend, logprobs=3)
        for entry in output.completions[0].logprobs:
            best = entry.alternatives[0][2]
            assert abs(entry.logprob - best) <= _CLOSE, (
                f"greedy chose {entry.logprob}, the best is {best}: {entry}"
            )

    async def test_no_logprobs_unless_asked_for(self, backend: Any) -> None:
        """Deltas carry None where ``SamplingParams.logprobs`` is None.

        How to fix: compute them only on request; they cost time in every step.
        """
        output = await self.greedy_output(backend)
        assert all(delta.logprobs is None for delta in output.deltas), (
            "log probabilities that were not requested"
        )

    # --- guided decoding

    async def guided(self, backend: Any, **constraint: Any) -> str:
        """Text of a random output under a constraint."""
        params = SamplingParams(temperature=1.0, max_tokens=64, guided=GuidedDecoding(**constraint))
        return (await generate_one(backend, self.prompts[0], params)).text

    @when_claimed("guided_choice")
    async def test_guided_choice(self, backend: Any) -> None:
        """The output is one of the choices.

        How to fix: mask tokens that lead to none of the choices, and end the output when one is complete.
        """
        choices = ("red", "green", "deep blue")
        text = await self.guided(backend, choice=choices)
        assert text in choices, f"{text!r} is none of {choices}"

    @when_claimed("guided_regex")
    async def test_guided_regex(self, backend: Any) -> None:
        """The whole output matches the expression.

        How to fix: mask tokens after which no match is possible, and end the output where only the end is left.
        """
        text = await self.guided(backend, regex="[0-9]{4}-[0-9]{2}")
        assert re.fullmatch("[0-9]{4}-[0-9]{2}", text), f"{text!r} does not match"

    @when_claimed("guided_json")
    async def test_guided_json(self, backend: Any) -> None:
        """The output is JSON that fits the schema.

        How to fix: forbid additional white space and keys as the schema says, and end after the last brace.
        """
        properties = {"ready": {"type": "boolean"}, "colour": {"enum": ["red", "blue"]}}
        schema = {
            "type": "object", "properties": properties, "required": ["ready", "colour"], "additionalProperties": False,
        }  # fmt: skip
        text = await self.guided(backend, json_schema=schema)
        try:
            value = json.loads(text)
        except ValueError:
            pytest.fail(f"not JSON: {text!r}")
        assert set(value) == {"ready", "colour"}, f"keys of {value}"
        assert isinstance(value["ready"], bool), f"ready of {value}"
        assert value["colour"] in ("red", "blue"), f"colour of {value}"

    @when_claimed("guided_grammar")
    async def test_guided_grammar(self, backend: Any) -> None:
        """The output follows the grammar.

        How to fix: set ``grammar`` to the backend's dialect; the output must be one of its two words.
        """
        text = await self.guided(backend, grammar=self.grammar)
        assert text in ("yes", "no"), f"{text!r} does not follow {self.grammar!r}"

    @when_claimed("lora")
    async def test_unknown_adapter_is_refused(self, backend: Any) -> None:
        """An adapter that is not there is an error, never the base model's output.

        How to fix: raise ``ModelNotFound`` with the adapters that there are.
        """
        with pytest.raises(SageInferError, match="no-such-adapter"):
            await generate_one(backend, self.prompts[0], greedy(2, adapter="no-such-adapter"))

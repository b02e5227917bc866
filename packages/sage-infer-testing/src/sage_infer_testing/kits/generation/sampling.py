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
_CLOSE = 1e-4  # tolerance between log probabilities that should be equal


class SamplingTests(GenerationSuite, kit=True):
    """Tests of sampling parameters, if they are claimed."""

    def random(self, **more: Any) -> SamplingParams:
        """Return sampling parameters at temperature 1 for exactly ``max_output`` tokens."""
        return SamplingParams(
            **{"temperature": 1.0, "max_tokens": self.max_output, "ignore_eos": True, **more}
        )

    def test_wrong_parameters_never_reach_the_backend(self) -> None:
        """``SamplingParams`` itself rejects invalid values such as a negative temperature.

        How to fix: this tests the core. If it fails, the installed sage-infer-core does not match this kit.
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
        """The same seed produces the same output twice at temperature 1, also the seed 0.

        How to fix: use one random number generator per request, seeded only from ``SamplingParams.seed``. A generator
        shared by the batch depends on the other requests.
        """
        for seed in (11, 0):
            first = await generate_one(backend, self.prompts[1], self.random(seed=seed))
            second = await generate_one(backend, self.prompts[1], self.random(seed=seed))
            assert first.token_ids == second.token_ids, (
                f"seed {seed} returned {first.text!r}, then {second.text!r}"
            )

    @when_claimed("seed")
    async def test_seeds_differ(self, backend: Any) -> None:
        """Different seeds do not all produce the same output.

        How to fix: use the seed. If outputs are greedy, the temperature is not applied either.
        """
        outputs = {
            (await generate_one(backend, self.prompts[1], self.random(seed=s))).token_ids for s in _SEEDS
        }
        assert len(outputs) > 1, f"seeds {_SEEDS} all returned {outputs}"

    async def test_sampling_without_a_seed_varies(self, backend: Any) -> None:
        """Without a seed, runs at temperature 1 do not all produce the same output.

        How to fix: draw a random seed for each request without one.
        """
        outputs = {(await generate_one(backend, self.prompts[1], self.random())).token_ids for _ in _SEEDS}
        assert len(outputs) > 1, f"{len(_SEEDS)} runs without a seed all returned {outputs}"

    async def test_filters_that_leave_one_token_are_greedy(self, backend: Any) -> None:
        """``top_k=1`` and a tiny ``top_p`` at temperature 1 produce the greedy output.

        How to fix: apply the filters to the probabilities of every step, and always keep the most likely token.
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

        How to fix: drop tokens whose probability is below ``min_p`` times that of the most likely token.
        """
        expected = await self.greedy_output(backend)
        output = await generate_one(backend, self.prompts[0], self.random(min_p=1.0))
        assert output.token_ids == expected.token_ids, f"min_p=1: {output.text!r}, greedy: {expected.text!r}"

    @when_claimed("penalties")
    async def test_penalties_reduce_repetition(self, backend: Any) -> None:
        """Strong penalties reduce repeated tokens in greedy output.

        How to fix: ``repetition_penalty`` divides positive logits and multiplies negative logits of tokens in prompt or
        output; presence and frequency penalties are subtracted from logits of tokens in the output.
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
        """``n=3`` returns the indices 0, 1 and 2; each finishes once, and usage includes all of them.

        How to fix: set ``TokenDelta.index``; end the stream when the last of the n completions has finished.
        """
        output = await generate_one(backend, self.prompts[1], self.random(n=3))
        assert sorted(output.completions) == [0, 1, 2], (
            f"n=3 returned the indices {sorted(output.completions)}"
        )
        single = await generate_one(backend, self.prompts[1], self.random())
        once, of_all = single.counted().prompt_tokens, output.counted().prompt_tokens
        assert of_all == once, f"the prompt has {once} tokens, and usage with n=3 counts {of_all}"
        assert output.finish_reason == output.completions[0].finish_reason, (
            "finish_reason is not that of completion 0"
        )

    @when_claimed("parallel_sampling", "seed")
    async def test_n_completions_with_a_seed_differ_and_reproduce(self, backend: Any) -> None:
        """The completions of one seeded request differ from each other, and a second run reproduces them.

        How to fix: derive one random number generator per completion from the seed and the index.
        """
        runs = [await generate_one(backend, self.prompts[1], self.random(n=3, seed=5)) for _ in range(2)]
        first, second = ([run.completions[i].token_ids for i in range(3)] for run in runs)
        assert first == second, "a seeded request with n=3 does not reproduce"
        assert len(set(first)) > 1, f"all completions of one seed are {first[0]}"

    @when_claimed("logprobs")
    async def test_logprobs_of_every_token(self, backend: Any) -> None:
        """Each token has its log probability and the requested number of alternatives, most likely first.

        How to fix: attach one ``TokenLogprob`` per token id to a delta, with natural logarithms of the softmax over the
        vocabulary.
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
                    f"logprobs={count} returned {len(entry.alternatives)}: {entry}"
                )
                values = [value for _, _, value in entry.alternatives]
                assert values == sorted(values, reverse=True), f"alternatives are not in order: {entry}"

    @when_claimed("logprobs")
    async def test_greedy_takes_the_most_likely(self, backend: Any) -> None:
        """In greedy output the log probability of the sampled token equals that of the best alternative.

        How to fix: compute both from the same logits; alternatives include the sampled token if it is among the best.
        """
        output = await self.greedy_output(backend, logprobs=3)
        for entry in output.completions[0].logprobs:
            best = entry.alternatives[0][2]
            assert abs(entry.logprob - best) <= _CLOSE, (
                f"greedy chose {entry.logprob}, the best is {best}: {entry}"
            )

    async def test_no_logprobs_unless_asked_for(self, backend: Any) -> None:
        """The ``logprobs`` of deltas are None if ``SamplingParams.logprobs`` is None.

        How to fix: compute log probabilities only on request, because they cost time in every step.
        """
        output = await self.greedy_output(backend)
        assert all(delta.logprobs is None for delta in output.deltas), (
            "log probabilities that were not requested"
        )

    # --- guided decoding

    async def guided(self, backend: Any, **constraint: Any) -> str:
        """Return the text of a sampled output with a constraint."""
        params = SamplingParams(temperature=1.0, max_tokens=64, guided=GuidedDecoding(**constraint))
        return (await generate_one(backend, self.prompts[0], params)).text

    @when_claimed("guided_choice")
    async def test_guided_choice(self, backend: Any) -> None:
        """The output is one of the choices.

        How to fix: mask tokens that do not lead to a choice, and end the output when a choice is complete.
        """
        choices = ("red", "green", "deep blue")
        text = await self.guided(backend, choice=choices)
        assert text in choices, f"{text!r} is none of {choices}"

    @when_claimed("guided_regex")
    async def test_guided_regex(self, backend: Any) -> None:
        """The whole output matches the expression.

        How to fix: mask tokens after which no match is possible, and end the output when no further token is allowed.
        """
        text = await self.guided(backend, regex="[0-9]{4}-[0-9]{2}")
        assert re.fullmatch("[0-9]{4}-[0-9]{2}", text), f"{text!r} does not match"

    @when_claimed("guided_json")
    async def test_guided_json(self, backend: Any) -> None:
        """The output is JSON that is valid against the schema.

        How to fix: do not allow additional white space or keys, and end the output after the last brace.
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

        How to fix: write ``grammar`` in the backend's dialect; the output must be one of its two words.
        """
        text = await self.guided(backend, grammar=self.grammar)
        assert text in ("yes", "no"), f"{text!r} does not follow {self.grammar!r}"

    @when_claimed("lora")
    async def test_unknown_adapter_is_refused(self, backend: Any) -> None:
        """An unknown adapter is an error; the base model is not used instead.

        How to fix: raise ``ModelNotFound`` with the names of the known adapters.
        """
        with pytest.raises(SageInferError, match="no-such-adapter"):
            await generate_one(backend, self.prompts[0], greedy(2, adapter="no-such-adapter"))

"""Each sampling parameter has its effect, and only on its own request."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from sage_infer.schemas import GuidedDecoding, SamplingParams, TokenLogprob

from sage_infer_testing.features import when_claimed
from sage_infer_testing.kits.generation.base import GenerationSuite
from sage_infer_testing.reading import generate_all, generate_one, greedy

__all__ = ["ParameterTests"]

_CLOSE = 1e-3  # between two log probabilities that should be one
_HOT = 2.0  # the highest temperature that every engine takes
_LENGTH = 4  # tokens of outputs that are compared as a whole
_KNOWN = 10  # alternatives that show how likely a token was


class ParameterTests(GenerationSuite, kit=True):
    """Parameters one by one, where ``SamplingTests`` has those that belong together."""

    async def test_temperature_decides(self, backend: Any) -> None:
        """Near temperature 0 many outputs begin as the greedy one; at temperature 2 not all are the greedy one.

        How to fix: divide the logits by the temperature. Where both are alike it is dropped or clamped.
        """
        prompts = list(self.prompts[:4]) * 4
        best = [o.token_ids for o in await generate_all(backend, prompts[:4], greedy(self.max_output))] * 4

        async def greedy_ones(temperature: float, length: int) -> int:
            params = SamplingParams(temperature=temperature, max_tokens=length, ignore_eos=True)
            outputs = await generate_all(backend, prompts, params)
            return sum(output.token_ids == all_[:length] for output, all_ in zip(outputs, best, strict=True))

        cold, hot = await greedy_ones(0.01, _LENGTH), await greedy_ones(_HOT, self.max_output)
        count = len(prompts)  # of which a model with many ties takes other tokens than the greedy ones
        assert cold >= count / 4, f"at temperature 0.01 {cold} of {count} outputs begin as the greedy one"
        assert hot < count, f"at temperature 2 {hot} of {count} outputs are the greedy one"

    @when_claimed("logprobs")
    async def test_filters_keep_only_likely_tokens(self, backend: Any) -> None:
        """With ``top_k``, ``top_p`` or ``min_p`` every token is among those that the filter keeps.

        How to fix: apply each filter in every step. Log probabilities are those before all filters.
        """
        filters: dict[str, Any] = {"top_k": 3, "top_p": 0.3}
        if backend.get_capability().supports("min_p"):
            filters["min_p"] = 0.5

        def problem(entry: TokenLogprob, name: str) -> bool:
            better = [value for _, _, value in entry.alternatives if value > entry.logprob + _CLOSE]
            if name == "top_k":
                return bool(len(better) >= filters["top_k"])
            if name == "top_p":
                return bool(sum(map(math.exp, better)) > filters["top_p"] + _CLOSE)
            best = max([entry.logprob, *better])
            return bool(entry.logprob - best < math.log(filters["min_p"]) - _CLOSE)

        for name, value in filters.items():
            params = SamplingParams(
                max_tokens=self.max_output, ignore_eos=True, logprobs=_KNOWN, **{name: value}
            )
            for output in await generate_all(backend, list(self.prompts[:4]), params):
                wrong = [entry for entry in output.completions[0].logprobs if problem(entry, name)]
                assert not wrong, f"{name}={value} let through what it excludes: {wrong[0]}"

    @when_claimed("logprobs")
    async def test_logprobs_are_a_distribution(self, backend: Any) -> None:
        """A delta has an entry for each token id; alternatives differ, and their probabilities add up to 1 at most.

        How to fix: attach the entries of exactly the delta's own tokens, with natural logarithms after the softmax, not
        logits and not logarithms to another base.
        """
        output = await self.greedy_output(backend, logprobs=_KNOWN)
        for delta in output.deltas:
            count = len(delta.logprobs or ())
            assert count == len(delta.token_ids), f"{count} log probabilities in the delta {delta}"
        for entry in output.completions[0].logprobs:
            names = [token for token, _, _ in entry.alternatives]
            assert len(set(names)) == len(names), f"an alternative twice: {entry}"
            total = sum(math.exp(value) for _, _, value in entry.alternatives)
            assert total <= 1 + _CLOSE, f"probabilities of alternatives add up to {total}: {entry}"

    @when_claimed("penalties")
    async def test_each_penalty_acts_alone(self, backend: Any) -> None:
        """Each of the three penalties changes greedy output that repeats tokens, without the other two.

        How to fix: apply all three; the message names the one that does nothing.
        """
        length = 2 * self.max_output
        plain = [o.token_ids for o in await generate_all(backend, self.prompts, greedy(length))]
        if all(len(set(tokens)) == length for tokens in plain):
            pytest.skip("no greedy output repeats a token; set other prompts")
        for name, value in (
            ("repetition_penalty", 10.0), ("presence_penalty", 2.0), ("frequency_penalty", 2.0),
        ):  # fmt: skip
            outputs = await generate_all(backend, self.prompts, greedy(length, **{name: value}))
            assert [output.token_ids for output in outputs] != plain, f"{name}={value} changes nothing"

    @when_claimed("penalties")
    async def test_a_first_token_is_not_penalized_for_the_prompt(self, backend: Any) -> None:
        """``presence_penalty`` and ``frequency_penalty`` look at the output alone: they leave the first token as it is.

        How to fix: count the tokens of the output only; ``repetition_penalty`` is the one that counts the prompt too.
        """
        for prompt in self.prompts:
            plain = await self.greedy_output(backend, prompt, max_tokens=1)
            for penalty in ({"presence_penalty": 2.0}, {"frequency_penalty": 2.0}):
                output = await self.greedy_output(backend, prompt, max_tokens=1, **penalty)
                assert output.token_ids == plain.token_ids, f"{penalty} changes the first token of {prompt!r}"

    async def test_parameters_stay_with_their_request(self, backend: Any) -> None:
        """Requests with other stops, lengths and temperatures in one batch do not change a plain request beside them.

        How to fix: keep parameters with the sequence, not with the batch or the instance.
        """
        plain = await self.greedy_output(backend)
        stop = plain.text[-2:]
        noise = [
            self.greedy_output(backend, stop=[stop]),
            self.greedy_output(backend, max_tokens=2),
            generate_one(backend, self.prompts[0], SamplingParams(temperature=_HOT, max_tokens=8, top_k=50)),
        ]
        stopped, short, _, beside = await asyncio.gather(*noise, self.greedy_output(backend))
        self.same(beside, plain, "beside other parameters and alone")
        assert beside.finish_reason == "length", f"a neighbour's stop ended it: {beside.finish_reason!r}"
        assert len(short.token_ids) == 2, f"max_tokens=2 among others returned {len(short.token_ids)} tokens"
        assert stop not in stopped.text, f"stop {stop!r} among others is in {stopped.text!r}"
        after = await self.greedy_output(backend)
        self.same(after, plain, "after requests with other parameters")

    @when_claimed("parallel_sampling", "seed")
    async def test_completions_end_on_their_own(self, backend: Any) -> None:
        """Where one of n completions stops, the others continue to their own ends.

        How to fix: keep the finish reason of each completion; the stream ends with the last one.
        """
        params = SamplingParams(temperature=1.0, max_tokens=self.max_output, ignore_eos=True, seed=5, n=3)
        whole = await generate_one(backend, self.prompts[1], params)
        ids = [whole.completions[i].token_ids for i in range(3)]
        stop = next((t for t in ids[0] if any(t not in other for other in ids[1:])), None)
        if stop is None:
            pytest.skip("all completions have the same tokens; set other prompts")
        stopped = SamplingParams(
            temperature=1.0, max_tokens=self.max_output, ignore_eos=True, seed=5, n=3, stop_token_ids=(stop,)
        )
        output = await generate_one(backend, self.prompts[1], stopped)
        for index, tokens in enumerate(ids):
            length = tokens.index(stop) + 1 if stop in tokens else len(tokens)
            found = output.completions[index]
            assert len(found.token_ids) == length, (
                f"completion {index} should have ended after {length} tokens, and has {len(found.token_ids)}"
            )
            expected = "stop" if stop in tokens else "length"
            assert found.finish_reason == expected, f"completion {index} ended with {found.finish_reason!r}"

    @when_claimed("guided_choice")
    async def test_constraints_stay_with_their_request(self, backend: Any) -> None:
        """Requests with different constraints in one batch each follow their own, and end with ``stop``.

        How to fix: keep one matcher per sequence, and advance it by that sequence's tokens.
        """
        choices = [("red", "green"), ("one", "two", "three"), ("north", "south")]
        constrained = [
            generate_one(
                backend, self.prompts[i],
                SamplingParams(temperature=1.0, max_tokens=32, guided=GuidedDecoding(choice=choice)),
            )
            for i, choice in enumerate(choices)
        ]  # fmt: skip
        expected = await self.greedy_output(backend, self.prompts[1])
        *guided, free = await asyncio.gather(*constrained, self.greedy_output(backend, self.prompts[1]))
        for output, choice in zip(guided, choices, strict=True):
            assert output.text in choice, f"{output.text!r} is none of {choice}"
            assert output.finish_reason == "stop", (
                f"a complete choice ended with {output.finish_reason!r}, not 'stop'"
            )
        self.same(free, expected, "beside constrained requests and alone")

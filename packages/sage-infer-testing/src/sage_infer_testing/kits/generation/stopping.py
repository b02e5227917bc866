"""End of outputs: lengths, stop strings, stop tokens."""

from __future__ import annotations

from typing import Any

import pytest

from sage_infer_testing.features import when_claimed
from sage_infer_testing.kits.generation.base import GenerationSuite
from sage_infer_testing.reading import Output

__all__ = ["StoppingTests"]


def spanning_stop(output: Output) -> str:
    """Return a string whose first occurrence in the output spans two deltas; empty if there is none."""
    text, border = output.text, 0
    for delta in output.deltas[:-1]:
        border += len(delta.text)
        for reach in (1, 2, 3):
            start, end = border - reach, border + reach
            if start > 0 and end <= len(text) and text.find(text[start:end]) == start:
                return text[start:end]
    return ""


class StoppingTests(GenerationSuite, kit=True):
    """Every regular way in which an output ends."""

    async def test_max_tokens_is_kept(self, backend: Any) -> None:
        """An output ends with ``length`` after ``max_tokens`` tokens.

        How to fix: count generated tokens, not steps or characters, and report ``length`` at the limit.
        """
        for count in (1, 3, self.max_output):
            output = await self.greedy_output(backend, max_tokens=count)
            assert len(output.token_ids) == count, (
                f"max_tokens={count} returned {len(output.token_ids)} tokens"
            )
            assert output.finish_reason == "length", f"ended with {output.finish_reason!r}, not 'length'"

    async def test_a_shorter_output_is_a_prefix(self, backend: Any) -> None:
        """Short greedy output is a prefix of longer greedy output, and no text is held back at the end.

        How to fix: flush held-back text (part of a character or of a stop string) with the last delta.
        """
        long = await self.greedy_output(backend)
        for count in (1, 2, 5, self.max_output // 2):
            short = await self.greedy_output(backend, max_tokens=count)
            assert long.token_ids[: len(short.token_ids)] == short.token_ids, (
                f"{short.token_ids} of {count} tokens is not how {long.token_ids} begins: tokens are out of order"
            )
            common = short.text.rstrip("\N{REPLACEMENT CHARACTER}")
            assert long.text.startswith(common), f"{long.text!r} does not begin with {short.text!r}"

    async def test_stop_string_ends_the_output(self, backend: Any) -> None:
        """The output ends before the first stop string, with reason ``stop``, and no delta contains any part of it.

        How to fix: hold back text that could start a stop string until the next token decides, and search the
        concatenated text. A search for the stop string's token ids misses occurrences with other token boundaries.
        """
        whole = await self.greedy_output(backend, max_tokens=2 * self.max_output)
        stop = spanning_stop(whole)
        if not stop:
            pytest.skip("the greedy output has no string that spans two deltas; set other prompts")
        expected = whole.text[: whole.text.find(stop)]
        output = await self.greedy_output(backend, max_tokens=2 * self.max_output, stop=[stop])
        assert stop not in output.text, f"stop string {stop!r} is in the output {output.text!r}"
        assert output.text == expected, (
            f"stop {stop!r} in {whole.text!r}: expected {expected!r}, got {output.text!r}"
        )
        assert output.finish_reason == "stop", f"ended with {output.finish_reason!r}, not 'stop'"
        assert len(output.token_ids) < len(whole.token_ids), "generation continued after the stop string"

    async def test_the_earliest_of_several_stops_counts(self, backend: Any) -> None:
        """With several stop strings, the output ends at the one that occurs first in the text.

        How to fix: search for all of them and truncate at the smallest position.
        """
        whole = await self.greedy_output(backend)
        middle = next(
            (i for i in range(2, len(whole.text)) if whole.text.find(whole.text[i : i + 2]) == i), None
        )
        if middle is None:
            pytest.skip("the greedy output repeats one character; set other prompts")
        stops = ["\N{SNOWMAN} never \N{SNOWMAN}", whole.text[middle : middle + 2], whole.text[-1]]
        cut = min(position for stop in stops if (position := whole.text.find(stop)) >= 0)
        output = await self.greedy_output(backend, stop=stops)
        assert output.text == whole.text[:cut], f"stops {stops} in {whole.text!r}: got {output.text!r}"

    async def test_text_held_for_a_stop_is_given_at_the_end(self, backend: Any) -> None:
        """Text that matches only the start of a stop string is delivered at the end of the output.

        How to fix: flush held-back text before the last delta.
        """
        whole = await self.greedy_output(backend)
        tail = whole.text[-1]
        output = await self.greedy_output(backend, stop=[tail + "\N{SNOWMAN} never"])
        assert output.text == whole.text, f"{whole.text!r} became {output.text!r}"
        assert output.finish_reason == "length", f"ended with {output.finish_reason!r}, not 'length'"

    async def test_stop_token_ends_the_output(self, backend: Any) -> None:
        """A token of ``stop_token_ids`` ends the output with reason ``stop``; its text is not part of it.

        How to fix: compare every new token with ``stop_token_ids`` before its text is emitted.
        """
        whole = await self.greedy_output(backend)
        position = next(
            (i for i, t in enumerate(whole.token_ids) if i and whole.token_ids.index(t) == i), None
        )  # fmt: skip
        if position is None:
            pytest.skip("the greedy output repeats one token; set other prompts")
        output = await self.greedy_output(backend, stop_token_ids=[whole.token_ids[position]])
        assert output.finish_reason == "stop", f"ended with {output.finish_reason!r}, not 'stop'"
        assert output.token_ids == whole.token_ids[: position + 1], (
            f"{whole.token_ids} stopped as {output.token_ids}: the last delta carries the stop token's id"
        )
        assert whole.text.startswith(output.text), (
            f"{output.text!r} contains the text of the stop token in {whole.text!r}"
        )
        assert len(output.text) < len(whole.text), "the stop token did not shorten the text"

    async def test_min_tokens_delays_stops(self, backend: Any) -> None:
        """Neither a stop token nor a stop string ends the output before ``min_tokens`` tokens.

        How to fix: check stops only after ``min_tokens`` tokens.
        """
        whole = await self.greedy_output(backend)
        output = await self.greedy_output(backend, stop_token_ids=[whole.token_ids[0]], min_tokens=4)
        assert len(output.token_ids) >= 4, f"min_tokens=4 returned {len(output.token_ids)} tokens"

    async def test_ignore_eos_goes_on(self, backend: Any) -> None:
        """With ``ignore_eos`` every prompt's output has the full length.

        How to fix: mask or ignore the model's end-of-sequence token; benchmarks rely on it.
        """
        for prompt in self.prompts:
            output = await self.greedy_output(backend, prompt)
            assert len(output.token_ids) == self.max_output, (
                f"{prompt!r} ended after {len(output.token_ids)} tokens"
            )

    @when_claimed("prefix_caching")
    async def test_a_cached_prefix_changes_nothing(self, backend: Any) -> None:
        """The second run of a long prompt reuses cached tokens and produces the same output.

        How to fix: report ``Usage.cached_tokens``. If outputs differ, the cached blocks hold KV of other tokens, or
        positions are counted from the first uncached token.
        """
        limit = backend.get_capability().max_sequence_length - 8
        length = min(limit, 3 * backend.get_kv_schema().page_size + 1)
        prompt = (await self.long_prompt(backend, length))[::-1]  # not used by any other test
        first = await self.greedy_output(backend, prompt, max_tokens=4)
        await self.idle(backend)
        second = await self.greedy_output(backend, prompt, max_tokens=4)
        more = second.counted().cached_tokens > first.counted().cached_tokens
        assert more, f"no tokens were cached: {first.usage}, then {second.usage}"
        self.same(second, first, "with a cached prefix and without")

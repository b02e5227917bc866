"""The end that the model itself chooses: its end-of-sequence token."""

from __future__ import annotations

from typing import Any

import pytest
from sage_infer.schemas import SamplingParams

from sage_infer_testing.kits.generation.base import GenerationSuite
from sage_infer_testing.reading import Output, generate_all

__all__ = ["OwnEndTests"]

_LENGTH = 96  # tokens within which some output should end by itself
_FURTHER = 4
_QUESTIONS = ("Say hello.", "What is 2 + 2?", "Name one colour.")


class OwnEndTests(GenerationSuite, kit=True):
    """``ignore_eos`` and ``min_tokens``; skipped where no greedy output ends by itself within 96 tokens."""

    async def ended(self, backend: Any) -> tuple[Any, Output]:
        """A prompt whose greedy output the model ends, and that output."""
        prompts: list[Any] = list(self.prompts)
        if backend.get_capability().supports("chat"):
            for question in _QUESTIONS:
                prompts.append(await backend.render_chat([{"role": "user", "content": question}]))
        outputs = await generate_all(backend, prompts, SamplingParams(temperature=0.0, max_tokens=_LENGTH))
        for prompt, output in zip(prompts, outputs, strict=True):
            assert output.finish_reason in ("stop", "length"), f"ended with {output.finish_reason!r}"
            if output.finish_reason == "stop" and 1 < len(output.token_ids) < _LENGTH - _FURTHER:
                return prompt, output
        pytest.skip("no greedy output ended by itself; set prompts whose output the model ends")

    async def test_ignore_eos_outlasts_the_end(self, backend: Any) -> None:
        """``ignore_eos`` continues an output that otherwise ends by itself, up to ``max_tokens``.

        How to fix: mask or ignore the end-of-sequence token where ``ignore_eos`` is set, and only there.
        """
        prompt, whole = await self.ended(backend)
        length = len(whole.token_ids) + _FURTHER
        output = await self.greedy_output(backend, prompt, max_tokens=length)
        assert len(output.token_ids) == length, (
            f"with ignore_eos the output has {len(output.token_ids)} of {length} tokens; it ends by itself after "
            f"{len(whole.token_ids)}"
        )
        assert output.finish_reason == "length", f"ended with {output.finish_reason!r}, not 'length'"

    async def test_min_tokens_outlasts_the_end(self, backend: Any) -> None:
        """``min_tokens`` continues an output that otherwise ends by itself, up to that many tokens at least.

        How to fix: mask or ignore the end-of-sequence token until ``min_tokens`` tokens are there.
        """
        prompt, whole = await self.ended(backend)
        least = len(whole.token_ids) + _FURTHER
        params = {"ignore_eos": False, "min_tokens": least}
        output = await self.greedy_output(backend, prompt, max_tokens=least + _FURTHER, **params)
        assert len(output.token_ids) >= least, f"min_tokens={least} returned {len(output.token_ids)} tokens"

    async def test_min_tokens_delays_stop_strings(self, backend: Any) -> None:
        """Before ``min_tokens`` tokens a stop string does not end the output, and stays in it.

        How to fix: search stop strings only in the text from the token of ``min_tokens`` on.
        """
        whole = await self.greedy_output(backend)
        stop = whole.text[:2]
        output = await self.greedy_output(backend, stop=[stop], min_tokens=6)
        assert len(output.token_ids) >= 6, (
            f"min_tokens=6 and stop={stop!r} returned {len(output.token_ids)} tokens"
        )
        assert output.text.startswith(stop), f"{output.text!r} lacks {stop!r}, which was no stop yet"

    async def test_min_tokens_is_no_longest_output(self, backend: Any) -> None:
        """``min_tokens`` is a lower bound: an output without a stop has ``max_tokens`` tokens.

        How to fix: do not end the output when ``min_tokens`` is reached.
        """
        output = await self.greedy_output(backend, min_tokens=2)
        assert len(output.token_ids) == self.max_output, (
            f"min_tokens=2, max_tokens={self.max_output} returned {len(output.token_ids)} tokens"
        )

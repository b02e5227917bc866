"""Streams: order, end, usage, timing, and the forms of prompts."""

from __future__ import annotations

import time
from typing import Any

from sage_infer.contracts import TokenStream
from sage_infer.schemas import Prompt, SamplingParams

from sage_infer_testing.features import when_claimed
from sage_infer_testing.kits.generation.base import GenerationSuite
from sage_infer_testing.reading import generate_all, generate_one, greedy, read
from sage_infer_testing.shape import shape_problems

__all__ = ["StreamingTests"]

_CLOCK_S = 0.05  # that two clocks may differ by


class StreamingTests(GenerationSuite, kit=True):
    """Tests of streams from the consumer's view."""

    async def test_generate_gives_token_streams(self, backend: Any) -> None:
        """``generate`` returns a list of objects that implement ``TokenStream``.

        How to fix: return ``sage_infer.contracts.BufferedTokenStream`` objects, or add the methods in the message to
        your own class.
        """
        streams = await backend.generate(self.prompts[0], greedy(2))
        assert isinstance(streams, list), f"generate() returned a {type(streams).__name__}, not a list"
        problems = shape_problems(streams[0], TokenStream)
        await read(streams[0])
        assert not problems, f"not a TokenStream: {'; '.join(problems)}"

    async def test_every_completion_finishes_once(self, backend: Any) -> None:
        """Only the last delta of a completion has a ``finish_reason``.

        How to fix: set ``finish_reason`` on the delta of the last token (or on a final, empty delta), never earlier,
        and remove the sequence from the batch in the same step.
        """
        output = await self.greedy_output(backend)
        assert list(output.completions) == [0], (
            f"one completion has index 0, got {sorted(output.completions)}"
        )
        assert output.finish_reason == output.completions[0].finish_reason, (
            f"stream.finish_reason {output.finish_reason!r} is not the last delta's "
            f"{output.completions[0].finish_reason!r}"
        )

    async def test_results_are_none_until_the_end(self, backend: Any) -> None:
        """``finish_reason``, ``usage`` and ``timing`` are None until the stream has ended, and set afterwards.

        How to fix: set the three together when the last completion has finished, before the consumer's loop ends.
        """
        (stream,) = await backend.generate(self.prompts[0], greedy(self.max_output))
        assert stream.finish_reason is None, "finish_reason is set before the first delta was read"
        assert stream.usage is None, "usage is set before the first delta was read"
        output = await read(stream)
        assert output.finish_reason is not None, "finish_reason is None after the stream has ended"
        output.counted()
        output.measured()

    async def test_a_finished_stream_stays_finished(self, backend: Any) -> None:
        """A second ``async for`` over a finished stream yields nothing, and ``cancel`` has no effect.

        How to fix: store in the stream that it has ended; deliver each delta once.
        """
        (stream,) = await backend.generate(self.prompts[0], greedy(4))
        first = await read(stream)
        again = [delta async for delta in stream]
        assert not again, f"a second iteration yielded {again}"
        stream.cancel()
        assert stream.finish_reason == first.finish_reason, "cancel() after the end changed finish_reason"

    @when_claimed("streaming")
    async def test_tokens_arrive_as_they_are_made(self, backend: Any) -> None:
        """Output arrives in several deltas, not in a single one at the end.

        How to fix: push a delta after each engine step, or do not claim ``streaming``.
        """
        output = await self.greedy_output(backend)
        assert len(output.deltas) > 1, f"{self.max_output} tokens came in one delta"

    async def test_greedy_is_deterministic(self, backend: Any) -> None:
        """The same prompt at temperature 0 produces the same output twice.

        How to fix: always choose the most likely token at temperature 0. If a prefix cache or an autotuned kernel
        changes the numbers of the second run, disable it through ``options``, or use xfail with this reason.
        """
        first, second = await self.greedy_output(backend), await self.greedy_output(backend)
        assert first.token_ids == second.token_ids, f"{first.text!r}, then {second.text!r}"
        assert first.text == second.text

    async def test_usage_counts_the_tokens(self, backend: Any) -> None:
        """``usage`` counts the tokens of the prompt and exactly the token ids in the deltas.

        How to fix: count tokens when they are emitted; count end-of-sequence and stop tokens only if a delta contains
        them.
        """
        ids = await self.first_prompt_ids(backend)
        whole = await self.greedy_output(backend, ids)
        ways: list[SamplingParams] = [
            greedy(self.max_output),
            greedy(self.max_output, stop=[whole.text[-2:]]),
            greedy(self.max_output, stop_token_ids=[whole.token_ids[-1]]),
        ]
        if backend.get_capability().supports("parallel_sampling"):
            ways.append(SamplingParams(n=2, max_tokens=4))
        for params in ways:
            output = await generate_one(backend, ids, params)
            usage = output.counted()
            carried = sum(len(completion.token_ids) for completion in output.completions.values())
            assert usage.prompt_tokens == len(ids), f"{len(ids)} prompt token ids, usage {usage}"
            assert usage.completion_tokens == carried, f"deltas carried {carried} token ids, usage {usage}"
            assert usage.cached_tokens <= usage.prompt_tokens, (
                f"more cached tokens than prompt tokens: {usage}"
            )

    async def test_timing_is_ordered(self, backend: Any) -> None:
        """0 ≤ queue ≤ time to first token ≤ total, and the mean time between tokens is consistent with them.

        How to fix: use one monotonic clock for all times, in seconds, starting at acceptance. ``inter_token_s`` is
        (last token − first token) / (tokens − 1).
        """
        begun = time.monotonic()
        timing = (await self.greedy_output(backend)).measured()
        elapsed = time.monotonic() - begun
        assert 0 <= timing.queue_s <= timing.ttft_s <= timing.total_s, timing
        assert 0 < timing.total_s <= elapsed + _CLOCK_S, f"took {elapsed:.6f} s, and the stream says {timing}"
        assert timing.inter_token_s is not None, "inter_token_s is None for several tokens"
        assert timing.inter_token_s * (self.max_output - 1) <= timing.total_s + 1e-6, timing

    async def test_counters_grow(self, backend: Any) -> None:
        """``stats`` counts the request as finished and its tokens as output.

        How to fix: increment ``finished`` once per request, regardless of how it ended, and ``output_tokens`` per
        token.
        """
        before = await self.idle(backend)
        output = await self.greedy_output(backend)
        after = await self.idle(backend)
        assert after.finished == before.finished + 1, (
            f"finished went from {before.finished} to {after.finished}"
        )
        grown = after.output_tokens - before.output_tokens
        assert grown >= len(output.token_ids), (
            f"{len(output.token_ids)} tokens, output_tokens grew by {grown}"
        )

    # --- forms of prompts

    async def test_text_prompt_may_be_a_string_or_a_prompt(self, backend: Any) -> None:
        """A string, a ``Prompt`` and a list with one string are equivalent.

        How to fix: pass ``prompts`` through ``sage_infer.contracts.as_prompts`` first.
        """
        plain = await self.greedy_output(backend)
        wrapped = await self.greedy_output(backend, Prompt(text=self.prompts[0]))
        (listed,) = await generate_all(backend, [self.prompts[0]], greedy(self.max_output))
        assert plain.token_ids == wrapped.token_ids, "Prompt(text=…) differs from the plain string"
        assert plain.token_ids == listed.token_ids, "a list of one string differs from the string"

    async def test_token_ids_are_used_as_they_are(self, backend: Any) -> None:
        """A text, its token ids as a list, and ``Prompt(token_ids=…)`` produce the same output.

        How to fix: do not add special tokens to ``token_ids``; add the model's start tokens to ``text``.
        """
        ids = await self.first_prompt_ids(backend)
        listed = await self.greedy_output(backend, list(ids))
        wrapped = await self.greedy_output(backend, Prompt(token_ids=ids))
        assert listed.token_ids == wrapped.token_ids, "a list of ids differs from Prompt(token_ids=…)"
        counted = listed.counted().prompt_tokens
        assert counted == len(ids), f"{len(ids)} token ids, usage counts {counted}"
        if self.prompt_token_ids or backend.get_capability().supports("prefill_decode"):
            text = await self.greedy_output(backend)
            assert text.token_ids == listed.token_ids, (
                f"the text produces {text.text!r}, its token ids {listed.text!r}"
            )

    async def test_several_prompts_give_streams_in_order(self, backend: Any) -> None:
        """Each prompt has its own stream, in order, with the id ``id/0``, ``id/1``, …

        How to fix: use the ids of ``sage_infer.contracts.request_ids``, and keep the order of the prompts.
        """
        prompts = list(self.prompts[:3])
        alone = [await self.greedy_output(backend, prompt) for prompt in prompts]
        request_id = self.new_id()
        streams = await backend.generate(prompts, greedy(self.max_output), request_id=request_id)
        assert [stream.request_id for stream in streams] == [f"{request_id}/{i}" for i in range(3)]
        for prompt, expected, stream in zip(prompts, alone, streams, strict=True):
            self.same(await read(stream), expected, f"prompt {prompt!r} among several and alone")

    async def test_one_prompt_keeps_its_request_id(self, backend: Any) -> None:
        """The stream of a single prompt has the given request id; without an id, unique ids are generated.

        How to fix: use ``request_id`` unchanged for one prompt, and generate a unique one if it is None.
        """
        request_id = self.new_id()
        output = await generate_one(backend, self.prompts[0], greedy(1), request_id=request_id)
        assert output.request_id == request_id
        drawn = {(await self.greedy_output(backend, max_tokens=1)).request_id for _ in range(3)}
        assert len(drawn) == 3, f"requests without an id share one: {drawn}"

    async def test_a_finished_request_id_can_be_used_again(self, backend: Any) -> None:
        """An id can be reused after its request has ended.

        How to fix: release the id when the last completion has finished.
        """
        request_id = self.new_id()
        for _ in range(2):
            await generate_one(backend, self.prompts[0], greedy(1), request_id=request_id)
            await self.idle(backend)

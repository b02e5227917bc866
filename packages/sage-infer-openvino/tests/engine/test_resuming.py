"""Resumed requests on a toy model: start, cost, end, and rejected states."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
from openvino_toy import BLOCK, EOS, MODEL, Toy, deltas, greedy, run, tokens, toy_greedy
from sage_infer.contracts import Resuming
from sage_infer.errors import (
    CapabilityMismatch,
    EngineDead,
    InvalidRequest,
    Overloaded,
    RequestCancelled,
    SageInferError,
    UnsupportedFeature,
)
from sage_infer.schemas import DecodeState, GuidedDecoding, RequestOptions, SamplingParams, TokenDelta
from sage_infer.schemas.codec import from_json, to_json

PROMPT = list(range(30, 40))
WHOLE = toy_greedy(PROMPT, 12)


def state(output: Sequence[int] = (), delivered: int = 0, index: int = 0, **params: Any) -> DecodeState:
    asked = greedy(**{"max_tokens": 12, **params})
    return DecodeState(
        request_id="elsewhere", model_id=MODEL.model_id, instance_id="elsewhere", prompt_token_ids=PROMPT,
        output_token_ids=output, delivered_chars=delivered, index=index, params=asked, seed=asked.seed or 0,
    )  # fmt: skip


def states_after(given: Sequence[TokenDelta], params: SamplingParams) -> list[DecodeState]:
    """States of the completions that have not ended with these deltas."""
    made = []
    for index in range(params.n):
        own = [delta for delta in given if delta.index == index]
        if not own or own[-1].finish_reason is None:
            output = [token for delta in own for token in delta.token_ids]
            delivered = sum(len(delta.text) for delta in own)
            made.append(attrs.evolve(state(output, delivered, index), params=params, seed=params.seed or 0))
    return made


def outcome(parts: Sequence[TokenDelta], index: int) -> tuple[list[int], str, str | None]:
    own = [delta for delta in parts if delta.index == index]
    return [t for d in own for t in d.token_ids], "".join(d.text for d in own), own[-1].finish_reason


# --- where it begins


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 1.0, "seed": 3, "presence_penalty": 1.5, "frequency_penalty": 0.5},
        {"temperature": 1.0, "seed": 3, "repetition_penalty": 1.5, "n": 3},
        {"stop": [bytes(WHOLE).decode("utf-8", "replace")[6:8]], "min_tokens": 3},
        {"stop_token_ids": [WHOLE[9]], "min_tokens": 9, "logprobs": 2},
        {"temperature": 1.0, "seed": 3, "guided": GuidedDecoding(regex="[a-z]{3}(é|😀|🏴)[0-9]{6}")},
    ],
    ids=["greedy", "penalties", "n", "stop", "min_tokens", "guided"],
)
def test_resumed_after_every_delta(params: dict[str, Any]) -> None:
    async def main() -> None:
        async with Toy(num_blocks=256, max_queue=1000) as here, Toy(num_blocks=256) as there:
            asked = greedy(20, **params)
            stream = await here.generate(PROMPT, asked)
            whole = await deltas(stream)
            for cut in range(len(whole)):
                states = states_after(whole[:cut], asked)
                stream = await there.backend.resume(states, request_id="r")
                joined = [*whole[:cut], *await deltas(stream)]
                count = 0
                for index in range(asked.n):
                    assert outcome(joined, index) == outcome(whole, index), f"cut after {cut}"
                    count += len(outcome(whole, index)[0]) if index in {s.index for s in states} else 0
                assert stream.usage is not None
                assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == (len(PROMPT), count)
            await there.idle()

    run(main())


def test_held_back_text_comes_first() -> None:
    async def main() -> None:
        async with Toy() as toy:
            assert isinstance(toy.backend, Resuming)
            parts = await deltas(await toy.generate(PROMPT, greedy(12)))
            text = "".join(delta.text for delta in parts)
            shown = sum(len(delta.text) for delta in parts[:8])
            for delivered in range(shown + 1):
                stream = await toy.backend.resume([state(WHOLE[:8], delivered)], request_id="r")
                rest = await deltas(stream)
                assert [d.token_ids for d in rest] == [(token,) for token in WHOLE[8:]]
                assert "".join(d.text for d in rest) == text[delivered:]

    run(main())


def test_states_in_any_order_after_json() -> None:
    async def main() -> None:
        async with Toy() as toy:
            params = greedy(12, n=3, temperature=1.0, seed=8)
            whole = await deltas(await toy.generate(PROMPT, params))
            states = [from_json(to_json(s), DecodeState) for s in states_after(whole[:18], params)]
            stream = await toy.backend.resume(states[::-1][:2], request_id="r")
            rest = await deltas(stream)
            assert {delta.index for delta in rest} == {1, 2}
            assert stream.finish_reason == "length"

    run(main())


def test_state_of_prefill_is_resumed() -> None:
    """Its KV may be gone: what its chunks name is not needed."""

    async def main() -> None:
        async with Toy() as here, Toy() as there:
            made = await here.backend.prefill(PROMPT, request_id="a", params=greedy(12))
            for toy in (here, there):
                stream = await toy.backend.resume(made.states, request_id="b")
                assert await tokens(stream) == WHOLE[1:]

    run(main())


# --- what it costs


def test_prompt_and_given_tokens_come_from_the_prefix_cache() -> None:
    async def main() -> None:
        async with Toy() as toy:
            await tokens(await toy.generate(PROMPT, greedy(12)))
            before = toy.backend.stats()
            stream = await toy.backend.resume([state(WHOLE[:8])], request_id="r")
            await tokens(stream)
            after = toy.backend.stats()
            assert stream.usage is not None
            assert stream.usage.cached_tokens == len(PROMPT)
            assert after.prefix_hit_tokens - before.prefix_hit_tokens == 16  # of 18 with blocks of 4
            assert after.prompt_tokens - before.prompt_tokens == 2
            assert after.output_tokens - before.output_tokens == 4

    run(main())


def test_a_salted_resume_shares_no_other_requests_kv() -> None:
    async def main() -> None:
        async with Toy() as toy:
            await tokens(await toy.generate(PROMPT, greedy(12)))
            for expected in (0, len(PROMPT)):
                stream = await toy.backend.resume(
                    [state(WHOLE[:8])], request_id="r", options=RequestOptions(cache_salt="mine")
                )
                assert await tokens(stream) == WHOLE[8:]
                assert stream.usage is not None
                assert stream.usage.cached_tokens == expected

    run(main())


def test_preemption_does_not_change_a_resumed_output() -> None:
    async def main() -> None:
        async with Toy(num_blocks=9) as toy:
            prompts = [[first, *PROMPT[1:]] for first in range(6)]
            whole = [toy_greedy(prompt, 16) for prompt in prompts]
            streams = []
            toy.runner.gate.clear()  # so that all of them run together
            for i, prompt in enumerate(prompts):
                given = attrs.evolve(state(whole[i][:5], max_tokens=16), prompt_token_ids=prompt)
                streams.append(await toy.backend.resume([given], request_id=f"r{i}"))
            toy.runner.gate.set()
            assert await asyncio.gather(*map(tokens, streams)) == [output[5:] for output in whole]
            assert toy.backend.stats().extensions["preemptions"] > 0
            await toy.idle()

    run(main())


# --- how it ends


def test_cancel_abort_deadline_and_close() -> None:
    async def main() -> None:
        async with Toy(1 << 16, limit=1 << 18) as toy:  # no output reaches its limit meanwhile
            endless = state(WHOLE[:3], max_tokens=None)
            (await toy.backend.resume([endless], request_id="r")).cancel()
            await toy.idle()
            stream = await toy.backend.resume([endless], request_id="r")
            with pytest.raises(InvalidRequest, match="'r' is in use"):
                await toy.backend.resume([endless], request_id="r")
            toy.runner.gate.set()
            await toy.backend.abort("r")
            with pytest.raises(RequestCancelled, match="aborted"):
                await deltas(stream)
            toy.runner.gate.clear()
            stream = await toy.backend.resume(
                [endless], request_id="r", options=RequestOptions(deadline=0.001)
            )
            await asyncio.sleep(0.002)  # past the deadline, in the queue or in a step
            toy.runner.gate.set()
            with pytest.raises(RequestCancelled, match="deadline"):
                await deltas(stream)
            await toy.idle()
            stream = await toy.backend.resume([endless], request_id="r")
        with pytest.raises(RequestCancelled, match="closed"):
            await deltas(stream)
        with pytest.raises(EngineDead):
            await toy.backend.resume([endless], request_id="r")

    run(main())


def test_a_full_queue_is_overloaded() -> None:
    async def main() -> None:
        async with Toy(max_queue=1) as toy:
            toy.runner.gate.clear()
            async with await toy.backend.resume([state(max_tokens=None)], request_id="r"):
                with pytest.raises(Overloaded):
                    await toy.backend.resume([state()], request_id="s")
            toy.runner.gate.set()
            await toy.idle()

    run(main())


# --- refusals


def test_states_that_cannot_be_resumed_are_refused() -> None:
    text = bytes(WHOLE).decode("utf-8", "replace")
    yes = GuidedDecoding(choice=("yes", "no"))
    plain, other = state(n=2), state(n=2, index=1)
    cases: list[tuple[list[DecodeState], type[SageInferError], str]] = [
        ([], InvalidRequest, "no state to resume"),
        ([plain, attrs.evolve(other, prompt_token_ids=[1])], InvalidRequest, "differ in prompt_token_ids"),
        ([plain, attrs.evolve(other, params=greedy(5, n=2))], InvalidRequest, "differ in params"),
        ([plain, attrs.evolve(other, seed=5)], InvalidRequest, "differ in seed"),
        ([attrs.evolve(state(seed=4), seed=5)], InvalidRequest, "seed is 5, but that of its params is 4"),
        ([plain, plain], InvalidRequest, "completion 0 is repeated"),
        ([plain, state(n=2, index=2)], InvalidRequest, "completion 2 has an invalid index"),
        ([attrs.evolve(plain, finish_reason="stop")], InvalidRequest, r"has finished \(stop\)"),
        ([state(WHOLE)], InvalidRequest, "12 output tokens, but max_tokens is 12"),
        ([attrs.evolve(plain, model_id="x")], CapabilityMismatch, "to model 'x', but 'toy' is loaded"),
        (
            [attrs.evolve(plain, weights_id="x")],
            CapabilityMismatch,
            "weights x, but this instance has toy-source",
        ),
        ([state([1] * 195, max_tokens=None)], CapabilityMismatch, "205 tokens with its prompt"),
        ([attrs.evolve(plain, prompt_token_ids=[500])], InvalidRequest, "token id 500"),
        ([state([5, 257])], InvalidRequest, "token 1 of the output of completion 0 is 257"),
        (
            [state([*b"yax"], guided=yes)],
            InvalidRequest,
            r"token 1 of the output .*\(id 97\) violates",
        ),
        ([state([*b"no"], guided=yes)], InvalidRequest, r"token 1 .* ended the output \(stop\)"),
        ([state([5, EOS, 6], ignore_eos=False)], InvalidRequest, r"token 1 .* ended the output"),
        ([state(WHOLE[:8], stop=[text[3:5]])], InvalidRequest, "ended the output"),
        ([state([*b"abc"], 4)], InvalidRequest, "is 4, but its 3 tokens have 3 characters"),
        ([state([0xC3], 1)], InvalidRequest, "is 1, but its 1 tokens have 0 characters"),
        ([state([*b"abc"], 3, stop=["cd"])], InvalidRequest, "is 3, but its 3 tokens have 2 characters"),
        ([state(adapter="x")], UnsupportedFeature, "adapter"),
    ]

    async def main() -> None:
        async with Toy() as toy:
            for states, error, says in cases:
                with pytest.raises(error, match=says):
                    await toy.backend.resume(states, request_id="r")
                await toy.idle()
            options = RequestOptions(session="x")
            with pytest.raises(UnsupportedFeature, match="session"):
                await toy.backend.resume([plain], request_id="r", options=options)
            assert toy.backend.stats().finished == 0

    run(main())


def test_full_blocks_of_a_resumed_request_are_shared() -> None:
    async def main() -> None:
        async with Toy() as toy:
            await tokens(await toy.backend.resume([state(WHOLE[:8])], request_id="r"))
            stream = await toy.generate([*PROMPT, *WHOLE[:8], 1], greedy(1))
            await tokens(stream)
            assert stream.usage is not None
            assert stream.usage.cached_tokens == (len(PROMPT) + 8) // BLOCK * BLOCK

    run(main())

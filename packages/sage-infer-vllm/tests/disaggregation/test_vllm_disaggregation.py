"""Prefill and decode apart on a real vLLM: equal to ``generate``, and nothing is left of what was held."""

from __future__ import annotations

import asyncio
import os
import random
import time
from pathlib import Path
from typing import Any

import attrs
import pytest
from sage_infer.errors import (
    CapabilityMismatch,
    InvalidRequest,
    KVCorrupt,
    OutOfMemory,
    Overloaded,
    RequestCancelled,
    UnsupportedFeature,
)
from sage_infer.schemas import GuidedDecoding, RequestOptions, SamplingParams
from vllm_apart import apart, generated, prompt_of, read, used, used_in_engine
from vllm_toys import have_vllm

pytestmark = pytest.mark.skipif(
    not have_vllm("0.23"),
    reason="vLLM 0.23 or newer is not installed in this environment; `hatch run vllm:test` has it",
)

PAGE = 128
LENGTHS = (1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE, 400)
ABORT_POINTS = int(os.environ.get("SAGE_ABORT_POINTS", "60"))  # the nightly run has more
JSON = {"type": "object", "properties": {"name": {"enum": ["Ada", "Alan"]}}, "required": ["name"]}


@pytest.fixture(autouse=True)
def _started(live: Any) -> None:
    assert live.backend is not None


def cpu_s(pids: list[int]) -> float:
    """CPU time of these processes so far."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(found[11]) + int(found[12]) for found in fields) / os.sysconf("SC_CLK_TCK")


# --- equal to generate

GREEDY = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True}
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "seed": {"temperature": 1.0, "seed": 7, "max_tokens": 10, "ignore_eos": True},
    "penalties": {
        **GREEDY, "max_tokens": 12, "presence_penalty": 1.0, "frequency_penalty": 0.7, "repetition_penalty": 1.3,
    },
    "guided": {"temperature": 1.0, "seed": 3, "max_tokens": 30, "guided": GuidedDecoding(json_schema=JSON)},
    "log probabilities": {**GREEDY, "logprobs": 2},
    "least length": {"temperature": 0.0, "max_tokens": 12, "min_tokens": 12},
}  # fmt: skip


@pytest.mark.parametrize("move", [False, True], ids=["held", "moved"])
@pytest.mark.parametrize("name", SAMPLINGS)
def test_prefill_and_decode_equal_generate(live: Any, name: str, move: bool) -> None:
    params = SamplingParams(**SAMPLINGS[name])

    async def main() -> None:
        for prompt in ("My favourite colour is", prompt_of(200)):
            expected = await generated(live.backend, prompt, params)
            assert await apart(live.backend, prompt, params, move=move) == expected
        assert used(live.backend) == 0

    live.run(main())


@pytest.mark.parametrize("move", [False, True], ids=["held", "moved"])
def test_prompts_around_the_ends_of_pages(live: Any, move: bool) -> None:
    params = SamplingParams(**GREEDY)

    async def main() -> None:
        for length in LENGTHS:
            prompt = prompt_of(length, start=2000 + length)
            expected = await generated(live.backend, prompt, params)
            assert await apart(live.backend, prompt, params, move=move) == expected, length
        assert await used_in_engine(live.backend) == 0

    live.run(main())


def test_a_stop_text_that_begins_with_the_first_token(live: Any) -> None:
    async def main() -> None:
        free = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
        whole = await generated(live.backend, "Once upon a time", free)
        first = (await live.backend.detokenize(whole["tokens"][:1])).strip()
        second = await live.backend.detokenize(whole["tokens"][:2])
        across = second.strip()[len(first) - 1 :][:3]
        for stop in (across, first[:1]):
            params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop=(stop,))
            expected = await generated(live.backend, "Once upon a time", params)
            assert expected["reason"] == "stop"
            assert await apart(live.backend, "Once upon a time", params) == expected, stop
        assert await used_in_engine(live.backend) == 0

    live.run(main())


def test_a_request_that_ends_with_its_first_token_is_only_delivered(live: Any) -> None:
    async def main() -> None:
        backend, params = live.backend, SamplingParams(temperature=0, max_tokens=1, logprobs=1)
        expected = await generated(backend, "I am", params)
        result = await backend.prefill("I am", request_id="done", params=params)
        (state,) = result.states
        assert state.finish_reason == "length"
        assert not state.chunks
        assert used(backend) == 0
        for _ in range(2):
            assert await read((await backend.decode(state, request_id="done")).stream) == expected
        moved, buffers = await backend.export_kv(state)
        assert not buffers
        assert (await backend.import_kv(moved, buffers)).output_token_ids == state.output_token_ids

    live.run(main())


def test_a_drawn_seed_travels_with_the_state(live: Any) -> None:
    async def main() -> None:
        backend, params = live.backend, SamplingParams(temperature=1.5, max_tokens=6, ignore_eos=True)
        result = await backend.prefill("The year", request_id="drawn", params=params)
        (state,) = result.states
        output = await read((await backend.decode(state, request_id="drawn")).stream)
        again = await generated(backend, "The year", attrs.evolve(params, seed=state.seed))
        assert output == again

    live.run(main())


def test_several_states_decode_beside_a_plain_request(live: Any) -> None:
    """Three holds that share pages, decoded in one batch, from the last to the first."""

    async def main() -> None:
        backend, params = live.backend, SamplingParams(**GREEDY)
        prompts = [prompt_of(length, start=3000) for length in (16, 200, 390)]
        expected = [await generated(backend, prompt, params) for prompt in prompts]
        result = await backend.prefill(prompts, request_id="three", params=params)
        assert used(backend) == 1 + 2 + 4 - 1  # the first page of the longer two is the same
        streams = [
            (await backend.decode(state, request_id=state.request_id)).stream
            for state in reversed(result.states)
        ]
        plain = asyncio.ensure_future(generated(backend, "Chapter", params))
        assert [await read(stream) for stream in reversed(streams)] == expected
        await plain
        assert await used_in_engine(backend) == 0

    live.run(main())


def test_an_adapters_state_decodes_with_the_adapter_and_does_not_leave(live: Any) -> None:
    async def main() -> None:
        backend, params = live.backend, SamplingParams(**GREEDY, adapter="noise")
        expected = await generated(backend, prompt_of(150), params)
        assert await apart(backend, prompt_of(150), params) == expected
        result = await backend.prefill(prompt_of(150), request_id="lora", params=params)
        with pytest.raises(UnsupportedFeature, match="adapter 'noise' stays in its engine"):
            await backend.export_kv(result.states[0])
        await backend.abort("lora")

    live.run(main())


# --- what is held


def test_an_idle_engine_with_a_hold_takes_no_steps(live: Any) -> None:
    async def main() -> None:
        backend = live.backend
        await backend.prefill(prompt_of(300), request_id="hold", params=SamplingParams(**GREEDY))
        running = backend._running
        await running.call_workers("sage_page_bytes")  # the engine has ended what came before
        before, pids, shares = running.engine.counters.steps, running.engine.processes.members(), [1.0]
        while shares[-1] >= 0.05:  # a worker of vLLM polls for a second after each call, and then it waits
            assert len(shares) < 60, shares
            cpu, began = cpu_s(pids), time.monotonic()
            await asyncio.sleep(1.0)
            shares.append((cpu_s(pids) - cpu) / (time.monotonic() - began))
        print("CPU of an engine with a hold, in each second:", *[f"{share:.1%}" for share in shares[1:]])
        await running.call_workers("sage_page_bytes")
        assert running.engine.counters.steps - before <= 1  # the one that forgets the ended request
        assert used(backend) == 3
        await backend.abort("hold")
        assert used(backend) == 0
        assert await used_in_engine(backend) == 0

    live.run(main())


def test_a_held_id_is_in_use(live: Any) -> None:
    async def main() -> None:
        backend, params = live.backend, SamplingParams(**GREEDY)
        result = await backend.prefill("a", request_id="taken", params=params)
        for call in (
            backend.generate("b", params, request_id="taken"),
            backend.prefill("b", request_id="taken", params=params),
        ):
            with pytest.raises(InvalidRequest, match="'taken' is in use: its KV is held"):
                await call
        (state,) = result.states
        with pytest.raises(InvalidRequest, match="other tokens than the state's"):
            await backend.decode(attrs.evolve(state, output_token_ids=(5,)), request_id="taken")
        with pytest.raises(InvalidRequest, match="is in instance elsewhere"):
            await backend.decode(attrs.evolve(state, instance_id="elsewhere"), request_id="taken")
        await read((await backend.decode(state, request_id="another")).stream)
        with pytest.raises(InvalidRequest, match="is not held here"):
            await backend.decode(state, request_id="taken")

    live.run(main())


def test_a_salt_is_that_of_prefill(live: Any) -> None:
    async def main() -> None:
        backend, params = live.backend, SamplingParams(**GREEDY)
        salted = RequestOptions(cache_salt="tenant")
        expected = await generated(backend, prompt_of(260), params)
        result = await backend.prefill(prompt_of(260), request_id="salt", params=params, options=salted)
        assert result.usage.cached_tokens == 0
        (state,) = result.states
        other = RequestOptions(cache_salt="other")
        with pytest.raises(InvalidRequest, match="cache_salt of decode is not that of the prefill"):
            await backend.decode(state, request_id="salt", options=other)
        stream = (await backend.decode(state, request_id="salt")).stream
        assert await read(stream) == expected
        assert stream.usage.cached_tokens == 0  # of prefill; decode itself found everything

    live.run(main())


def test_random_abort_points_leave_nothing(live: Any) -> None:
    """Requests are given up while they wait, compute, are held, are exported, and decode."""

    async def main() -> None:
        backend, chance = live.backend, random.Random(5)
        params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)

        async def one(number: int) -> None:
            request_id = f"r{number}"
            prompt = prompt_of(chance.choice((5, 130, 300)), start=chance.randrange(1000, 9000))

            async def whole() -> None:
                result = await backend.prefill(prompt, request_id=request_id, params=params)
                state = result.states[0]
                if number % 3 == 0:
                    state, buffers = await backend.export_kv(state)
                    await backend.abort(request_id)
                    state = await backend.import_kv(state, buffers)
                await read((await backend.decode(state, request_id=request_id)).stream)

            task = asyncio.ensure_future(whole())
            await asyncio.wait([task], timeout=chance.random() * 2)
            if number % 2:
                task.cancel()
            await backend.abort(request_id)
            await asyncio.gather(task, return_exceptions=True)
            await backend.abort(request_id)
            if not task.cancelled() and (error := task.exception()) is not None:
                assert isinstance(error, RequestCancelled | InvalidRequest), error

        for start in range(0, ABORT_POINTS, 6):
            await asyncio.gather(*[one(number) for number in range(start, start + 6)])
        assert used(backend) == 0
        assert not list(backend._running.held)
        assert await used_in_engine(backend) == 0

    live.run(main())


# --- refusals


def test_states_that_do_not_fit_are_refused(live: Any) -> None:
    async def main() -> None:
        backend, params = live.backend, SamplingParams(**GREEDY)
        result = await backend.prefill(prompt_of(140), request_id="x", params=params)
        state, buffers = await backend.export_kv(result.states[0])
        await backend.abort("x")
        own = state.extensions["vllm"]
        for wrong, error, message in (
            ({"kv_schema": None, "chunks": ()}, CapabilityMismatch, "has no KV"),
            ({"weights_id": "0" * 32}, CapabilityMismatch, "with the weights 0000"),
            (
                {"weights_id": "", "extensions": {"vllm": {**own, "key_space": "0" * 32}}},
                CapabilityMismatch,
                "other weights, or computed in another precision",
            ),
            ({"output_token_ids": (1, 2)}, InvalidRequest, "2 output tokens"),
            ({"output_token_ids": (10**6,)}, InvalidRequest, "token id 1000000"),
            ({"kv_tokens": 128}, InvalidRequest, "imports whole prompts"),
            ({"prompt_token_ids": tuple(prompt_of(511))}, CapabilityMismatch, "the limit here is 512"),
            ({"params": attrs.evolve(params, adapter="noise")}, UnsupportedFeature, "stays in its engine"),
            ({"chunks": state.chunks[::-1]}, KVCorrupt, "is not that of this prompt's tokens from 0 on"),
            ({"chunks": state.chunks[:1]}, KVCorrupt, "got 2 buffers and 1 KV chunks"),
        ):  # fmt: skip
            with pytest.raises(error, match=message):
                await backend.import_kv(attrs.evolve(state, **wrong), buffers)
        with pytest.raises(UnsupportedFeature, match="n is 2"):
            await backend.prefill("a", request_id="x", params=SamplingParams(temperature=1, n=2))
        with pytest.raises(InvalidRequest, match="hold_s must be"):
            await backend.prefill("a", request_id="x", params=params, hold_s=0)
        with pytest.raises(OutOfMemory, match="needs 256 blocks, but there are only"):
            await backend.prefill([prompt_of(400)] * 64, request_id="x", params=params)
        assert not list(backend._running.held)

    live.run(main())


def test_imported_kv_has_a_limit(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        backend, params = live.backend, SamplingParams(**GREEDY)
        result = await backend.prefill(prompt_of(140), request_id="x", params=params)
        state, buffers = await backend.export_kv(result.states[0])
        await backend.abort("x")
        monkeypatch.setattr(backend._running.engine, "kv_bytes", 3 * buffers[0].nbytes)
        first = await backend.import_kv(state, buffers)
        with pytest.raises(Overloaded, match="exceed the limit"):
            await backend.import_kv(attrs.evolve(state, request_id="y"), buffers)
        with pytest.raises(InvalidRequest, match="'x' is in use"):
            await backend.import_kv(state, buffers)
        await backend.abort("x")
        with pytest.raises(InvalidRequest, match="is not held here"):
            await backend.decode(first, request_id="x")

    live.run(main())


def test_an_export_shows_nothing_of_other_requests(live: Any) -> None:
    """The rest of a page that the prompt does not fill is zero, whoever used the page before."""

    async def main() -> None:
        backend, params = live.backend, SamplingParams(**GREEDY)
        schema, length = backend.get_kv_schema(), 5
        for start in range(20):  # pages get contents
            await generated(backend, prompt_of(250, start=1000 + 50 * start), params)
        result = await backend.prefill(prompt_of(length), request_id="x", params=params)
        _, (page,) = await backend.export_kv(result.states[0])
        await backend.abort("x")
        values = schema.num_layers * schema.num_heads * schema.head_dim * 2
        import numpy as np

        assert np.count_nonzero(np.frombuffer(page, np.float32)) <= values * length

    live.run(main())

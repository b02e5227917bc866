"""Separate prefill and decode: in one instance, between instances, and rejected states."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import attrs
import pytest
from openvino_toy import BLOCK, Toy, deltas, greedy, run, tokens, toy_greedy
from sage_infer.errors import (
    CapabilityMismatch,
    InvalidRequest,
    KVCorrupt,
    OutOfMemory,
    Overloaded,
    RequestCancelled,
    UnsupportedFeature,
)
from sage_infer.schemas import DecodeState, ModelDescriptor, RequestOptions, SamplingParams
from sage_infer.schemas.codec import from_json, to_json

PROMPT = list(range(30, 40))
OTHERS = [[first, *PROMPT[1:]] for first in (1, 2, 3)]


async def prefill(toy: Toy, prompt: Any = PROMPT, request_id: str = "a", **params: Any) -> DecodeState:
    asked = greedy(**{"max_tokens": 12, **params})
    result = await toy.backend.prefill(prompt, request_id=request_id, params=asked)
    return result.states[0]


async def decode(toy: Toy, state: DecodeState, request_id: str = "b") -> list[int]:
    return await tokens((await toy.backend.decode(state, request_id=request_id)).stream)


def through_json(state: DecodeState) -> DecodeState:
    return from_json(to_json(state), DecodeState)


# --- in one instance


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0, "seed": 3}, {"logprobs": 2}])
def test_prefill_and_decode_are_generate(params: dict[str, Any]) -> None:
    async def main() -> None:
        async with Toy() as toy:
            whole = await deltas(await toy.generate(PROMPT, greedy(12, **params)))
            state = await prefill(toy, **params)
            assert through_json(state) == state
            await toy.idle(free=toy.runner.num_blocks - 3)
            assert (
                await deltas((await toy.backend.decode(through_json(state), request_id="b")).stream) == whole
            )
            await toy.idle()
            assert toy.backend.stats().extensions["held"] == 0

    run(main())


def test_several_prompts_have_states_in_order() -> None:
    async def main() -> None:
        async with Toy() as toy:
            result = await toy.backend.prefill([PROMPT, PROMPT[:3]], request_id="a", params=greedy(7))
            assert [state.request_id for state in result.states] == ["a/0", "a/1"]
            assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (13, 2)
            assert 0 <= result.timing.queue_s <= result.timing.ttft_s <= result.timing.total_s
            outputs = await asyncio.gather(*(decode(toy, s, f"d{i}") for i, s in enumerate(result.states)))
            assert outputs == [toy_greedy(PROMPT, 7), toy_greedy(PROMPT[:3], 7)]
            await toy.idle()

    run(main())


def test_timing_of_decode_is_its_own() -> None:
    async def main() -> None:
        async with Toy() as toy:
            state = await prefill(toy)
            await asyncio.sleep(0.2)
            started = time.perf_counter()
            stream = (await toy.backend.decode(state, request_id="b")).stream
            assert len(await tokens(stream)) == 12
            took = time.perf_counter() - started
            timing = stream.timing
            assert timing is not None
            assert 0 <= timing.queue_s <= timing.ttft_s <= timing.total_s <= took

    run(main())


def test_a_request_that_prefill_finishes_holds_nothing() -> None:
    async def main() -> None:
        async with Toy() as toy:
            state = await prefill(toy, max_tokens=1)
            assert (state.finish_reason, state.chunks) == ("length", ())
            await toy.idle()
            for _ in range(2):
                stream = (await toy.backend.decode(through_json(state), request_id="b")).stream
                assert await tokens(stream) == toy_greedy(PROMPT, 1)
                assert (stream.finish_reason, stream.usage and stream.usage.completion_tokens) == (
                    "length",
                    1,
                )

    run(main())


def test_decode_may_come_from_another_event_loop() -> None:
    toy = Toy()
    first = asyncio.new_event_loop()
    first.run_until_complete(toy.__aenter__())
    state = first.run_until_complete(prefill(toy))
    first.close()
    assert run(decode(toy, state)) == toy_greedy(PROMPT, 12)
    run(toy.__aexit__())


def test_a_cancelled_prefill_frees_its_blocks() -> None:
    async def main() -> None:
        async with Toy() as toy:
            for prompt in (PROMPT, [PROMPT, list(range(90))]):
                toy.runner.gate.clear()
                task = asyncio.ensure_future(toy.backend.prefill(prompt, request_id="a"))
                await toy.in_step()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                toy.runner.gate.set()
                await toy.idle()
            assert await decode(toy, await prefill(toy)) == toy_greedy(PROMPT, 12)

    run(main())


def test_abort_while_held_and_while_prefilling() -> None:
    async def main() -> None:
        async with Toy() as toy:
            state = await prefill(toy)
            await toy.backend.abort("a")
            await toy.idle()
            with pytest.raises(InvalidRequest, match="no prefilled request 'a'"):
                await decode(toy, state)
            with pytest.raises(InvalidRequest, match="no prefilled request 'a'"):
                await toy.backend.export_kv(state)
            toy.runner.gate.clear()
            task = asyncio.ensure_future(prefill(toy, list(range(90))))
            await toy.in_step()
            aborting = asyncio.ensure_future(toy.backend.abort("a"))
            await asyncio.sleep(0)
            toy.runner.gate.set()
            await aborting
            with pytest.raises(RequestCancelled):
                await task
            await toy.idle()

    run(main())


def test_a_state_decodes_once_and_unchanged() -> None:
    async def main() -> None:
        async with Toy() as toy:
            old = await prefill(toy)
            assert await decode(toy, old) == toy_greedy(PROMPT, 12)
            for call in (decode(toy, old), toy.backend.export_kv(old)):
                with pytest.raises(InvalidRequest, match="it was decoded, aborted, or prefilled in another"):
                    await call
            await prefill(toy, prompt=[1, 2, 3])
            with pytest.raises(InvalidRequest, match="tokens of held request"):
                await decode(toy, old)
            with pytest.raises(InvalidRequest, match="is in instance elsewhere"):
                await decode(toy, attrs.evolve(old, instance_id="elsewhere"))
            await toy.backend.abort("a")
            await toy.idle()

    run(main())


def test_decode_under_an_id_in_use_leaves_both_as_they_are() -> None:
    async def main() -> None:
        async with Toy() as toy:
            state = await prefill(toy)
            toy.runner.gate.clear()
            other = await toy.generate([1, 2], greedy(3), request_id="b")
            await toy.in_step()
            decoding = asyncio.ensure_future(toy.backend.decode(state, request_id="b"))
            await asyncio.sleep(0)
            toy.runner.gate.set()
            with pytest.raises(InvalidRequest, match="'b' is in use"):
                await decoding
            assert await tokens(other) == toy_greedy([1, 2], 3)
            assert await decode(toy, state, "a") == toy_greedy(PROMPT, 12)

    run(main())


def test_n_completions_have_no_state() -> None:
    async def main() -> None:
        async with Toy() as toy:
            with pytest.raises(UnsupportedFeature, match="n is 2"):
                await toy.backend.prefill(PROMPT, request_id="a", params=SamplingParams(n=2))

    run(main())


# --- too little memory


def test_prompts_that_never_fit_together_are_refused() -> None:
    async def main() -> None:
        async with Toy(num_blocks=8) as toy:
            with pytest.raises(OutOfMemory, match="needs 9 blocks, but there are only 8"):
                await toy.backend.prefill(OTHERS, request_id="a")
            await toy.idle()
            result = await toy.backend.prefill([PROMPT] * 3, request_id="a")  # two blocks are the same
            assert toy.backend.stats().kv_blocks_free == 3
            assert result.usage.cached_tokens == 16

    run(main())


def test_a_prefill_that_holds_blocks_and_cannot_get_the_rest_is_given_up() -> None:
    async def main() -> None:
        async with Toy(num_blocks=6) as toy:
            small = await prefill(toy, [1, 2], "small")
            with pytest.raises(Overloaded, match="not enough free KV blocks") as caught:
                await toy.backend.prefill(OTHERS[:2], request_id="a", params=greedy(3))
            assert caught.value.retry_after > 0
            await toy.idle(free=5)
            # A single prompt holds nothing, and waits until there is room.
            waiting = asyncio.ensure_future(prefill(toy, list(range(22)), "long"))
            assert await decode(toy, small) == toy_greedy([1, 2], 12)
            await toy.backend.abort((await waiting).request_id)
            await toy.idle()

    run(main())


def test_held_sequences_that_need_more_give_way_to_each_other() -> None:
    async def main() -> None:
        async with Toy(num_blocks=6) as toy:
            states = [await prefill(toy, prompt, name) for prompt, name in zip(OTHERS, "ab", strict=False)]
            assert toy.backend.stats().kv_blocks_free == 0
            outputs = await asyncio.gather(*(decode(toy, state, state.request_id) for state in states))
            assert outputs == [toy_greedy(prompt, 12) for prompt in OTHERS[:2]]
            await toy.idle()

    run(main())


# --- options and the end of a hold


def test_a_hold_ends_and_frees_its_blocks_and_decode_says_so() -> None:
    async def main() -> None:
        async with Toy(hold_s=0.05) as toy:
            state = await prefill(toy)  # by the backend's own limit
            asked = await toy.backend.prefill(PROMPT, request_id="long", params=greedy(3), hold_s=60)
            await toy.idle(free=toy.runner.num_blocks - 3)
            with pytest.raises(InvalidRequest, match=r"'a' was held for 0.05 s.*longer hold_s"):
                await decode(toy, state)
            assert await decode(toy, asked.states[0]) == toy_greedy(PROMPT, 3)
            await toy.idle()
            again = await toy.backend.prefill(PROMPT, request_id="a", params=greedy(3), hold_s=60)
            assert await decode(toy, again.states[0]) == toy_greedy(PROMPT, 3)
            for wrong in (0, -1.0, float("nan"), "5", True):
                with pytest.raises(InvalidRequest, match="hold_s must be a number of seconds above 0"):
                    await toy.backend.prefill(PROMPT, request_id="a", hold_s=wrong)  # type: ignore[arg-type]

    run(main())


def test_imported_kv_is_held_no_longer_than_the_backend_allows() -> None:
    async def main() -> None:
        async with Toy() as here, Toy(hold_s=0.05) as there:
            state, buffers = await moved(here)
            arrived = await there.backend.import_kv(state, buffers)
            await there.idle()
            with pytest.raises(InvalidRequest, match=r"was held for 0\.05 s"):
                await decode(there, arrived)

    run(main())


def test_deadlines_of_prefill_and_decode_are_each_their_own() -> None:
    async def main() -> None:
        async with Toy() as toy:
            with pytest.raises(RequestCancelled, match="missed its deadline") as caught:
                await toy.backend.prefill(PROMPT, request_id="a", options=RequestOptions(deadline=0.0))
            assert caught.value.by == "deadline"
            soon, started = RequestOptions(deadline=2.0), time.perf_counter()
            result = await toy.backend.prefill(PROMPT, request_id="a", params=greedy(12), options=soon)
            # Until prefill's deadline has passed, before which it had ended.
            await asyncio.sleep(max(0.0, started + 2.1 - time.perf_counter()))
            stream = (
                await toy.backend.decode(
                    result.states[0], request_id="b", options=RequestOptions(deadline=0.0)
                )
            ).stream
            with pytest.raises(RequestCancelled, match="missed its deadline"):
                await deltas(stream)
            await toy.idle()

    run(main())


def test_decode_takes_its_turn_by_its_own_priority() -> None:
    async def main() -> None:
        async with Toy(max_batch_size=1) as toy:
            held = await prefill(toy)
            toy.runner.gate.clear()
            running = await toy.generate([1], greedy(3))
            await toy.in_step()
            waiting = await toy.generate([2], greedy(3))
            urgent = RequestOptions(priority=-1)
            decoding = asyncio.ensure_future(toy.backend.decode(held, request_id="b", options=urgent))
            await asyncio.sleep(0)  # now its command waits for the step to end
            before = len(toy.runner.steps)
            toy.runner.gate.set()
            assert await tokens((await decoding).stream) == toy_greedy(PROMPT, 12)
            await asyncio.gather(tokens(running), tokens(waiting))
            steps = [step[0] for step in toy.runner.steps[before:]]
            assert steps[3] == (1, len(PROMPT))  # after the running one's three
            assert steps[14] == (1, 0)  # the waiting one's first

    run(main())


def test_every_entry_point_rejects_unclaimed_features() -> None:
    async def main() -> None:
        async with Toy() as toy:
            state = await prefill(toy)
            options = RequestOptions(session="s", chain="c")
            says = r"options.session \(feature session\), options.chain \(feature chain\)"
            for call in (
                toy.backend.generate(PROMPT, greedy(1), options=options),
                toy.backend.prefill(PROMPT, request_id="x", options=options),
                toy.backend.decode(state, request_id="x", options=options),
            ):
                with pytest.raises(UnsupportedFeature, match=says):
                    await call
            assert await decode(toy, state) == toy_greedy(PROMPT, 12)

    run(main())


# --- to another instance


async def moved(source: Toy, **params: Any) -> tuple[DecodeState, list[memoryview]]:
    state, buffers = await source.backend.export_kv(await prefill(source, **params))
    await source.backend.abort("a")
    await source.idle()
    return through_json(state), [memoryview(bytes(buffer)) for buffer in buffers]


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:8], PROMPT[:1]])
@pytest.mark.parametrize("params", [{}, {"temperature": 1.0, "seed": 3}, {"temperature": 1.0}])
def test_another_instance_continues(prompt: list[int], params: dict[str, Any]) -> None:
    async def main() -> None:
        async with Toy() as here, Toy() as there:
            await there.generate([9] * 20, greedy(100))  # so that other blocks are free there
            state, buffers = await moved(here, prompt=prompt, **params)
            assert [chunk.nbytes for chunk in state.chunks] == [buffer.nbytes for buffer in buffers]
            assert [chunk.token_end for chunk in state.chunks][-1] == len(prompt)
            arrived = await there.backend.import_kv(state, buffers)
            assert arrived.instance_id != state.instance_id
            assert all(chunk.location for chunk in arrived.chunks)
            again = attrs.evolve(state.params, seed=state.seed)
            expected = await tokens(await here.generate(prompt, again))
            assert await decode(there, arrived) == expected
            with pytest.raises(InvalidRequest):
                await decode(there, arrived)

    run(main())


def foreign(state: DecodeState) -> DecodeState:
    """What another engine with the same weights would write: its own names, and no extension of ours."""
    chunks = [attrs.evolve(chunk, chunk_id=f"{i:032x}") for i, chunk in enumerate(state.chunks)]
    return attrs.evolve(state, chunks=chunks, extensions={"other": {"x": 1}})


@pytest.mark.parametrize("weights_id", ["toy-source", ""])
def test_kv_of_another_engine_is_accepted_and_not_shared(weights_id: str) -> None:
    async def main() -> None:
        async with Toy() as here, Toy() as there:
            state, buffers = await moved(here)
            assert state.weights_id == "toy-source"
            state = attrs.evolve(foreign(state), weights_id=weights_id)
            arrived = await there.backend.import_kv(state, buffers)
            assert [chunk.chunk_id for chunk in arrived.chunks] == [c.chunk_id for c in state.chunks]
            stream = await there.generate(PROMPT, greedy(2))
            assert await tokens(stream) == toy_greedy(PROMPT, 2)
            assert stream.usage is not None
            assert stream.usage.cached_tokens == 0
            _, again = await there.backend.export_kv(arrived)
            assert list(map(bytes, again)) == list(map(bytes, buffers))
            assert await decode(there, arrived) == toy_greedy(PROMPT, 12)
            await there.idle()
            wrong = attrs.evolve(state, chunks=state.chunks[::-1])
            with pytest.raises(KVCorrupt, match="chunk 0 is not that of this prompt's tokens"):
                await there.backend.import_kv(wrong, buffers)

    run(main())


@pytest.mark.parametrize("length", [1, 8, 9, 10])
def test_missing_kv_of_the_prompt_is_computed(length: int) -> None:
    """Some engines hand over all tokens but the last, which they compute again to choose the next one."""

    async def main() -> None:
        async with Toy() as here, Toy() as there:
            state, buffers = await moved(here, prompt=PROMPT[:length])
            kept = max(length - 1, 1)
            count = -(-kept // BLOCK)
            chunks = [attrs.evolve(c, token_end=min(c.token_end, kept)) for c in state.chunks[:count]]
            partial = attrs.evolve(foreign(state), kv_tokens=kept, chunks=chunks)
            arrived = await there.backend.import_kv(partial, buffers[:count])
            assert await decode(there, arrived) == toy_greedy(PROMPT[:length], 12)
            await there.idle()

    run(main())


def test_salted_states_travel_and_stay_apart() -> None:
    async def main() -> None:
        async with Toy() as here, Toy() as there:
            salted = RequestOptions(cache_salt="secret")
            result = await here.backend.prefill(PROMPT, request_id="a", params=greedy(12), options=salted)
            plain = await prefill(here, request_id="plain")
            state, buffers = await here.backend.export_kv(result.states[0])
            assert "secret" not in to_json(state)
            assert {c.chunk_id for c in state.chunks}.isdisjoint(c.chunk_id for c in plain.chunks)
            with pytest.raises(InvalidRequest, match="prefilled with another cache_salt"):
                await here.backend.decode(
                    result.states[0], request_id="b", options=RequestOptions(cache_salt="other")
                )
            stream = (await here.backend.decode(result.states[0], request_id="b", options=salted)).stream
            assert await tokens(stream) == toy_greedy(PROMPT, 12)
            arrived = await there.backend.import_kv(through_json(state), buffers)
            for salt in ("", "secret"):
                other = await there.generate(PROMPT, greedy(2), cache_salt=salt)
                assert await tokens(other) == toy_greedy(PROMPT, 2)
                assert other.usage is not None
                assert other.usage.cached_tokens == 0
            stream = (await there.backend.decode(arrived, request_id="b", options=salted)).stream
            assert await tokens(stream) == toy_greedy(PROMPT, 12)

    run(main())


def test_import_of_a_finished_state_takes_nothing() -> None:
    async def main() -> None:
        async with Toy() as here, Toy() as there:
            state = await prefill(here, max_tokens=1, logprobs=1)
            state, buffers = await here.backend.export_kv(state) if state.chunks else (state, [])
            arrived = await there.backend.import_kv(through_json(state), buffers)
            await there.idle()
            (delta,) = await deltas((await there.backend.decode(arrived, request_id="x")).stream)
            assert (delta.finish_reason, list(delta.token_ids)) == ("length", toy_greedy(PROMPT, 1))
            (entry,) = delta.logprobs or ()
            assert entry.data == bytes(delta.token_ids)
            assert entry.alternative_data == (entry.data,)

    run(main())


def test_a_cancelled_import_frees_its_blocks() -> None:
    async def main() -> None:
        async with Toy() as here, Toy() as there:
            state, buffers = await moved(here)
            there.runner.gate.clear()
            stream = await there.generate([1], greedy(3))
            await there.in_step()
            task = asyncio.ensure_future(there.backend.import_kv(state, buffers))
            await asyncio.sleep(
                0.05
            )  # long enough for the checksums; the gate keeps the import itself waiting
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            there.runner.gate.set()
            assert len(await tokens(stream)) == 3
            await there.idle()

    run(main())


def test_damaged_buffers_are_refused_and_take_nothing() -> None:
    async def main() -> None:
        async with Toy() as here, Toy() as there:
            state, buffers = await moved(here)
            flipped = bytearray(buffers[1])
            flipped[3] ^= 1
            other, others = await moved(here, prompt=[7] * 10)
            swapped = attrs.evolve(state, chunks=other.chunks)
            cases = [
                (state, [buffers[0], memoryview(flipped), buffers[2]], "chunk 1 does not match its checksum"),
                (state, [buffers[0], buffers[1][:-1], buffers[2]], "chunk 1 has 31 bytes, expected 32"),
                (state, buffers[:2], "got 2 buffers and 3 KV chunks"),
                (attrs.evolve(state, chunks=state.chunks[:2]), buffers[:2], "expected 3 for this prompt"),
                (state, [buffers[1], buffers[0], buffers[2]], "checksum"),
                (swapped, others, "chunk 0 is not that of this prompt's tokens"),
            ]
            for wrong, data, says in cases:
                with pytest.raises(KVCorrupt, match=says):
                    await there.backend.import_kv(wrong, data)
                await there.idle()
            await there.backend.import_kv(state, buffers)
            with pytest.raises(InvalidRequest, match="'a' is in use"):
                await there.backend.import_kv(state, buffers)

    run(main())


def test_states_that_do_not_fit_are_refused() -> None:
    async def main() -> None:
        model = ModelDescriptor(model_id="other", model_type="llm", model_path="/other")
        async with Toy() as here, Toy(limit=11) as short, Toy(model=model) as other:
            state, buffers = await moved(here)
            schema = attrs.evolve(state.kv_schema, dtype="bf16")
            heads, private = (
                attrs.evolve(state.kv_schema, **c) for c in ({"num_heads": 2}, {"format_id": "nobodys-1"})
            )
            guided = attrs.evolve(state.params, adapter="x")
            wrong_token = attrs.evolve(state, output_token_ids=(5000,))
            cases: list[tuple[Toy, DecodeState, type[Exception], str]] = [
                (other, state, CapabilityMismatch, "to model 'toy', but 'other' is loaded"),
                (
                    here,
                    attrs.evolve(state, weights_id="b"),
                    CapabilityMismatch,
                    "weights b, but this instance has",
                ),
                (here, attrs.evolve(state, kv_schema=None, chunks=()), CapabilityMismatch, "has no KV"),
                (
                    here,
                    attrs.evolve(state, kv_tokens=11),
                    InvalidRequest,
                    "KV for 11 tokens, but its prompt has 10",
                ),
                (
                    here,
                    attrs.evolve(state, kv_schema=schema, weights_id=""),
                    CapabilityMismatch,
                    r"another format \(dtype\), and the state does not name its weights",
                ),
                (here, attrs.evolve(state, kv_schema=schema), KVCorrupt, "32 bytes, expected 16"),
                (here, attrs.evolve(state, kv_schema=heads), CapabilityMismatch, "num_heads differs"),
                (
                    here,
                    attrs.evolve(state, kv_schema=private),
                    CapabilityMismatch,
                    "no KV format codec reads 'nobodys-1'",
                ),
                (short, state, CapabilityMismatch, "exceeds the limit of this instance"),
                (here, attrs.evolve(state, prompt_token_ids=[1] * 300), InvalidRequest, "300 tokens"),
                (here, wrong_token, InvalidRequest, "token id 5000"),
                (here, attrs.evolve(state, output_token_ids=(1, 2)), InvalidRequest, "2 output tokens"),
                (here, attrs.evolve(state, params=guided), UnsupportedFeature, "feature lora"),
                (here, attrs.evolve(state, first_logprobs={"x": 1}), InvalidRequest, "first_logprobs"),
            ]
            for toy, wrong, error, says in cases:
                with pytest.raises(error, match=says):
                    await toy.backend.import_kv(wrong, buffers)
                await toy.idle()

    run(main())


def test_import_without_room_is_overloaded() -> None:
    async def main() -> None:
        async with Toy() as here, Toy(num_blocks=5) as there, Toy(max_queue=1) as busy:
            state, buffers = await moved(here)
            await prefill(there, prompt=[1] * 3 * BLOCK, request_id="held")
            with pytest.raises(Overloaded, match="3 KV blocks are needed, but only 2 are free"):
                await there.backend.import_kv(state, buffers)
            await prefill(busy, request_id="held")
            with pytest.raises(Overloaded, match="1 requests are open"):
                await busy.backend.import_kv(state, buffers)
            await there.backend.abort("held")
            assert await decode(there, await there.backend.import_kv(state, buffers)) == toy_greedy(
                PROMPT, 10
            )

    run(main())


# --- shared prefixes


def test_imported_blocks_are_found_by_later_prompts() -> None:
    async def main() -> None:
        async with Toy() as here, Toy() as there:
            state, buffers = await moved(here)
            await there.backend.import_kv(state, buffers)
            stream = await there.generate([*PROMPT[:8], 1, 2, 3], greedy(5))
            assert await tokens(stream) == toy_greedy([*PROMPT[:8], 1, 2, 3], 5)
            assert stream.usage is not None
            assert stream.usage.cached_tokens == 8

    run(main())

"""The engine on a toy model: every way in which a request can end, and the state afterwards."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import threading
import time
from typing import Any

import attrs
import pytest
from openvino_toy import (
    EOS,
    Toy,
    deltas,
    eventually,
    greedy,
    run,
    tokens,
    toy_greedy,
)
from sage_infer.errors import (
    ContextLengthExceeded,
    EngineDead,
    InvalidRequest,
    Overloaded,
    RequestCancelled,
    SchemaError,
    UnsupportedFeature,
)
from sage_infer.schemas import RequestOptions, SamplingParams

PROMPT = [5, 6, 7]


def prompts(count: int, length: int = 6) -> list[list[int]]:
    return [[(7 * i + j) % 256 for j in range(length)] for i in range(count)]


def end_unseen(toy: Toy) -> None:
    """Wait until a request has ended, and keep the event loop from being told."""
    while toy.backend.stats().finished == 0:
        time.sleep(0.001)


# --- outputs


def test_concurrent_prompts_equal_separate_ones() -> None:
    async def main() -> None:
        async with Toy(num_blocks=256) as toy:
            many = [p[: 1 + i % 6] for i, p in enumerate(prompts(32))]
            streams = await toy.backend.generate(many, greedy(20))
            outputs = await asyncio.gather(*map(tokens, streams))
            assert outputs == [toy_greedy(prompt, 20) for prompt in many]
            await toy.idle()

    run(main())


def test_many_completions_of_another_tenant_hardly_decode_beside_a_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sage_infer_openvino.engine.pacing._EXCESS_SLOWDOWN", 0.0)

    async def main() -> None:
        async with Toy(num_blocks=512) as toy:
            many = attrs.evolve(greedy(150), n=8, temperature=1.0, ignore_eos=True)
            (stream,) = await toy.backend.generate([PROMPT], many, options=RequestOptions(tenant="a"))
            counted = [0]

            async def count() -> None:
                async for delta in stream:
                    counted[0] += len(delta.token_ids)

            counting = asyncio.create_task(count())
            await eventually(lambda: counted[0] > 40)
            (other,) = await toy.backend.generate([PROMPT], greedy(60), options=RequestOptions(tenant="b"))
            before = None
            async for _ in other:
                before = counted[0] if before is None else before
            assert before is not None
            assert counted[0] - before < 2 * 60, "a token of the eight for each one of the other tenant"
            await counting
            assert counted[0] == 8 * 150
            await toy.idle()

    run(main())


def test_logits_that_are_no_numbers_end_their_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with Toy(num_blocks=64) as toy:
            engine = toy.backend._engine
            assert engine is not None
            step = engine.runner.step

            def broken(batch: Any) -> Any:
                logits = step(batch)
                for row, part in enumerate(batch):
                    if len(part.token_ids) > 5:  # the long prompt
                        logits[row] = float("nan")
                return logits

            monkeypatch.setattr(engine.runner, "step", broken)
            params = attrs.evolve(greedy(40), temperature=1.0)
            (good,) = await toy.backend.generate([PROMPT], greedy(40))
            (bad,) = await toy.backend.generate([list(range(10))], attrs.evolve(params, n=2))
            with pytest.raises(InvalidRequest, match="no finite logit"):
                await tokens(bad)
            assert await tokens(good) == toy_greedy(PROMPT, 40)
            (extreme,) = await toy.backend.generate(
                [PROMPT], attrs.evolve(params, repetition_penalty=1e-308, ignore_eos=True)
            )
            assert len(await tokens(extreme)) == 40
            await toy.idle()

    run(main())


def test_preemption_does_not_change_outputs() -> None:
    async def main() -> None:
        async with Toy(num_blocks=12) as toy:
            many = prompts(6)
            streams = await toy.backend.generate(many, greedy(30))
            outputs = await asyncio.gather(*map(tokens, streams))
            assert outputs == [toy_greedy(prompt, 30) for prompt in many]
            assert toy.backend.stats().extensions["preemptions"] > 0
            await toy.idle()

    run(main())


def test_seeded_completions_survive_preemption() -> None:
    async def outputs(blocks: int) -> list[list[int]]:
        async with Toy(num_blocks=blocks) as toy:
            params = SamplingParams(temperature=1.0, seed=4, n=4, max_tokens=24, ignore_eos=True)
            parts = await deltas(await toy.generate(prompts(1)[0], params))
            assert (toy.backend.stats().extensions["preemptions"] > 0) == (blocks < 64)
            return [[t for d in parts if d.index == i for t in d.token_ids] for i in range(4)]

    plenty = run(outputs(64))
    assert plenty == run(outputs(10))
    assert len({tuple(output) for output in plenty}) == 4


@pytest.mark.parametrize("blocks", [64, 512])
def test_128_completions_do_not_make_another_request_wait(blocks: int) -> None:
    """With few blocks all of them are in use when the second request arrives."""

    async def main() -> None:
        async with Toy(num_blocks=blocks) as toy:
            (many,) = await toy.backend.generate([PROMPT], greedy(100, n=128))
            ended = 0

            async def read() -> None:
                nonlocal ended
                async for delta in many:
                    ended += delta.finish_reason is not None

            reading = asyncio.create_task(read())
            await eventually(lambda: toy.backend.stats().output_tokens > 200)
            before = ended
            options = RequestOptions(tenant="other")
            (one,) = await toy.backend.generate([[9, 8, 7]], greedy(10), options=options)
            assert await tokens(one) == toy_greedy([9, 8, 7], 10)
            assert ended - before < 64, "the second request waited for most of the completions"
            reading.cancel()
            many.cancel()
            await toy.idle()

    run(main())


def test_a_long_prompt_is_prefilled_in_parts_between_decodes() -> None:
    async def main() -> None:
        async with Toy() as toy:
            toy.runner.gate.clear()
            first = await toy.generate(PROMPT, greedy(40))
            await toy.in_step()
            second = await toy.generate(list(range(100)), greedy(3))
            toy.runner.gate.set()
            assert await tokens(second) == toy_greedy(range(100), 3)
            assert await tokens(first) == toy_greedy(PROMPT, 40)
            assert [step[0] for step in toy.runner.steps[:9]] == [(3, 0), *((1, 3 + i) for i in range(8))]
            assert [step[1][0] for step in toy.runner.steps[1:8]] == [15] * 6 + [10]
            await toy.idle()

    run(main())


def test_usage_and_timing() -> None:
    async def main() -> None:
        async with Toy() as toy:
            stream = await toy.generate(
                PROMPT, SamplingParams(temperature=1.0, n=3, max_tokens=5, ignore_eos=True)
            )
            assert stream.usage is None
            parts = await deltas(stream)
            assert [d.finish_reason for d in parts].count("length") == 3
            assert stream.usage is not None
            assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == (3, 15)
            timing = stream.timing
            assert timing is not None
            assert timing.inter_token_s is not None
            assert 0 <= timing.queue_s <= timing.ttft_s <= timing.total_s
            assert timing.ttft_s + 4 * timing.inter_token_s <= timing.total_s

    run(main())


def test_timing_is_taken_when_the_request_ends() -> None:
    """A consumer that comes late does not make the engine look slow."""

    async def main() -> None:
        async with Toy() as toy:
            begun = time.perf_counter()
            stream = await toy.generate(PROMPT, greedy(2))
            end_unseen(toy)
            ended = time.perf_counter()
            time.sleep(0.2)  # noqa: ASYNC251 - as a consumer that comes late
            await tokens(stream)
            assert stream.timing is not None
            assert stream.timing.total_s <= ended - begun

    run(main())


def test_stops() -> None:
    async def main() -> None:
        async with Toy() as toy:
            whole = toy_greedy(PROMPT, 12)
            text = bytes(whole).decode("utf-8", "replace")
            stream = await toy.generate(PROMPT, greedy(12, stop_token_ids=[whole[4], 10**7]))
            assert await tokens(stream) == whole[:5]
            assert stream.finish_reason == "stop"
            stream = await toy.generate(PROMPT, greedy(12, stop_token_ids=[whole[4]], logprobs=0))
            ends = [one.is_end for delta in await deltas(stream) for one in delta.logprobs or ()]
            assert ends == [False] * 4 + [True]
            stream = await toy.generate(PROMPT, greedy(12, stop=[text[5:7]]))
            assert "".join(d.text for d in await deltas(stream)) == text[: text.index(text[5:7])]
            stream = await toy.generate(PROMPT, greedy(12, stop=[text[-1] + "never"]))
            assert "".join(d.text for d in await deltas(stream)) == text
            assert stream.finish_reason == "length"
            stream = await toy.generate(PROMPT, greedy(12, stop_token_ids=[whole[1]], min_tokens=12))
            assert len(await tokens(stream)) == 12
            await toy.idle()

    run(main())


def test_end_of_sequence_has_no_text() -> None:
    async def main() -> None:
        async with Toy() as toy:
            forced = SamplingParams(temperature=100.0, max_tokens=150, seed=0, presence_penalty=-2.0)
            streams = await toy.backend.generate(prompts(20), forced)
            outputs = await asyncio.gather(*map(deltas, streams))
            ended = [o for o, s in zip(outputs, streams, strict=True) if s.finish_reason == "stop"]
            assert ended
            assert all(o[-1].token_ids == (EOS,) and "end" not in o[-1].text for o in ended)

    run(main())


# --- shared prefixes


def test_a_shared_prefix_is_computed_once() -> None:
    async def main() -> None:
        async with Toy() as toy:
            first = await toy.generate(list(range(50)), greedy(6))
            output = await tokens(first)
            # The conversation goes on: prompt and answer are there, but for the last, partial block.
            prompt = [*range(50), *output, 1, 2, 3]
            second = await toy.generate(prompt, greedy(6))
            assert await tokens(second) == toy_greedy(prompt, 6)
            assert first.usage is not None
            assert second.usage is not None
            assert (first.usage.cached_tokens, second.usage.cached_tokens) == (0, 52)
            assert sum(n for step in toy.runner.steps for n, _ in step) == 50 + 5 + 7 + 5
            stats = toy.backend.stats()
            assert (stats.prompt_tokens, stats.prefix_hit_tokens) == (50 + 7, 52)
            await toy.idle()
            assert toy.backend.stats().kv_blocks_cached == 13 + 3

    run(main())


def test_completions_of_one_prompt_compute_it_once() -> None:
    async def main() -> None:
        async with Toy() as toy:
            params = SamplingParams(temperature=1.0, seed=7, n=4, max_tokens=9, ignore_eos=True)
            parts = await deltas(await toy.generate(list(range(41)), params))
            assert toy.backend.stats().prompt_tokens == 41 + 3
            alone = await toy.generate(list(range(41)), attrs.evolve(params, n=1))
            assert await tokens(alone) == [t for d in parts if d.index == 0 for t in d.token_ids]
            await toy.idle()

    run(main())


def test_without_prefix_caching_nothing_is_kept() -> None:
    async def main() -> None:
        async with Toy(prefix_caching=False) as toy:
            assert "prefix_caching" not in toy.backend.get_capability().features
            for _ in range(2):
                stream = await toy.generate(list(range(50)), greedy(6))
                assert await tokens(stream) == toy_greedy(range(50), 6)
                assert stream.usage is not None
                assert stream.usage.cached_tokens == 0
            assert toy.backend.stats().kv_blocks_cached == 0

    run(main())


# --- giving up


async def leave(toy: Toy, how: str, stream: Any) -> None:
    match how:
        case "cancel":
            stream.cancel()
            stream.cancel()
        case "abort":
            await toy.backend.abort(stream.request_id)
        case "leave the loop":
            async for _ in stream:
                break
        case "leave the context":
            async with stream:
                pass
        case "drop the iterator":
            iterator = aiter(stream)
            await anext(iterator)
            del iterator
            gc.collect()
        case "cancel the reader":
            reader = asyncio.ensure_future(deltas(stream))
            await asyncio.sleep(0)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)


@pytest.mark.parametrize(
    "how",
    ["cancel", "abort", "leave the loop", "leave the context", "drop the iterator", "cancel the reader"],
)
@pytest.mark.parametrize("n", [1, 3])
def test_every_way_to_give_up_returns_the_blocks(how: str, n: int) -> None:
    async def main() -> None:
        async with Toy(num_blocks=3000, limit=4000) as toy:
            params = SamplingParams(temperature=1.0, n=n, ignore_eos=True)
            stream = await toy.generate(PROMPT, params)
            await leave(toy, how, stream)
            await toy.idle()
            assert toy.backend.stats().finished == 1
            await eventually(lambda: stream.finish_reason == "cancelled")
            assert await tokens(await toy.generate(PROMPT, greedy(5))) == toy_greedy(PROMPT, 5)

    run(main())


def test_cancel_while_waiting_while_prefilling_and_when_a_completion_has_finished() -> None:
    async def main() -> None:
        async with Toy(max_batch_size=1) as toy:
            toy.runner.gate.clear()
            running = await toy.generate(list(range(100)), greedy(50))
            waiting = await toy.generate(PROMPT, greedy(50))
            await toy.in_step()
            waiting.cancel()
            running.cancel()  # in the first of seven parts of its prompt
            toy.runner.gate.set()
            await toy.idle()
            assert len(toy.runner.steps) == 1
        async with Toy() as toy:
            stop = SamplingParams(temperature=1.0, seed=1, n=2, ignore_eos=True)
            firsts = await toy.generate(PROMPT, attrs.evolve(stop, max_tokens=1))
            token = next(d.token_ids[0] for d in await deltas(firsts) if d.index == 1)
            stream = await toy.generate(PROMPT, attrs.evolve(stop, stop_token_ids=(token,)))
            async for delta in stream:
                if delta.finish_reason:
                    break
            assert delta.index == 1
            await toy.idle()

    run(main())


def test_an_old_stream_does_not_cancel_a_new_request_of_its_id() -> None:
    async def main() -> None:
        async with Toy() as toy:
            old = await toy.generate(PROMPT, greedy(1), request_id="a")
            end_unseen(toy)
            new = await toy.generate(PROMPT, greedy(30), request_id="a")
            old.cancel()
            assert await tokens(new) == toy_greedy(PROMPT, 30)

    run(main())


def test_abort_ends_all_parts_and_no_other_request() -> None:
    async def main() -> None:
        async with Toy() as toy:
            toy.runner.gate.clear()  # so that none of them has ended before it is aborted
            parts = await toy.backend.generate([PROMPT, PROMPT], greedy(), request_id="a")
            other = await toy.generate(PROMPT, greedy(9), request_id="a-2")
            aborts = asyncio.gather(toy.backend.abort("unknown"), toy.backend.abort("a"))
            await asyncio.sleep(0)
            toy.runner.gate.set()
            await aborts
            for part in parts:
                with pytest.raises(RequestCancelled, match=r"a/[01] was aborted"):
                    await deltas(part)
            assert len(await tokens(other)) == 9
            await toy.idle()

    run(main())


def test_deadlines() -> None:
    async def main() -> None:
        async with Toy(max_batch_size=1) as toy:
            first = await toy.generate(PROMPT, greedy(150), deadline=600)
            late = await toy.generate(PROMPT, greedy(5), deadline=-1.0)
            far = await toy.generate(PROMPT, greedy(5), deadline=1e300)
            with pytest.raises(RequestCancelled, match="missed its deadline") as caught:
                await deltas(late)
            assert caught.value.by == "deadline"
            assert late.finish_reason == "cancelled"
            assert len(await tokens(first)) == 150
            assert len(await tokens(far)) == 5
            await toy.idle()

    run(main())


def test_a_deadline_comes_although_nothing_runs_and_the_engine_sleeps_meanwhile() -> None:
    """All blocks are held for a decode, so the request can only wait: without a busy loop, and not for ever."""

    async def main() -> None:
        async with Toy(num_blocks=4) as toy:
            held = await toy.backend.prefill(list(range(14)), request_id="held", params=greedy(9))
            before = toy_cpu(toy)
            with pytest.raises(RequestCancelled, match="deadline"):
                await deltas(await toy.generate(list(range(8)), greedy(3), deadline=0.3))
            assert toy_cpu(toy) - before < 0.15
            waiting = await toy.generate(list(range(8)), greedy(3))
            output = await tokens((await toy.backend.decode(held.states[0], request_id="held")).stream)
            assert output == toy_greedy(range(14), 2)  # to the end of the four blocks
            assert await tokens(waiting) == toy_greedy(range(8), 3)
            await toy.idle()

    run(main())


def toy_cpu(toy: Toy) -> float:
    """CPU seconds of the engine's thread."""
    engine = toy.backend._engine
    assert engine is not None
    thread = engine._thread.ident
    assert thread is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread))


def test_requests_of_a_closed_event_loop_are_ended() -> None:
    toy = Toy()
    opened = asyncio.new_event_loop()
    opened.run_until_complete(toy.__aenter__())

    async def start_and_leave() -> None:
        toy.runner.gate.clear()
        await toy.generate(PROMPT, greedy())
        await toy.in_step()

    asyncio.run(start_and_leave())
    toy.runner.gate.set()
    opened.run_until_complete(toy.idle())
    opened.run_until_complete(toy.__aexit__())
    opened.close()


# --- limits


def test_full_queue() -> None:
    async def main() -> None:
        async with Toy(max_queue=2, max_batch_size=1) as toy:
            toy.runner.gate.clear()
            streams = [await toy.generate(PROMPT, greedy(50)) for _ in range(2)]
            with pytest.raises(Overloaded, match="2 requests are open, the limit is 2") as caught:
                await toy.generate(PROMPT, greedy(1))
            assert 0 < caught.value.retry_after <= 30
            with pytest.raises(InvalidRequest, match="3 prompts in one call"):
                await toy.backend.generate([PROMPT] * 3, greedy(1))
            streams[0].cancel()
            toy.runner.gate.set()
            await eventually(lambda: toy.backend.stats().finished >= 1)
            assert len(await tokens(await toy.generate(PROMPT, greedy(1)))) == 1

    run(main())


def test_smaller_priority_goes_first() -> None:
    async def main() -> None:
        async with Toy(max_batch_size=1) as toy:
            toy.runner.gate.clear()
            order: list[str] = []

            async def finish(name: str, priority: int) -> None:
                await tokens(await toy.generate(PROMPT, greedy(2), priority=priority))
                order.append(name)

            first = asyncio.create_task(finish("first", 0))
            await toy.in_step()
            later = [asyncio.create_task(finish(n, p)) for n, p in (("low", 1), ("high", -1), ("mid", 0))]
            await eventually(lambda: toy.backend.stats().waiting == 3)
            toy.runner.gate.set()
            await asyncio.gather(first, *later)
            assert order == ["first", "high", "mid", "low"]

    run(main())


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"prompts": []}, InvalidRequest, "no prompt"),
        ({"prompts": [PROMPT, []]}, SchemaError, "empty"),
        ({"prompts": [300]}, InvalidRequest, "token id 300 is not in the vocabulary of 257"),
        (
            {"prompts": [1] * 200},
            ContextLengthExceeded,
            "maximum context length is 200 tokens .* has 200 tokens",
        ),
        (
            {"options": RequestOptions(session="a")},
            UnsupportedFeature,
            r"options.session \(feature session\)",
        ),
        ({"request_id": ""}, InvalidRequest, "request_id must be a non-empty string"),
        ({"adapter": "style"}, UnsupportedFeature, r"params.adapter \(feature lora\)"),
    ],
)
def test_invalid_requests_are_rejected_and_the_engine_survives(
    arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    async def main() -> None:
        async with Toy() as toy:
            params = greedy(3, adapter=arguments.pop("adapter", None))
            with pytest.raises(error, match=says):
                await toy.backend.generate(arguments.pop("prompts", PROMPT), params, **arguments)
            assert toy.backend.stats().waiting == 0
            assert len(await tokens(await toy.generate(PROMPT, greedy(3)))) == 3

    run(main())


def test_an_id_in_use_is_refused_and_a_finished_one_is_not() -> None:
    async def main() -> None:
        async with Toy() as toy:
            toy.runner.gate.clear()
            stream = await toy.generate(PROMPT, greedy(50), request_id="a")
            with pytest.raises(InvalidRequest, match="'a' is in use"):
                await toy.backend.generate(PROMPT, greedy(1), request_id="a")
            with pytest.raises(InvalidRequest, match="'a' is in use"):
                await toy.backend.prefill(PROMPT, request_id="a")
            toy.runner.gate.set()
            assert len(await tokens(stream)) == 50
            assert len(await tokens(await toy.generate(PROMPT, greedy(1), request_id="a"))) == 1

    run(main())


# --- faults and the end


def test_a_step_that_fails_ends_everything_with_engine_dead() -> None:
    async def main() -> None:
        async with Toy(max_batch_size=2) as toy:
            held = await toy.backend.prefill(PROMPT, request_id="held", params=greedy(5))
            toy.runner.failure = RuntimeError("the kernel fell over")
            toy.runner.good_steps = len(toy.runner.steps) + 10
            toy.runner.gate.clear()
            streams = [await toy.generate(prompt, greedy()) for prompt in prompts(4)]
            readers = [asyncio.ensure_future(deltas(stream)) for stream in streams]
            prefill = asyncio.ensure_future(toy.backend.prefill(PROMPT, request_id="p"))
            await eventually(lambda: toy.backend.stats().running + toy.backend.stats().waiting == 5)
            toy.runner.gate.set()
            for reader in readers:
                with pytest.raises(EngineDead, match="RuntimeError: the kernel fell over"):
                    await reader
            with pytest.raises(EngineDead):
                await prefill
            assert [stream.finish_reason for stream in streams] == ["error"] * 4
            health = await toy.backend.health()
            assert (health.status, health.ok) == ("dead", False)
            assert "fell over" in health.reason
            for call in (
                toy.backend.generate(PROMPT, greedy(1)),
                toy.backend.prefill(PROMPT, request_id="q"),
                toy.backend.decode(held.states[0], request_id="held"),
                toy.backend.export_kv(held.states[0]),
            ):
                with pytest.raises(EngineDead, match="fell over"):
                    await call
            await toy.backend.abort("held")
            await toy.backend.close()
            await toy.backend.close()

    run(main())


def test_close_ends_open_requests_and_later_calls() -> None:
    async def main() -> None:
        # A stream so long that none of them ends before it is closed, however busy the machine is.
        async with Toy(5000, limit=20_000, max_batch_size=1) as toy:
            stream = await toy.generate(PROMPT, greedy())
            waiting = await toy.generate(PROMPT, greedy())
            await anext(aiter(stream))
            prefill = asyncio.ensure_future(toy.backend.prefill(PROMPT, request_id="p"))
            await asyncio.sleep(0)
            await asyncio.gather(toy.backend.close(), toy.backend.close())
            for opened in (stream, waiting):
                with pytest.raises(RequestCancelled) as caught:
                    await deltas(opened)
            assert caught.value.by == "close"
            with pytest.raises(RequestCancelled):
                await prefill
            with pytest.raises(EngineDead, match="closed"):
                await toy.generate(PROMPT, greedy(1))
            with pytest.raises(EngineDead, match="closed"):
                toy.backend.get_capability()
            with pytest.raises(EngineDead, match="closed"):
                await toy.backend.start()
            await toy.backend.abort("anything")
            assert (await toy.backend.health()).status == "dead"
            assert toy.backend.stats().kv_blocks_total == 0

    run(main())


def test_before_start() -> None:
    async def main() -> None:
        toy = Toy()
        assert (await toy.backend.health()).status == "starting"
        with pytest.raises(EngineDead, match="not started"):
            await toy.generate(PROMPT, greedy(1))
        await toy.backend.close()

    run(main())


def test_closing_while_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        toy, loading, go_on = Toy(), threading.Event(), threading.Event()

        def slow(*_: Any, **__: Any) -> None:
            loading.set()
            assert go_on.wait(300)

        monkeypatch.setattr("sage_infer_openvino.backend.load_model", slow)
        starting = asyncio.create_task(toy.backend.start())
        await asyncio.to_thread(loading.wait, 10)
        await toy.backend.close()
        go_on.set()
        with pytest.raises(EngineDead, match="closed"):
            await starting
        assert toy.backend._engine is None

    run(main())


def test_a_cancelled_call_does_not_harm_the_engine() -> None:
    """The caller of abort, decode or export goes away while its command waits for the step to end."""

    async def main() -> None:
        async with Toy() as toy:
            state = (await toy.backend.prefill(PROMPT, request_id="held", params=greedy(9))).states[0]
            toy.runner.gate.clear()
            stream = await toy.generate(PROMPT, greedy(4))
            await toy.in_step()
            calls = [
                asyncio.ensure_future(call)
                for call in (
                    toy.backend.abort("nobody"),
                    toy.backend.decode(state, request_id="held"),
                    toy.backend.export_kv(state),
                )
            ]
            await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            toy.runner.gate.set()
            assert await tokens(stream) == toy_greedy(PROMPT, 4)
            # Nothing was done for them: the request is still held, and can be decoded.
            assert await tokens((await toy.backend.decode(state, request_id="held")).stream) == toy_greedy(
                PROMPT, 9
            )
            await toy.idle()

    run(main())


def test_stress() -> None:
    """Random lengths, stops, cancellations and held prefills: each request ends once, and no block is lost."""

    async def main() -> None:
        async with Toy(num_blocks=40, max_queue=64) as toy:
            rng = random.Random(5)

            async def one(i: int) -> None:
                prompt = [
                    *range(rng.randrange(20)),
                    *(rng.randrange(256) for _ in range(rng.randrange(1, 30))),
                ]
                count, quits = rng.randrange(1, 40), rng.random() < 0.3
                if rng.random() < 0.2:
                    state = (
                        await toy.backend.prefill(prompt, request_id=f"p{i}", params=greedy(count))
                    ).states[0]
                    if rng.random() < 0.3:
                        await toy.backend.abort(f"p{i}")
                        return
                    stream = (await toy.backend.decode(state, request_id=f"p{i}")).stream
                else:
                    stream = await toy.generate(prompt, greedy(count), priority=rng.randrange(-1, 2))
                output: list[int] = []
                async for delta in stream:
                    output += delta.token_ids
                    if quits and rng.random() < 0.2:
                        return
                assert output == toy_greedy(prompt, count)

            numbers = itertools.count()

            async def client() -> None:
                while (i := next(numbers)) < 400:
                    await one(i)

            await asyncio.gather(*(client() for _ in range(32)))
            await toy.idle()
            stats = toy.backend.stats()
            assert stats.finished == 400
            assert stats.extensions["held"] == 0

    run(main())


def test_requests_during_close_get_an_error() -> None:
    async def main() -> None:
        async with Toy() as toy:
            engine = toy.backend._engine
            assert engine is not None
            toy.runner.gate.clear()
            stream = await toy.generate(PROMPT, greedy())
            await toy.in_step()
            closing = asyncio.ensure_future(toy.backend.close())
            await asyncio.to_thread(
                engine._queue._commands.put, None
            )  # behind it, what the closed backend refuses
            calling = asyncio.ensure_future(engine.call(lambda: 7))
            await asyncio.sleep(0)
            toy.runner.gate.set()
            assert await calling == 7
            await closing
            with pytest.raises(RequestCancelled):
                await deltas(stream)
            with pytest.raises(EngineDead):
                await engine.call(lambda: 7)

    run(main())

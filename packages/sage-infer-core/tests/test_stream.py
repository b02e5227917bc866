"""The shared stream: order, end, errors, and what happens when the reader leaves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from sage_infer.contracts import BufferedTokenStream, TokenStream, as_prompts, collect_text, request_ids
from sage_infer.errors import EngineDead, RequestCancelled, SchemaError
from sage_infer.schemas import Prompt, Timing, TokenDelta, Usage

USAGE = Usage(prompt_tokens=1, completion_tokens=2)
TIMING = Timing(queue_s=0, ttft_s=0, total_s=0)


class Fed:
    """A stream, and how often its reader gave up."""

    def __init__(self) -> None:
        self.given_up = 0
        self.stream = BufferedTokenStream("r", self._give_up)

    def _give_up(self) -> None:
        self.given_up += 1

    def push(self, *texts: str) -> None:
        for text in texts:
            self.stream.push(TokenDelta(text, (1,)))

    def finish(self) -> None:
        self.stream.finish("stop", USAGE, TIMING)


def run(test: Callable[[Fed], Coroutine[Any, Any, None]]) -> Fed:
    async def main() -> Fed:
        fed = Fed()
        await asyncio.wait_for(test(fed), timeout=300)
        return fed

    return asyncio.run(main())


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def read_texts(stream: BufferedTokenStream) -> list[str]:
    return [delta.text async for delta in stream]


def test_it_is_a_token_stream() -> None:
    async def test(fed: Fed) -> None:
        assert isinstance(fed.stream, TokenStream)

    run(test)


def test_deltas_come_in_order_and_end() -> None:
    async def test(fed: Fed) -> None:
        fed.push("a", "b")
        asyncio.get_running_loop().call_soon(fed.push, "c")
        asyncio.get_running_loop().call_soon(fed.finish)
        assert await collect_text(fed.stream) == "abc"
        assert (fed.stream.finish_reason, fed.stream.usage, fed.stream.timing) == ("stop", USAGE, TIMING)
        assert await collect_text(fed.stream) == ""

    assert run(test).given_up == 0


def test_nothing_is_known_before_the_end() -> None:
    async def test(fed: Fed) -> None:
        assert fed.stream.request_id == "r"
        assert fed.stream.finish_reason is fed.stream.usage is fed.stream.timing is None

    run(test)


def test_leaving_the_loop_gives_up_once() -> None:
    async def test(fed: Fed) -> None:
        fed.push("a", "b")
        async for _ in fed.stream:
            break
        assert fed.given_up == 1
        assert fed.stream.finish_reason == "cancelled"
        fed.stream.cancel()
        fed.finish()
        assert fed.stream.finish_reason == "cancelled"

    assert run(test).given_up == 1


def test_a_cancelled_reader_gives_up() -> None:
    async def test(fed: Fed) -> None:
        reader = asyncio.create_task(collect_text(fed.stream))
        await asyncio.sleep(0)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader

    assert run(test).given_up == 1


def test_a_cancelled_reader_gives_up_though_somebody_keeps_its_task() -> None:
    async def test(fed: Fed) -> None:
        reading = asyncio.ensure_future(read_texts(fed.stream))
        await settle()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError) as kept:
            await reading
        assert kept.tb is not None  # the frames are still there
        assert fed.given_up == 1

    run(test)


def test_leaving_the_context_gives_up_even_unread() -> None:
    async def test(fed: Fed) -> None:
        async with fed.stream:
            pass

    assert run(test).given_up == 1


def test_cancel_raises_in_the_reader_after_what_came_before() -> None:
    async def test(fed: Fed) -> None:
        fed.push("a")
        fed.stream.cancel()
        fed.push("late")
        texts: list[str] = []

        async def read() -> None:
            async for delta in fed.stream:
                texts.append(delta.text)

        with pytest.raises(RequestCancelled):
            await read()
        assert texts == ["a"]

    run(test)


def test_an_engines_error_reaches_the_reader() -> None:
    async def test(fed: Fed) -> None:
        fed.push("a")
        fed.stream.fail(EngineDead("gone"), USAGE, TIMING)
        with pytest.raises(EngineDead, match="gone"):
            await collect_text(fed.stream)
        assert fed.stream.finish_reason == "error"
        assert fed.stream.usage == USAGE

    assert run(test).given_up == 0


def test_what_a_reader_takes_at_once_does_not_wake_its_loop() -> None:
    async def test(fed: Fed) -> None:
        taken: list[str] = []

        def take(delta: TokenDelta) -> bool:
            if delta.text != "loop":
                taken.append(delta.text)
            return delta.text != "loop"

        fed.stream.on_delta(take)
        fed.push("before")  # nobody waits in the loop yet
        looped: list[str] = []

        async def read() -> None:
            async for delta in fed.stream:
                looped.append(delta.text)
                await asyncio.sleep(0)

        reading = asyncio.ensure_future(read())
        await settle()
        fed.push("one")
        fed.push("two")
        assert (taken, looped) == (["one", "two"], ["before"])
        fed.push("loop")
        fed.push("behind")  # the reader has been woken, so this comes after what it was woken for
        await settle()
        fed.push("three")
        fed.finish()
        await reading
        assert (taken, looped) == (["one", "two", "three"], ["before", "loop", "behind"])

    run(test)


def test_a_taker_that_fails_is_not_asked_again() -> None:
    async def test(fed: Fed) -> None:
        calls = []

        def take(delta: TokenDelta) -> bool:
            calls.append(delta)
            raise ZeroDivisionError

        fed.stream.on_delta(take)
        reading = asyncio.ensure_future(read_texts(fed.stream))
        await settle()
        fed.push("a")
        await settle()
        fed.push("b")
        fed.finish()
        assert await reading == ["a", "b"]
        assert len(calls) == 1

    run(test)


def test_prompts_in_every_form() -> None:
    ready = Prompt(text="c")
    assert as_prompts("a") == [Prompt(text="a")]
    assert as_prompts([1, 2]) == [Prompt(token_ids=(1, 2))]
    assert as_prompts(ready) == [ready]
    assert as_prompts(["a", (1,), ready]) == [Prompt(text="a"), Prompt(token_ids=(1,)), ready]
    assert as_prompts([]) == []
    with pytest.raises(SchemaError, match="must not be empty"):
        as_prompts([[]])


def test_ids_of_parts() -> None:
    assert request_ids("r", 1) == ["r"]
    assert request_ids("r", 3) == ["r/0", "r/1", "r/2"]


def test_an_iteration_that_another_thread_collects_gives_up_in_the_readers_loop() -> None:
    async def test(fed: Fed) -> None:
        fed.push("a", "b")
        iteration = fed.stream.__aiter__()
        assert (await anext(iteration)).text == "a"
        given_up: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        fed.stream._on_cancel = lambda: given_up.set_result(threading.get_ident())
        holder = [iteration]
        del iteration
        await asyncio.to_thread(holder.clear)
        assert await given_up == threading.get_ident()
        assert fed.stream.finish_reason == "cancelled"

    run(test)

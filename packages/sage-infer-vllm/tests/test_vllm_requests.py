"""Open requests: ids, limit, deadlines, abort, and failure of all requests."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from sage_infer.errors import EngineDead, InvalidRequest, Overloaded, RequestCancelled
from sage_infer_testing.waiting import eventually
from sage_infer_vllm.requests.delivery import Delivery
from sage_infer_vllm.requests.load import load_of
from sage_infer_vllm.requests.open_requests import OpenRequests
from vllm_toys import completion, output

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, 300))


class Engine:
    """Remembers which collectors were aborted."""

    def __init__(self, max_open: int = 3) -> None:
        self.aborted: list[Any] = []
        self.computing: list[int] = []
        self.dropped: list[int] = []
        self.compute = asyncio.Event()
        self.requests = OpenRequests(max_open, self.abort)

    async def abort(self, collector: Any) -> None:
        await asyncio.sleep(0)
        self.aborted.append(collector)

    def open(self, request_id: str, deadline: float | None = None) -> Delivery:
        self.requests.reserve([request_id])
        delivery = self.requests.add(request_id, prompt_tokens=1, logprobs=None, deadline=deadline)
        delivery.collector = f"collector of {request_id}"
        return delivery

    async def call(self, request_id: str, texts: int, **options: Any) -> list[str]:
        """A call of the pooling runner whose texts are computed once ``self.compute`` is set."""
        options = {"deadline": None, "concurrency": 9, **options}
        with self.requests.call(request_id, texts=texts, deadline=options["deadline"]) as call:
            return await call.run(
                ["text"] * texts,
                len,
                lambda index, text: self.computed(index),
                concurrency=options["concurrency"],
            )

    async def computed(self, index: int) -> str:
        self.computing.append(index)
        try:
            await self.compute.wait()
        except asyncio.CancelledError:
            self.dropped.append(index)
            raise
        return f"vector {index}"


async def read(delivery: Delivery) -> str:
    return "".join([delta.text async for delta in delivery.stream])


def test_ids_are_unique_while_open() -> None:
    async def main() -> None:
        engine = Engine()
        delivery = engine.open("a")
        with pytest.raises(InvalidRequest, match="'a' is in use"):
            engine.requests.reserve(["b", "a"])
        engine.requests.reserve(["b"])  # the refused call took none
        engine.requests.release(["b"])
        delivery.take(output(completion("x", reason="stop"), finished=True))
        assert await read(delivery) == "x"
        assert (len(engine.requests), engine.requests.finished) == (0, 1)
        engine.open("a")

    run(main())


def test_a_full_queue_says_when_to_come_again() -> None:
    async def main() -> None:
        engine = Engine(max_open=2)
        with pytest.raises(
            InvalidRequest, match=r"3 prompts in one call exceed the limit of 2 \(max_queue\)"
        ):
            engine.requests.reserve(["a", "b", "c"])
        engine.requests.reserve(["a"])
        with pytest.raises(Overloaded, match="1 requests are open, the limit is 2") as caught:
            engine.requests.reserve(["b", "c"])
        assert 0.1 <= caught.value.retry_after <= 30

    run(main())


def test_abort_reaches_parts_and_nothing_else() -> None:
    async def main() -> None:
        engine = Engine(max_open=9)
        parts, other = [engine.open("a/0"), engine.open("a/1")], engine.open("a-2")
        engine.requests.abort("a")
        engine.requests.abort("unknown")
        await engine.requests.settled()
        assert sorted(engine.aborted) == ["collector of a/0", "collector of a/1"]
        for part in parts:
            with pytest.raises(RequestCancelled, match="was aborted"):
                await read(part)
        assert other.stream.finish_reason is None

    run(main())


def test_a_deadline_ends_late_requests() -> None:
    async def main() -> None:
        engine = Engine()
        late, in_time = engine.open("late", deadline=0.01), engine.open("in time", deadline=60)
        with pytest.raises(RequestCancelled, match=r"late did not end within its 0\.01 s") as caught:
            await read(late)
        assert caught.value.by == "deadline"
        await engine.requests.settled()
        assert engine.aborted == ["collector of late"]
        in_time.take(output(completion("x", reason="stop"), finished=True))
        assert await read(in_time) == "x"

    run(main())


def test_dropping_the_stream_aborts_in_the_engine() -> None:
    async def main() -> None:
        engine = Engine()
        delivery = engine.open("a")
        delivery.take(output(completion("x")))
        async for _ in delivery.stream:
            break
        await engine.requests.settled()
        assert engine.aborted == ["collector of a"]
        assert (len(engine.requests), engine.requests.finished) == (0, 1)

    run(main())


def test_all_end_when_the_engine_does() -> None:
    async def main() -> None:
        engine = Engine()
        delivery = engine.open("a")

        task = asyncio.ensure_future(engine.call("b", 2))
        await asyncio.sleep(0)
        assert len(engine.requests) == 3
        waiting = asyncio.ensure_future(engine.requests.one_ended())
        await asyncio.sleep(0)
        engine.requests.fail_all(lambda request_id: EngineDead(f"{request_id} is lost"))
        with pytest.raises(EngineDead, match="a is lost"):
            await read(delivery)
        with pytest.raises(EngineDead, match="b is lost"):
            await task
        await waiting
        assert (len(engine.requests), engine.requests.finished) == (0, 3)
        with pytest.raises(EngineDead, match="late is lost"):  # its text was tokenized meanwhile
            engine.requests.reserve(["late"])
        with pytest.raises(EngineDead, match="later is lost"):
            await engine.call("later", 1)
        assert len(engine.requests) == 0

    run(main())


def test_a_call_of_several_texts_is_one_request() -> None:
    async def main() -> None:
        engine = Engine(max_open=4)
        first = asyncio.ensure_future(engine.call("a", 3, concurrency=2))
        await eventually(lambda: len(engine.computing) == 2, "the texts do not begin", within_s=300)
        await asyncio.sleep(0)
        assert engine.computing == [0, 1]  # no more than concurrency
        with pytest.raises(InvalidRequest, match="'a' is in use"):
            await engine.call("a", 1)
        with pytest.raises(InvalidRequest, match="'a' is in use"):
            engine.requests.reserve(["a"])
        with pytest.raises(Overloaded, match="3 requests are open, the limit is 4"):
            await engine.call("b", 2)
        engine.compute.set()
        assert await first == ["vector 0", "vector 1", "vector 2"]
        assert len(await engine.call("long", 9)) == 9  # more than fit, and nothing else is open
        assert await engine.call("none", 0) == []
        assert (len(engine.requests), engine.requests.finished) == (0, 12)

    run(main())


@pytest.mark.parametrize("end", ["abort", "deadline", "cancel"])
def test_a_call_ends_early_with_all_its_texts(end: str) -> None:
    async def main() -> None:
        engine = Engine()
        task = asyncio.ensure_future(engine.call("a", 2, deadline=0.3 if end == "deadline" else None))
        await eventually(lambda: len(engine.computing) == 2, "the texts do not begin", within_s=300)
        if end == "cancel":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            if end == "abort":
                engine.requests.abort("a")
            with pytest.raises(RequestCancelled) as caught:
                await task
            assert caught.value.by == ("deadline" if end == "deadline" else "caller")
        assert (len(engine.requests), sorted(engine.dropped)) == (0, [0, 1])

    run(main())


def test_the_load_counts_tokens_and_the_longest_wait() -> None:
    async def main() -> None:
        engine = Engine(max_open=9)
        running, first, second = engine.open("running"), engine.open("first"), engine.open("second")
        running.take(output(completion("x", (1, 2)), completion("y", (3,), 1)))
        first.started, second.started = second.started - 7.0, second.started - 5.0
        load = load_of(engine.requests.deliveries(), (), waiting=2)
        assert (load.waiting_prompt_tokens, load.running_context_tokens) == (2, 4)
        assert 7.0 <= load.oldest_wait_s < 8.0
        # Where the engine says that one waits, the other's prompt is being computed.
        assert 5.0 <= load_of(engine.requests.deliveries(), (), waiting=1).oldest_wait_s < 6.0
        assert load_of(engine.requests.deliveries(), (), waiting=0).oldest_wait_s == 0
        task = asyncio.ensure_future(engine.call("call", 2))
        await asyncio.sleep(0)
        assert load_of((), engine.requests.calls(), waiting=2).waiting_prompt_tokens == 8
        task.cancel()

    run(main())


def test_an_abort_that_fails_is_no_error() -> None:
    """The engine may be dead by then."""

    async def fail(collector: Any) -> None:
        raise RuntimeError("dead")

    async def main() -> None:
        requests = OpenRequests(3, fail)
        requests.reserve(["a"])
        delivery = requests.add("a", prompt_tokens=1, logprobs=None, deadline=None)
        delivery.collector = object()
        delivery.stream.cancel()
        await requests.settled()
        with pytest.raises(RequestCancelled):
            await read(delivery)

    run(main())

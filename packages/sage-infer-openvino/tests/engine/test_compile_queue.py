"""Tenants share the thread that compiles constraints."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError

import pytest
from openvino_toy import VOCABULARY, Toy, run, toy_tokenizer
from sage_infer.errors import InvalidRequest, Overloaded
from sage_infer.schemas import GuidedDecoding, RequestOptions, SamplingParams
from sage_infer_openvino.engine.grammar import trial as trial_module
from sage_infer_openvino.engine.grammar.compile_queue import CompileQueue
from sage_infer_openvino.engine.grammar.form import CompileError
from sage_infer_openvino.engine.grammar.trial import Trial

WAIT_S = 300


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> Iterator[CompileQueue[str]]:
    queue = CompileQueue[str](clock)
    yield queue
    queue.close()


def occupied(queue: CompileQueue[str]) -> threading.Event:
    """Occupy the thread until the event is set."""
    running, go = threading.Event(), threading.Event()

    def wait() -> str:
        running.set()
        go.wait(WAIT_S)
        return ""

    queue.submit("first", wait)
    assert running.wait(WAIT_S)
    return go


def test_tenants_take_turns(queue: CompileQueue[str]) -> None:
    done: list[str] = []

    def work(name: str) -> Callable[[], str]:
        def function() -> str:
            done.append(name)
            return name

        return function

    go = occupied(queue)
    futures = [queue.submit("a", work(f"a{i}")) for i in range(5)]
    futures += [queue.submit("b", work(f"b{i}")) for i in range(2)]
    futures[1].cancel()
    go.set()
    assert [f.result(WAIT_S) for f in futures if not f.cancelled()] == ["a0", "a2", "a3", "a4", "b0", "b1"]
    assert done.index("b0") == 1
    assert done.index("b1") <= 3
    assert "a1" not in done


def test_a_tenant_cannot_fill_the_queue(queue: CompileQueue[str]) -> None:
    go = occupied(queue)
    waiting = [queue.submit("a", lambda: "") for _ in range(32)]
    with pytest.raises(Overloaded, match="32 constraints of this client"):
        queue.submit("a", lambda: "")
    other = queue.submit("b", lambda: "b")
    go.set()
    assert other.result(WAIT_S) == "b"
    assert all(f.result(WAIT_S) == "" for f in waiting)


def test_a_tenant_waits_after_an_expensive_constraint(queue: CompileQueue[str], clock: Clock) -> None:
    queue.rest("a")
    queue.rest("")
    waiting = [queue.submit("a", lambda: "a") for _ in range(2)]
    assert queue.submit("b", lambda: "b").result(WAIT_S) == "b"
    assert queue.submit("", lambda: "local").result(WAIT_S) == "local"
    assert not any(future.done() for future in waiting)
    clock.now += 1
    assert queue.submit("b", lambda: "b").result(WAIT_S) == "b"
    assert [future.result(WAIT_S) for future in waiting] == ["a", "a"]
    queue.rest("c")
    assert list(queue._resting) == ["c"]


def test_what_rests_is_cancelled_by_close(queue: CompileQueue[str]) -> None:
    queue.rest("a")
    waiting = queue.submit("a", lambda: "a")
    queue.close()
    with pytest.raises(CancelledError):
        waiting.result(WAIT_S)
    queue._executor.shutdown(wait=True)


def test_errors_reach_the_caller_and_close_cancels(queue: CompileQueue[str]) -> None:
    def fail() -> str:
        raise KeyError("x")

    with pytest.raises(KeyError):
        queue.submit("a", fail).result(WAIT_S)
    go = occupied(queue)
    waiting = queue.submit("a", lambda: "")
    queue.close()
    go.set()
    with pytest.raises(CancelledError):
        waiting.result(WAIT_S)
    queue.close()


def chain(links: int) -> str:
    lines = [f'r{i}: "a" r{i + 1}' for i in range(links)]
    return "\n".join(["start: r0", *lines, f'r{links}: "b"'])


def test_a_constraint_that_crashes_the_compiler_refuses_no_other_one() -> None:
    async def main() -> None:
        async with Toy() as toy:

            async def ask(tenant: str, **constraint: str) -> None:
                params = SamplingParams(max_tokens=2, guided=GuidedDecoding(**constraint))
                (stream,) = await toy.backend.generate(["ab"], params, options=RequestOptions(tenant=tenant))
                async for _ in stream:
                    pass

            await ask("a", regex="ab")
            with pytest.raises(InvalidRequest, match="too complex"):
                await ask("a", grammar=chain(6000))
            await ask("a", regex="ab")  # compiled before
            await asyncio.gather(ask("a", regex="xy"), ask("a", regex="yx"), ask("b", regex="xy"))
            for _ in range(2):
                with pytest.raises(InvalidRequest, match="too complex"):
                    await ask("a", grammar=chain(6000))  # the same one is not tried again
            with pytest.raises(InvalidRequest, match="too complex"):
                await ask("b", grammar=chain(6000))  # remembered, so it costs nothing
            await ask("b", regex="xyz")
            await toy.idle()

    run(main())


def test_long_compilations_get_the_lowest_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function that the child process uses, applied to a process that compiles."""
    ready, written = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(written, b"x")
        threading.Event().wait(WAIT_S)
        os._exit(0)
    try:
        os.read(ready, 1)
        before = os.getpriority(os.PRIO_PROCESS, pid)
        trial_module._give_way(pid)
        assert os.getpriority(os.PRIO_PROCESS, pid) == 19 >= before
        trial_module._give_way(2**22 + 5)  # it has ended
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(written)


def test_a_slow_constraint_is_still_an_error_of_its_time() -> None:
    tokenizer = toy_tokenizer()
    trial = Trial(tokenizer.to_json(), VOCABULARY, list(tokenizer.eos_token_ids), cpu_s=0.15)
    keys = {f"key{i}": {"type": "string", "pattern": f"^[a-z]{{1,{i + 1}}}$"} for i in range(900)}
    try:
        with pytest.raises(CompileError, match=r"took more than 0\.15 s") as slow:
            trial.run("json_schema", json.dumps({"type": "object", "properties": keys}))
        assert slow.value.is_expensive
        assert trial.run("regex", "a")
    finally:
        trial.close()

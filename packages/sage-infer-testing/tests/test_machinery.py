"""The kit's own machinery: the loop thread, shapes, waiting, the second process."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import threading
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Protocol

import pytest
from kit_reference.llm import ReferenceLLM
from sage_infer_testing import loop as loop_module
from sage_infer_testing.elsewhere import answer, decode_elsewhere, load_suite
from sage_infer_testing.loop import LoopThread
from sage_infer_testing.reading import greedy
from sage_infer_testing.shape import shape_problems
from sage_infer_testing.waiting import eventually


@pytest.fixture
def thread() -> Any:
    made = LoopThread()
    yield made
    made.close()


async def give(value: object) -> object:
    await asyncio.sleep(0)
    return value


async def fail() -> None:
    raise KeyError("mine")


def test_loop_gives_results_and_raises_errors(thread: LoopThread) -> None:
    assert thread.run(give(3), timeout_s=300) == 3
    with pytest.raises(KeyError, match="mine"):
        thread.run(fail(), timeout_s=300)


async def cancel_oneself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


def test_loop_tells_a_cancelled_test(thread: LoopThread) -> None:
    with pytest.raises(pytest.fail.Exception, match="was cancelled"):
        thread.run(cancel_oneself(), timeout_s=300)


def test_loop_says_where_a_test_hangs(thread: LoopThread) -> None:
    async def hangs() -> None:
        await asyncio.Event().wait()

    with pytest.raises(pytest.fail.Exception, match="did not end within") as caught:
        thread.run(hangs(), timeout_s=0.05)
    assert "hangs (" in str(caught.value)
    assert str(caught.value).count("Event.wait (") == 1
    assert thread.run(give(4), timeout_s=300) == 4, "a test that hung must not stop the next one"


def test_loop_tells_a_blocked_loop(thread: LoopThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "_GRACE_S", 0.2)
    released = threading.Event()

    async def blocks() -> None:
        released.wait(300)  # what a backend must not do

    try:
        with pytest.raises(pytest.fail.Exception, match="event loop is blocked"):
            thread.run(blocks(), timeout_s=0.05)
        with pytest.raises(pytest.fail.Exception, match="not run: the event loop is blocked"):
            thread.run(give(1), timeout_s=300)
    finally:
        released.set()


def test_loop_cancels_what_is_left(thread: LoopThread) -> None:
    cancelled: list[bool] = []

    async def background() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(True)

    async def start() -> asyncio.Task[None]:
        task = asyncio.ensure_future(background())
        await asyncio.sleep(0)
        return task

    kept = thread.run(start(), timeout_s=300)
    thread.close()
    assert cancelled == [True]
    assert kept.cancelled()


async def _eventually_fails() -> None:
    await eventually(lambda: False, "the sky did not fall", within_s=0.01)


def test_waiting_names_what_did_not_happen() -> None:
    with pytest.raises(pytest.fail.Exception, match="the sky did not fall"):
        asyncio.run(_eventually_fails())


class Promise(Protocol):
    async def go(self, where: str, *, fast: bool = False) -> int: ...
    def stop(self) -> None: ...
    @property
    def name(self) -> str: ...


class Good:
    name = "good"

    def go(self, where: str, *, fast: bool = False, extra: int = 1) -> Awaitable[int]:
        return give(1)  # type: ignore[return-value]

    def stop(self, **options: Any) -> None: ...


class Bad:
    stop = 3

    def go(self, *, where: str, fast: bool, must: int) -> int:
        return 1


class Worse:
    def __init__(self) -> None:
        self.name = "set on the instance"

    async def stop(self) -> None: ...
    async def go(self, *args: Any) -> int:
        return 1


def test_shapes() -> None:
    assert shape_problems(Good(), Promise) == []
    assert shape_problems(Bad(), Promise) == [
        "go must be async",
        "go: 'where' must be accepted by position",
        "go: 'fast' must have a default",
        "go requires the parameter 'must', which is not in the contract",
        "stop is a int, not a method",
        "name is missing",
    ]
    problems = shape_problems(Worse(), Promise)
    assert problems == [
        "go lacks the parameter 'where'",
        "go lacks the parameter 'fast'",
        "stop must not be async",
    ]


def test_positional_only_is_no_keyword() -> None:
    class Strict:
        name = ""

        async def go(self, where: str, fast: bool = False, /) -> int:
            return 1

        def stop(self) -> None: ...

    assert shape_problems(Strict(), Promise) == ["go: 'fast' must be accepted as a keyword"]


# --- the second process, here


class Elsewhere:
    """What a child process finds by its name."""

    def make_backend(self) -> ReferenceLLM:
        return ReferenceLLM()


def test_the_second_process_decodes(tmp_path: Path) -> None:
    async def both() -> tuple[list[int], list[int]]:
        from sage_infer.schemas.codec import to_dict
        from sage_infer_testing.reading import generate_one

        backend = ReferenceLLM()
        await backend.start()
        expected = await generate_one(backend, "Hello", greedy(6))
        (state,) = (await backend.prefill("Hello", request_id="a", params=greedy(6))).states
        moved, buffers = await backend.export_kv(state)
        await backend.close()
        order = {
            "module": "no_such_module_of_the_kit", "file": __file__, "suite": "Elsewhere",
            "state": to_dict(moved), "sizes": [b.nbytes for b in buffers],
        }  # fmt: skip
        sent = json.dumps(order).encode() + b"\n" + b"".join(map(bytes, buffers))
        return list(expected.token_ids), await answer(io.BytesIO(sent))

    expected, found = asyncio.run(both())
    assert found == expected


def test_suites_that_a_child_cannot_find(tmp_path: Path) -> None:
    with pytest.raises(ModuleNotFoundError):
        load_suite("no_such_module_of_the_kit_2", None, "Suite")
    with pytest.raises(ImportError, match="not a Python file"):
        load_suite("no_such_module_of_the_kit_2", str(tmp_path / "data.bin"), "Suite")

    class Local:
        pass

    with pytest.raises(pytest.fail.Exception, match="top of its module"):
        asyncio.run(decode_elsewhere(Local, None, [], timeout_s=1))  # type: ignore[arg-type]


def test_a_child_that_fails_shows_what_it_printed() -> None:
    async def decode() -> None:
        backend = ReferenceLLM()
        await backend.start()
        (state,) = (await backend.prefill("Hello", request_id="a", params=greedy(2))).states
        await backend.close()
        await decode_elsewhere(Elsewhere, state, [memoryview(b"short")], timeout_s=300)

    with pytest.raises(pytest.fail.Exception, match="KVCorrupt"):
        asyncio.run(decode())


def test_a_child_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = tmp_path / "slow.sh"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))

    async def decode() -> None:
        backend = ReferenceLLM()
        await backend.start()
        (state,) = (await backend.prefill("Hello", request_id="a", params=greedy(2))).states
        await backend.close()
        await decode_elsewhere(Elsewhere, state, [], timeout_s=0.1)

    with pytest.raises(TimeoutError):
        asyncio.run(decode())

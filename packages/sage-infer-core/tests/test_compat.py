"""What Python 3.10 lacks: the same behaviour on every version."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from sage_infer.compat import (
    BaseExceptionGroup,
    ExceptionGroup,
    Runner,
    TaskCancelled,
    TaskGroup,
    is_cancelling,
    result_of,
    timeout,
    uncancel,
    wait_for,
)
from sage_infer.system import python
from sage_infer.system.python import module_command


async def forever() -> None:
    await asyncio.Event().wait()


def test_limits_of_time_raise_the_builtin_error() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            await wait_for(forever(), 0.001)
        with pytest.raises(TimeoutError):
            async with timeout(0.001):
                await forever()
        async with timeout(None) as limit:
            await asyncio.sleep(0)
        assert not limit.expired()

    asyncio.run(main())


def test_the_inner_of_two_limits_ends_alone() -> None:
    async def main() -> str:
        async with timeout(None) as outer:
            try:
                async with timeout(0.001) as inner:
                    await forever()
            except TimeoutError:
                assert inner.expired()
                assert not outer.expired()
            await asyncio.sleep(0)
            return "continued"

    assert asyncio.run(main()) == "continued"


def test_a_cancellation_within_a_limit_stays_a_cancellation() -> None:
    async def limited(entered: asyncio.Event) -> None:
        async with timeout(None):
            entered.set()
            await forever()

    async def main() -> None:
        entered = asyncio.Event()
        task = asyncio.ensure_future(limited(entered))
        await entered.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(main())


def test_a_group_cancels_the_others_and_raises_a_group_of_errors() -> None:
    ended = []

    async def failing() -> None:
        raise KeyError("first")

    async def other() -> None:
        try:
            await forever()
        finally:
            ended.append("other")

    async def main() -> None:
        async with TaskGroup() as group:
            group.create_task(other())
            await asyncio.sleep(0)
            group.create_task(failing())

    with pytest.raises(ExceptionGroup) as raised:
        asyncio.run(main())
    assert isinstance(raised.value, BaseExceptionGroup)
    assert [type(error) for error in raised.value.exceptions] == [KeyError]
    assert ended == ["other"]


def test_the_result_of_a_task() -> None:
    async def answer() -> str:
        await asyncio.sleep(0)
        return "yes"

    async def failing() -> str:
        raise KeyError("no")

    async def main() -> None:
        assert await result_of(asyncio.ensure_future(answer())) == "yes"
        with pytest.raises(KeyError):
            await result_of(asyncio.ensure_future(failing()))

    asyncio.run(main())


def test_a_task_that_is_cancelled_alone_is_told_from_a_cancelled_caller() -> None:
    async def main() -> None:
        task = asyncio.ensure_future(forever())
        asyncio.get_running_loop().call_soon(task.cancel)
        with pytest.raises(TaskCancelled):
            await result_of(task)

        ended = []

        async def slow_to_end() -> None:
            try:
                await forever()
            finally:
                await asyncio.sleep(0)
                ended.append("task")

        task = asyncio.ensure_future(slow_to_end())
        caller = asyncio.ensure_future(result_of(task))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.wait([caller])
        assert caller.cancelled()
        assert task.cancelled()
        assert ended == ["task"]

    asyncio.run(main())


def test_tasks_of_a_runner_count_their_cancellations() -> None:
    async def main() -> list[object]:
        task = asyncio.current_task()
        assert task is not None
        found: list[object] = [is_cancelling()]
        task.cancel()
        try:
            await forever()
        except asyncio.CancelledError:
            found.append(is_cancelling())
            found.append(uncancel(task))
        return [*found, is_cancelling()]

    with Runner(loop_factory=asyncio.new_event_loop) as runner:
        assert runner.run(main()) == [False, True, 0, False]


def test_a_cancellation_that_was_caught_is_withdrawn_in_any_loop() -> None:
    async def main() -> int:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await forever()
        except asyncio.CancelledError:
            return uncancel(task)
        return -1

    assert asyncio.run(main()) == 0


@pytest.mark.parametrize(
    "command",
    [module_command("json.tool"), [sys.executable, "-c", python._SAFE_PATH, "json.tool"]],
    ids=["this Python", "Python 3.10"],
)
def test_files_of_the_current_folder_do_not_replace_modules(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('this is not the module')\n")
    done = subprocess.run(
        [*command, "--indent", "1"], input='{"a": 1}', cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"a": 1}
    assert "\n " in done.stdout  # the arguments arrived

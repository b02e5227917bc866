"""The executor of this machine: the kit, and what happens to processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sage_infer.contracts import ReplicaHandle
from sage_infer.errors import EngineDead, OutOfMemory, UnsupportedFeature
from sage_infer.plugins import open_executor
from sage_infer.schemas import ReplicaSpec, SamplingParams
from sage_infer_testing import ExecutorContract
from sage_infer_testing.waiting import eventually
from sage_llm.replicas import cpu_share
from sage_llm.replicas.connect import connect
from sage_llm.replicas.local import SERVER, LocalExecutor
from sage_llm.replicas.record import started_at
from sage_llm.replicas.run_folder import run_folder
from served_toys import freeze, llm_spec, words_spec

WAIT_S = 120.0

pytestmark = pytest.mark.usefixtures("toys")


async def use(handle: ReplicaHandle) -> None:
    """Connect to a replica and send it a request."""
    replica = await connect(handle)
    try:
        (stream,) = await replica.backend.generate("Once", SamplingParams(max_tokens=3, ignore_eos=True))
        tokens = [token async for delta in stream for token in delta.token_ids]
        assert len(tokens) == 3
    finally:
        await replica.close()


def with_executor(test: Callable[[LocalExecutor], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        executor = LocalExecutor(**{"server": SERVER, **options})
        try:
            await test(executor)
        finally:
            await executor.close()

    asyncio.run(main())


async def rest(reading: AsyncIterator[Any]) -> None:
    async for _ in reading:
        pass


async def gone(*pids: int) -> None:
    await eventually(lambda: not any(map(started_at, pids)), f"{pids} did not end", within_s=WAIT_S)


class TestChildren(ExecutorContract):
    settle_s = WAIT_S
    start_timeout_s = WAIT_S
    unsupported = {"gpus": 1.0, "memory_gb": 1.0, "group": "a"}  # noqa: RUF012 - as the kit declares it

    def make_executor(self) -> LocalExecutor:
        return LocalExecutor(server=SERVER)

    def make_spec(self, replica_id: str) -> ReplicaSpec:
        return llm_spec(replica_id)

    async def use(self, handle: ReplicaHandle) -> None:
        await use(handle)


class TestInThisProcess(ExecutorContract):
    unsupported = {"gpus": 1.0, "environment": {"A": "1"}}  # noqa: RUF012 - as the kit declares it

    def make_executor(self) -> LocalExecutor:
        return LocalExecutor()

    def make_spec(self, replica_id: str) -> ReplicaSpec:
        return llm_spec(replica_id)


def test_the_plug_in_registers_the_executor() -> None:
    assert isinstance(open_executor("local", server=SERVER), LocalExecutor)


def environment_of(handle: Any) -> list[bytes]:
    return Path(f"/proc/{handle.pid}/environ").read_bytes().split(b"\0")


def test_environment_and_embedding_reach_the_child() -> None:
    async def test(executor: LocalExecutor) -> None:
        handle = await executor.start(words_spec(environment={"COLOUR": "blue"}))
        assert b"COLOUR=blue" in environment_of(handle)
        replica = await connect(handle)
        result = await replica.backend.embed(["two words", "three words here"])
        assert len(result) == 2
        assert result.dim == replica.backend.get_embedding_dim()
        await replica.close()

    with_executor(test)


def niceness(pid: int) -> str:
    """Of a session against others, such as "nice 5"."""
    return Path(f"/proc/{pid}/autogroup").read_text().partition(" ")[2].strip()


@pytest.mark.skipif(
    not os.access(f"/proc/{os.getpid()}/autogroup", os.W_OK),
    reason="this system does not divide the CPUs among sessions",
)
def test_a_child_that_starts_leaves_the_cpus_to_those_that_serve_at_first() -> None:
    async def test(executor: LocalExecutor) -> None:
        first: Any = await executor.start(llm_spec())
        assert niceness(first.pid) == "nice 0"
        starting = asyncio.ensure_future(executor.start(llm_spec("reference/1", backend="stuck")))
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")

        def yields() -> bool:
            pids = set(map(int, children.read_text().split())) - {first.pid}
            return any(niceness(pid) == "nice 10" for pid in pids if started_at(pid))

        await eventually(yields, "the starting child has the usual share", within_s=WAIT_S)
        await eventually(lambda: not yields(), "it does not get the usual share", within_s=WAIT_S)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)

    with_executor(test)


def test_niceness_is_set_once_linux_accepts_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [BlockingIOError("too soon"), BlockingIOError("too soon"), True]

    def write(file: Path, nice: int) -> bool:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return bool(answer)

    monkeypatch.setattr(cpu_share, "_write", write)
    assert asyncio.run(cpu_share.set_niceness(1, 5))
    assert not answers
    answers[:] = [PermissionError("not yours")]
    assert not asyncio.run(cpu_share.set_niceness(1, 5))
    monkeypatch.undo()
    assert not asyncio.run(cpu_share.set_niceness(2**30, 5)), "there is no such process"


def test_errors_of_the_start_keep_their_type() -> None:
    async def test(executor: LocalExecutor) -> None:
        with pytest.raises(OutOfMemory, match="80 GiB"):
            await executor.start(llm_spec(backend="full"))
        with pytest.raises(EngineDead, match=r"exit code 3; its last lines: .*engine says: bad weights"):
            await executor.start(llm_spec(backend="crashing"))
        with pytest.raises(EngineDead, match="did not start within 3 s"):
            await executor.start(llm_spec(backend="stuck", start_timeout_s=3.0))
        assert not list(run_folder().iterdir())

    with_executor(test)


def test_a_start_that_is_cancelled_twice_waits_for_its_process() -> None:
    async def test(executor: LocalExecutor) -> None:
        starting = asyncio.ensure_future(executor.launch(llm_spec(backend="stuck")))
        await eventually(
            lambda: any(file.stat().st_size for file in run_folder().glob("*.json")),
            "the process did not start",
            within_s=WAIT_S,
        )
        for _ in range(2):
            starting.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not list(run_folder().iterdir())

    with_executor(test)


def test_kill_9_ends_streams_and_is_told() -> None:
    async def test(executor: LocalExecutor) -> None:
        handle: Any = await executor.start(llm_spec(options={"pause_s": 0.05}))
        replica = await connect(handle)
        lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        replica.on_lost(lost.set_result)
        (stream,) = await replica.backend.generate("Once", SamplingParams(max_tokens=100, ignore_eos=True))
        reading = aiter(stream)
        await anext(reading)
        os.kill(handle.pid, signal.SIGKILL)
        with pytest.raises(EngineDead):
            await rest(reading)
        assert await lost
        ended = await handle.wait()
        assert ended.code == -9
        assert "killed by SIGKILL" in ended.reason
        assert (await replica.backend.health()).status == "dead"
        with pytest.raises(EngineDead):
            await replica.backend.generate("Once", SamplingParams(max_tokens=1))
        await replica.close()
        assert not list(run_folder().iterdir())

    with_executor(test)


def test_the_whole_process_group_ends(tmp_path: Path) -> None:
    async def test(executor: LocalExecutor) -> None:
        pid_file = tmp_path / "worker"
        handle: Any = await executor.start(llm_spec(backend="parent", options={"pid_file": str(pid_file)}))
        worker = int(pid_file.read_text())
        os.kill(handle.pid, signal.SIGKILL)
        await handle.wait()
        await gone(worker)

    with_executor(test)


def test_a_stopped_process_is_killed_after_its_grace() -> None:
    async def test(executor: LocalExecutor) -> None:
        handle: Any = await executor.start(llm_spec())
        await freeze(handle.pid)
        assert (await handle.stop(grace_s=0.1)).reason == "killed"
        await gone(handle.pid)

    with_executor(test)


PARENT = """
import asyncio, sys
from sage_llm.replicas.local import SERVER, LocalExecutor
from served_toys import llm_spec
async def main():
    executor = LocalExecutor(server=SERVER, grace_s=float(sys.argv[1]))
    handle = await executor.start(llm_spec())
    print(handle.pid, handle.descriptor.generation, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def orphan(grace_s: float) -> tuple[int, int]:
    """Return pid and generation of a replica whose executor was killed."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(grace_s)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid, generation = map(int, parent.stdout.readline().split())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    return pid, generation


def test_a_replica_survives_its_executor_and_is_adopted() -> None:
    pid, generation = orphan(grace_s=WAIT_S)

    async def test(executor: LocalExecutor) -> None:
        (handle,) = await executor.adopt()
        assert handle.descriptor.generation == generation
        assert await LocalExecutor(server=SERVER).adopt() == [], "two executors own one replica"
        await use(handle)
        assert (await handle.stop(grace_s=WAIT_S)).reason == "stopped"
        await gone(pid)
        assert not list(run_folder().iterdir())

    with_executor(test)


def test_a_replica_that_nobody_adopts_ends() -> None:
    pid, _ = orphan(grace_s=0.0)
    asyncio.run(gone(pid))

    async def test(executor: LocalExecutor) -> None:
        assert await executor.adopt() == []
        assert not list(run_folder().iterdir())

    with_executor(test)


def test_replicas_in_this_process_refuse_an_environment() -> None:
    async def test(executor: LocalExecutor) -> None:
        with pytest.raises(UnsupportedFeature, match="environment"):
            await executor.start(llm_spec(environment={"A": "1"}))

    with_executor(test, server=None)

"""The engine's processes: group, exit with their parent, shared memory, and reports."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import shared_memory
from pathlib import Path

import pytest
from sage_infer.errors import (
    BackendUnavailable,
    CapabilityMismatch,
    ModelFileError,
    OutOfMemory,
    SageInferError,
)
from sage_infer.errors import UnsupportedFeature as Unsupported
from sage_infer_vllm.engine import worker
from sage_infer_vllm.engine.failures import start_failure
from sage_infer_vllm.engine.process import EngineProcesses, end_of, engine_start, wait_for_end
from sage_infer_vllm.engine.start_reports import ADDRESS, Listener, report, report_failure
from vllm_children import fail, fork_failing_worker, hold_shared_memory, say_group

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc, which only Linux has")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 300 s"
        time.sleep(0.01)


def start(
    target: Callable[..., None], *args: object, name: str = "EngineCore"
) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("spawn").Process(target=target, args=args, name=name)
    process.start()
    return process


# --- groups


def test_engine_processes_lead_a_group_and_others_do_not() -> None:
    reader, writer = multiprocessing.get_context("spawn").Pipe(duplex=False)
    with engine_start():
        engine = start(say_group, writer)
        assert reader.recv() == (engine.pid, engine.pid, "sage_infer_vllm.engine.child")
        engine.join()
        other = start(say_group, writer, name="another")
        pid, group, _ = reader.recv()
        assert (pid, group) == (other.pid, os.getpgid(0))
        other.join()
    assert "SAGE_INFER_VLLM_PARENT" not in os.environ


def test_reaping_kills_the_group_and_removes_its_shared_memory() -> None:
    reader, writer = multiprocessing.get_context("spawn").Pipe(duplex=False)
    with engine_start():
        engine = start(hold_shared_memory, writer)
    name, grandchild = reader.recv()
    assert engine.pid is not None
    processes = EngineProcesses.of([engine.pid])
    assert set(processes.members()) >= {engine.pid, grandchild}
    left = set(processes.shared_memory)
    assert Path("/dev/shm", name) in left
    assert any(path.name.startswith("sem.") for path in left)
    os.kill(engine.pid, signal.SIGKILL)  # as the kernel does when memory runs out: the grandchild lives on
    engine.join()
    assert grandchild in processes.members()
    processes.reap()
    assert processes.members() == []
    assert not any(path.exists() for path in left)
    processes.reap()  # a second time does nothing


def test_the_exit_of_any_process_is_detected() -> None:
    reader, writer = multiprocessing.get_context("spawn").Pipe(duplex=False)
    with engine_start():
        engine = start(hold_shared_memory, writer)
    _, grandchild = reader.recv()
    assert engine.pid is not None
    processes = EngineProcesses.of([engine.pid])
    ended = threading.Event()
    threads = [
        threading.Thread(target=lambda: [wait_for_end([grandchild, os.getpid()]), ended.set()], daemon=True),
        threading.Thread(target=processes.wait_for_end, daemon=True),
    ]
    for thread in threads:
        thread.start()
    assert not ended.is_set()
    os.kill(grandchild, signal.SIGKILL)
    assert ended.wait(300)
    assert threads[1].is_alive()  # the grandchild is no worker of vLLM's
    processes.reap()
    threads[1].join(300)
    assert not threads[1].is_alive()
    wait_for_end([grandchild])  # long gone
    engine.join()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_engine_leads_its_group_and_reports_too(monkeypatch: pytest.MonkeyPatch) -> None:
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    with Listener(lambda stage: None) as listener:
        monkeypatch.setenv(ADDRESS, listener.address)
        with engine_start() as started:
            engine = context.Process(target=hold_shared_memory, args=(writer,), name="EngineCore")
            failing = context.Process(target=fail, name="EngineCore_DP1")
            other = context.Process(target=say_group, args=(writer,), name="another")
            for process in (engine, failing, other):
                process.start()
            for process in (failing, other):
                process.join()
            assert started == [engine, failing]
        listener.drain()
        assert listener.failures == [("ValueError", "there is no room")]
    messages = [reader.recv()[:2], reader.recv()[:2]]
    assert (other.pid, os.getpgid(0)) in messages
    assert end_of([engine]) == ""
    assert end_of(started) == "EngineCore_DP1 exited with code 1"
    assert engine.pid is not None
    processes = EngineProcesses.of([engine.pid])
    assert processes.groups == {engine.pid}
    processes.cores = [engine]
    os.kill(engine.pid, signal.SIGKILL)
    processes.wait_for_end()
    assert processes.end() == "EngineCore was killed by SIGKILL"
    processes.reap()
    assert processes.members() == []


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_worker_of_a_forked_engine_reports_what_its_core_does_not_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Listener(lambda stage: None) as listener:
        monkeypatch.setenv(ADDRESS, listener.address)
        with engine_start():
            core = multiprocessing.get_context("fork").Process(target=fork_failing_worker, name="EngineCore")
            core.start()
            core.join()
    assert listener.failures == [("ValueError", "there is no room"), ("RuntimeError", "a worker failed")]


def test_a_worker_that_ended_while_the_core_runs() -> None:
    assert EngineProcesses(cores=[multiprocessing.process.current_process()]).end() == "a worker exited"


def test_shared_memory_that_others_use_stays() -> None:
    block = shared_memory.SharedMemory(create=True, size=64)
    try:
        processes = EngineProcesses(frozenset(), frozenset(), {Path("/dev/shm", block.name)})
        processes.reap()
        assert Path("/dev/shm", block.name).exists()
    finally:
        block.close()
        block.unlink()


def test_a_process_without_its_own_group_kills_no_other() -> None:
    reader, writer = multiprocessing.get_context("spawn").Pipe(duplex=False)
    process = start(hold_shared_memory, writer)
    _, grandchild = reader.recv()
    assert process.pid is not None
    assert EngineProcesses.of([process.pid]).groups == frozenset()
    os.kill(grandchild, signal.SIGKILL)
    process.kill()
    process.join()


PARENT = """
import multiprocessing, sys
from sage_infer_vllm.engine.process import engine_start
from vllm_children import hold_shared_memory

if __name__ == "__main__":
    reader, writer = multiprocessing.get_context("spawn").Pipe(duplex=False)
    with engine_start():
        process = multiprocessing.get_context("spawn").Process(
            target=hold_shared_memory, args=(writer,), name="EngineCore"
        )
        process.start()
    print(process.pid, reader.recv()[1], flush=True)
    sys.stdin.read()
"""


def test_the_engine_ends_with_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert parent.stdout is not None
    assert parent.stdin is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    group = EngineProcesses(frozenset(pids), frozenset(pids[:1]))
    wait_for(lambda: not group.members())
    parent.stdin.close()
    parent.stdout.close()


# --- reports of a start


def test_reports_arrive_in_order_and_failures_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[str] = []
    with Listener(stages.append) as listener:
        monkeypatch.setenv(ADDRESS, listener.address)
        report(stage="load_model")
        report_failure(FileNotFoundError("no shard"))
        report(stage="again")
        report_failure(RuntimeError("because of that"))
    assert stages == ["load_model", "again"]
    assert listener.failures == [("FileNotFoundError", "no shard"), ("RuntimeError", "because of that")]
    assert not Path(listener.address).exists()
    report(stage="nobody listens any more")


def test_reports_without_a_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADDRESS, raising=False)
    report(stage="x")


def test_exceptions_of_engine_processes_are_reported(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with Listener(lambda stage: None) as listener:
        monkeypatch.setenv(ADDRESS, listener.address)
        with engine_start():
            process = start(fail)
        process.join()
    assert process.exitcode == 1
    assert listener.failures == [("ValueError", "there is no room")]
    capfd.readouterr()  # the traceback, which is printed as ever


def test_a_worker_reports_its_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(worker.BASE, "vllm_children.ToyWorker")
    monkeypatch.delattr(worker, "Worker", raising=False)
    stages: list[str] = []
    with Listener(stages.append) as listener:
        monkeypatch.setenv(ADDRESS, listener.address)
        made = worker.Worker()
        assert made.load_model() == "loaded"
        with pytest.raises(ValueError, match="no memory"):
            made.determine_available_memory()
    assert stages == ["load_model", "determine_available_memory"]
    assert listener.failures == [("ValueError", "no memory")]
    layer = {
        "kind": "SimpleNamespace", "block_size": 16, "num_heads": 2, "head_dim": 8, "value_dim": 8, "window": None,
        "chunk": None, "tokens_per_entry": 1.0, "dtype": "bfloat16", "page_bytes": 1024, "state_bytes": 0,
        "replicated": False, "backend": "TOY", "isa": "vec", "shape": [], "stride": [],
    }  # fmt: skip
    assert made.sage_kv_facts() == {"layers": [layer] * 3, "bytes": 0, "rope_halves": [], "rope_dims": []}
    with pytest.raises(AttributeError, match="no attribute 'Other'"):
        _ = worker.Other
    monkeypatch.delattr(worker, "Worker", raising=False)


# --- failures


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        # As vLLM 0.32 puts them.
        ("ValueError", "To serve at least one request with the models's max seq len (8192), (0.35 GiB KV cache is "
         "needed, which is larger than the available KV cache memory (0.00 GiB).", OutOfMemory),
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB.", OutOfMemory),
        ("RuntimeError", "Cannot find any model weights with `/m`", ModelFileError),
        ("SafetensorError", "Error while deserializing header: HeaderTooLarge", ModelFileError),
        ("ValueError", "Model architectures ['Foo'] are not supported for now.", Unsupported),
        ("ValueError", "awq quantization is currently not supported in tpu.", CapabilityMismatch),
        ("NotImplementedError", "FP8 KV cache on CPU requires x86 with AVX-512 or AMX.", CapabilityMismatch),
        ("RuntimeError", "something else", BackendUnavailable),
    ],
)  # fmt: skip
def test_vllms_messages_become_specific_errors(kind: str, text: str, expected: type[SageInferError]) -> None:
    error = start_failure(
        [(kind, text), ("RuntimeError", "a consequence")], RuntimeError("Engine core failed")
    )
    assert type(error) is expected
    assert text.split("`")[0][:30] in str(error)
    assert "\n" not in str(error)


def test_what_ended_a_process_is_the_cause_where_vllm_knows_none() -> None:
    failed = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")
    killed = start_failure([], failed, ended="EngineCore was killed by SIGKILL")
    assert isinstance(killed, BackendUnavailable)
    assert "EngineCore was killed by SIGKILL; the kernel does so when memory runs out" in str(killed)
    crashed = str(start_failure([], failed, ended="EngineCore was killed by SIGSEGV"))
    assert "SIGSEGV" in crashed
    assert "memory" not in crashed
    reported = start_failure([("MemoryError", "")], failed, ended="EngineCore exited with code 1")
    assert isinstance(reported, OutOfMemory)
    # vLLM ends its processes after a failure of its own.
    own = start_failure([], ValueError("the tokenizer is odd"), ended="EngineCore was killed by SIGTERM")
    assert "ValueError: the tokenizer is odd" in str(own)


def test_a_library_that_the_cpu_build_wants_preloaded_is_no_file_of_the_model() -> None:
    error = start_failure(
        [("RuntimeError", "libtcmalloc is not found in LD_PRELOAD. Install it.")], OSError()
    )
    assert isinstance(error, BackendUnavailable)
    assert "requires libtcmalloc in LD_PRELOAD" in str(error)


def test_pydantics_lines_become_one() -> None:
    text = (
        "1 validation error for ModelConfig\n  Value error, The checkpoint is odd [type=value_error, input=…]\n"
        "    For further information visit https://errors.pydantic.dev/2.14/v/value_error"
    )
    assert "vLLM cannot load the model: Value error, The checkpoint is odd" in str(
        start_failure([], ValueError(text))
    )


def test_one_engine_at_a_time_starts() -> None:
    entered = threading.Event()

    def second() -> None:
        with engine_start():
            entered.set()

    thread = threading.Thread(target=second)
    with engine_start():
        thread.start()
        assert not entered.wait(0.05)
    thread.join(300)
    assert entered.is_set()

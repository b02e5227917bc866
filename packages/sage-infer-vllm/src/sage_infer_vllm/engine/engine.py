"""One running vLLM engine: started in a thread, supervised, and fully cleaned up."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from attrs import define, field, frozen
from sage_infer.compat import wait_for
from sage_infer.contracts import ProgressReport
from sage_infer.errors import BackendUnavailable, SageInferError

from sage_infer_vllm import compat
from sage_infer_vllm.engine import worker
from sage_infer_vllm.engine.failures import start_failure
from sage_infer_vllm.engine.process import KILLED, EngineProcesses, end_of, engine_start
from sage_infer_vllm.engine.start_reports import ADDRESS, Listener
from sage_infer_vllm.engine.stats import EngineCounters
from sage_infer_vllm.platform import Platform

__all__ = ["VLLMEngine", "check_platform", "start_engine"]

_RPC_S = 60.0  # timeout for the engine's description of its KV cache
_ENGINE_NAME = "EngineCore"


@frozen(eq=False)
class _Started:
    llm: Any
    counters: EngineCounters
    processes: EngineProcesses


@define(eq=False)
class VLLMEngine:
    """A running engine.

    Attributes:
        llm: vLLM's ``AsyncLLM``.
        counters: filled by vLLM after each step.
        processes: the engine's process group.
        kv: the first worker's description of its KV cache (``kv_facts``).
        kv_bytes: size of the KV cache over all workers.
        page_bytes: bytes of a KV page that the worker copies for prefill and decode apart; 0 where it copies none.
        tasks: the model's tasks according to vLLM (``generate``, ``embed``, ``classify``, …).
        listener: receives failures of the engine's processes.
        stopped: reason why the engine ended; empty while it runs.
    """

    llm: Any
    counters: EngineCounters
    processes: EngineProcesses
    kv: Mapping[str, Any]
    kv_bytes: int
    page_bytes: int
    tasks: tuple[str, ...]
    listener: Listener
    stopped: str = ""
    _on_death: Callable[[], None] | None = field(default=None, init=False)
    _closing: bool = field(default=False, init=False)

    @property
    def config(self) -> Any:
        return self.llm.vllm_config

    def watch(self, on_death: Callable[[], None]) -> None:
        """Call ``on_death`` in this event loop if the engine exits unexpectedly."""
        loop = asyncio.get_running_loop()
        self._on_death = on_death

        def wait() -> None:
            self.processes.wait_for_end()
            if not self._closing:
                self.stopped = f"vLLM's engine ended: {self._cause()}"
                with suppress(RuntimeError):  # a closed loop has no listener
                    loop.call_soon_threadsafe(self._died)
                self.processes.reap()

        threading.Thread(target=wait, name="sage-vllm-watch", daemon=True).start()

    def _cause(self) -> str:
        """Why the engine ended: the signal that killed it, or the first failure that one of its processes reported."""
        ended = self.processes.end()
        self.listener.drain()
        if KILLED in ended or not self.listener.failures:  # a killed process makes others fail
            return ended
        return ": ".join(self.listener.failures[0]).splitlines()[0]

    def _died(self) -> None:
        if self._on_death is not None:
            self._on_death()

    async def close(self) -> None:
        """Stop the engine and clean up its processes and shared memory."""
        self._closing = True
        self.stopped = self.stopped or "the backend was closed"
        self.processes.note_shared_memory()
        await asyncio.to_thread(_shut_down, self.llm, self.processes)
        self.listener.close()


async def start_engine(
    arguments: Callable[[str], Mapping[str, Any]],
    platform: Platform,
    environment: Callable[[str], Mapping[str, str | None]],
    progress: ProgressReport,
    *,
    warm_up: bool,
) -> VLLMEngine:
    """Start vLLM with the engine arguments returned by ``arguments(device type)``.

    ``environment(device type)`` applies during the engine's configuration, and to its processes. Cancellation, such as
    by Ctrl-C, ends them.

    Raises:
        BackendUnavailable, ModelFileError, UnsupportedFeature, CapabilityMismatch, OutOfMemory: vLLM did not start.
    """
    before = {process.pid for process in _engine_processes()}
    processes = EngineProcesses()

    def on_stage(name: str) -> None:
        processes.add(_new_engine_pids(before))  # so that they can be killed if the start fails
        if name in worker.STAGES:
            progress(*worker.STAGES[name])

    progress("starting the engine", 0.02)
    listener = Listener(on_stage)
    try:
        starting = asyncio.ensure_future(
            asyncio.to_thread(_start, arguments, platform, environment, listener, processes)
        )
        try:
            started = await asyncio.shield(starting)
        except asyncio.CancelledError:
            await _abandon(starting, before)
            raise
        return await _ask(started, progress, listener, warm_up=warm_up)
    except BaseException:
        listener.close()
        raise


async def _ask(
    started: _Started, progress: ProgressReport, listener: Listener, *, warm_up: bool
) -> VLLMEngine:
    """The started engine with its reported facts, after a warm-up request if requested."""
    try:
        answers = await wait_for(started.llm.collective_rpc("sage_kv_facts"), _RPC_S)
        copied = await wait_for(started.llm.collective_rpc("sage_page_bytes"), _RPC_S)
        tasks = await started.llm.get_supported_tasks()
        started.processes.note_shared_memory()
        if warm_up:
            progress("warming up", 0.85)
            await compat.warm_up(started.llm)
            started.counters.clear()
        await asyncio.to_thread(listener.drain)
        listener.failures.clear()  # of a start that succeeded
    except compat.EngineDeadError as error:
        failure = await asyncio.to_thread(_failure, error, listener, started.processes)
        await asyncio.to_thread(_shut_down, started.llm, started.processes)
        raise failure from error
    except BaseException:
        await asyncio.to_thread(_shut_down, started.llm, started.processes)
        raise
    progress("ready", 1.0)
    return VLLMEngine(
        started.llm,
        started.counters,
        started.processes,
        answers[0],
        sum(answer["bytes"] for answer in answers),
        copied[0],
        tuple(tasks),
        listener,
    )


def _start(
    arguments: Callable[[str], Mapping[str, Any]],
    platform: Platform,
    environment: Callable[[str], Mapping[str, str | None]],
    listener: Listener,
    processes: EngineProcesses,
) -> _Started:
    device = str(compat.current_platform.device_type)
    check_platform(platform)
    wanted = arguments(device)  # raises a specific error before the start
    counters = EngineCounters()
    try:
        with engine_start() as cores, _environment({**environment(device), ADDRESS: listener.address}):
            processes.cores = cores
            config = compat.engine_config(wanted)
            base, config.parallel_config.worker_cls = config.parallel_config.worker_cls, worker.CLASS
            with _environment({worker.BASE: base}):
                llm = compat.AsyncLLM.from_vllm_config(
                    config, stat_loggers=[compat.stat_logger(counters.record)], disable_log_stats=False
                )
    except Exception as error:
        raised = error
    else:
        processes.add(compat.engine_pids(llm))
        return _Started(llm, counters, processes)
    failure = _failure(raised, listener, processes)
    processes.reap()
    raise failure from raised


def _failure(raised: Exception, listener: Listener, processes: EngineProcesses) -> SageInferError:
    """The error for a failed start, before its remaining processes are ended."""
    listener.drain()
    return start_failure(listener.failures, raised, ended=end_of(processes.cores))


async def _abandon(starting: asyncio.Future[_Started], before: set[int | None]) -> None:
    """Cancel a start: kill its processes first, so that the thread does not wait for them."""
    while not starting.done():
        pids = _new_engine_pids(before)
        await asyncio.to_thread(EngineProcesses.of(pids).reap)
        for pid in pids:  # a process may not lead its group yet
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.wait([starting], timeout=0.1)
    with suppress(Exception):
        started = starting.result()
        await asyncio.to_thread(_shut_down, started.llm, started.processes)


def check_platform(platform: Platform) -> None:
    """Reject a vendor's backend on another platform.

    Raises:
        BackendUnavailable: vLLM found another platform.
    """
    found = type(compat.current_platform)
    if platform.builtin is not None and not getattr(compat.current_platform, f"is_{platform.builtin}")():
        raise BackendUnavailable(
            f"backend {platform.backend_name!r} requires vLLM's platform {platform.builtin!r}, but vLLM uses "
            f"{found.__module__}.{found.__qualname__}; check the vendor's driver, and that its build is installed"
        )
    if platform.plugin is None:
        return
    if platform.plugin not in compat.active_platform_plugins():
        raise BackendUnavailable(
            f"backend {platform.backend_name!r} requires vLLM's platform plug-in {platform.plugin!r}, but vLLM uses "
            f"{found.__module__}.{found.__qualname__}; check the vendor's driver, and that VLLM_PLUGINS is not set"
        )


def _engine_processes() -> list[Any]:
    return [process for process in multiprocessing.active_children() if process.name.startswith(_ENGINE_NAME)]


def _new_engine_pids(before: set[int | None]) -> list[int]:
    return [process.pid for process in _engine_processes() if process.pid and process.pid not in before]


def _shut_down(llm: Any, processes: EngineProcesses) -> None:
    try:
        compat.shut_down(llm)
    finally:
        processes.reap()


@contextmanager
def _environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables for the engine's configuration and the processes started during it; None unsets one."""
    before = {name: os.environ.get(name) for name in variables}
    _set(variables)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value

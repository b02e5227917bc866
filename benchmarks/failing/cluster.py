"""The servers under test: a control plane over children or joined servers, and a router over the same servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sage_infer.discovery import model_specs
from sage_infer.errors import BackendUnavailable, SageInferError
from sage_infer.models import add_model
from sage_llm.commands.control import ask
from servers import free_port

from failing.streams import LLM

__all__ = ["Namespaces", "Plane", "Router", "Servers", "VLLMServers", "answers", "until"]

START_S = 300.0
SAGE = str(Path(sys.executable).with_name("sage"))
OPTIONS = {"kv_cache_gb": 0.5, "threads": 1}


async def until(condition: Callable[[], Any], what: str, within_s: float = START_S) -> float:
    """Wait for a condition; return when it was first seen, on the clock of ``time.perf_counter``."""
    end = time.monotonic() + within_s
    while True:
        if await asyncio.to_thread(condition):
            return time.perf_counter()
        if time.monotonic() > end:
            raise TimeoutError(f"{what} took more than {within_s:g} s")
        await asyncio.sleep(0.05)


def answers(url: str) -> bool:
    with contextlib.suppress(OSError):
        urllib.request.urlopen(f"{url}/health", timeout=5).close()  # 503 while models are loaded
        return True
    return False


class Server:
    """One server process with its log."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str] | None = None) -> None:
        with log.open("a") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=output, start_new_session=True,
                env={**os.environ, **(environment or {})},
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        self.end_group()
        self.process.wait()

    def end_group(self) -> None:
        """Kill what is left of its process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


class Plane:
    """``sage llm serve`` with two children, or over joined servers.

    Attributes:
        greedy: whether all requests shall be greedy, because the servers cannot continue others.
    """

    name = "sage llm serve"

    def __init__(self, folder: Path, backend: str = "openvino", servers: Servers | None = None) -> None:
        self.folder, self.port, self.servers = folder, free_port(), servers
        self.greedy = isinstance(servers, VLLMServers)
        joined = () if servers is None else servers.urls
        self.url = f"http://127.0.0.1:{self.port}"
        models = [] if joined else [{"model": LLM, "backend": backend, "replicas": 2, "options": OPTIONS}]
        config = {
            "serve": {"port": self.port, "target_wait_s": None},
            # Faults come faster than in life, and a busy machine restarts slowly: nothing shall be given up.
            "llm": {
                "models": models,
                "join": list(joined),
                "max_early_failures": 100_000,
                "instance_wait_s": 600,
                "max_migrations": 100,
            },
        }
        self._config = folder / "sage_infer.yaml"
        self._config.write_text(json.dumps(config))
        self._command = [SAGE, "--config", str(self._config), "llm", "serve"]
        if joined:
            self._command += [flag for url in joined for flag in ("--join", url)]
        self.server = self._start()

    def _start(self) -> Server:
        return Server(self._command, self.folder / "serve.log")

    def kill(self) -> None:
        """End the control plane as ``kill -9`` does, and nothing else."""
        self.server.process.kill()
        self.server.process.wait()

    def start_again(self) -> None:
        self.server = self._start()

    async def ready(self) -> None:
        """Wait until every replica accepts requests."""
        await until(lambda: (rows := self.rows()) and all(r["state"] == "ready" for r in rows), "the start")

    async def open(self) -> None:
        """Wait until every replica accepts requests, if only a few."""
        if self.servers is not None:
            self.servers.revive()
            await self.servers.ready()
        wanted = ("ready", "probation")
        await until(lambda: (rows := self.rows()) and all(r["state"] in wanted for r in rows), "the return")

    def rows(self) -> list[dict[str, Any]]:
        """The replicas, as ``sage llm status`` shows them."""
        return list(self.status()["replicas"]) if self.server.process.poll() is None else []

    def status(self) -> dict[str, Any]:
        with contextlib.suppress(BackendUnavailable, OSError):
            return dict(ask(self.port, "status"))
        return {"replicas": []}

    def returned(self, old: set[int]) -> int | None:
        """A replica that is back, in another process than before."""
        found = {row["pid"] for row in self.rows() if row["state"] in ("ready", "probation")}
        return next(iter(found - old), None)

    async def drain(self, instance: str) -> tuple[float, str]:
        """Drain a replica, and start it again; returns how long it took to end, and what moved."""
        result = await self.ask("drain", replica=instance)
        await self.ask("scale", model=instance.rpartition("/")[0], replicas=2)
        return float(result["took_s"]), f"{result['open']} open, {result['migrated']} moved"

    async def restart(self) -> float:
        """Restart the replicas one after another; returns the longest time that one took to end."""
        return max(float(result["took_s"]) for result in await self.ask("restart"))

    def row(self, instance: str) -> dict[str, Any]:
        return next((row for row in self.rows() if row["instance"] == instance), {"state": "?"})

    def pids(self) -> dict[str, int]:
        if self.servers is not None:
            return self.servers.pids()
        return {row["instance"]: row["pid"] for row in self.rows() if row.get("pid")}

    async def moves(self, request: str) -> list[dict[str, Any]]:
        """The moves of a request with output, as ``sage llm explain`` shows them; none if nothing is known of it."""
        with contextlib.suppress(SageInferError, OSError):
            return list((await self.ask("explain", request=request))["moves"])
        return []

    async def ask(self, method: str, **arguments: Any) -> Any:
        return await asyncio.to_thread(ask, self.port, method, **arguments)

    def close(self) -> None:
        self.server.stop()


class Servers:
    """Two servers of the model, each at a port of its own. What supervises them starts a dead one again."""

    def __init__(self, folder: Path, backend: str = "openvino") -> None:
        self._folder, self._backend = folder, backend
        self._ports = [free_port(), free_port()]
        self.all = [self._start(number) for number in range(2)]

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(f"http://127.0.0.1:{port}" for port in self._ports)

    def _start(self, number: int) -> Server:
        port = self._ports[number]
        model = {"model": LLM, "backend": self._backend, "options": OPTIONS}
        config = self._folder / f"{port}.yaml"
        config.write_text(json.dumps({"serve": {"port": port, "target_wait_s": None, "models": [model]}}))
        return Server([SAGE, "--config", str(config), "infer", "serve"], self._folder / f"{port}.log")

    def revive(self) -> None:
        """Start the servers that have ended."""
        for number, server in enumerate(self.all):
            if server.process.poll() is not None:
                server.end_group()
                self.all[number] = self._start(number)

    async def ready(self) -> None:
        for url in self.urls:
            await until(partial(answers, url), f"the start of {url}")

    def pids(self) -> dict[str, int]:
        return {str(number): server.pid for number, server in enumerate(self.all)}

    async def restart(self, number: int) -> float:
        """End a server as an operator does, and start it again. Returns how long it took to end."""
        begun, server = time.perf_counter(), self.all[number]
        server.process.terminate()
        await asyncio.to_thread(server.process.wait)
        took = time.perf_counter() - begun
        self.revive()
        await until(partial(answers, self.urls[number]), "the start")
        return took

    def close(self) -> None:
        for server in self.all:
            server.stop()


class VLLMServers(Servers):
    """Two of vLLM's servers, one CPU each; ``python`` is that of an environment with vLLM."""

    def __init__(self, folder: Path, python: str) -> None:
        from sage_infer_vllm.models.prepare import loadable_folder

        found = add_model(model_specs()[LLM])
        self._python, self._model = python, loadable_folder(found, cache_dir=None, progress=lambda *_: None)
        super().__init__(folder)

    def _start(self, number: int) -> Server:
        port = self._ports[number]
        command = [
            self._python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self._model),
            "--served-model-name", LLM, "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32",
            "--max-model-len", "1024", "--max-num-seqs", "32", "--enforce-eager", "--disable-uvicorn-access-log",
        ]  # fmt: skip
        environment = {
            "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": str(number), "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }  # fmt: skip
        return Server(command, self._folder / f"{port}.log", environment)

    async def ready(self) -> None:
        for url in self.urls:
            await until(partial(answers, url), f"the start of {url}", 600)


class Namespaces(Servers):
    """Two ``sage infer serve``, each in a network namespace of its own.

    Needs root. The kernel must allow network namespaces.
    """

    def __init__(self, folder: Path) -> None:
        self._names = [f"sage{os.getpid() % 10_000}{letter}" for letter in "ab"]
        for number, name in enumerate(self._names):
            _ip("netns", "add", name)
            _ip("link", "add", f"{name}0", "type", "veth", "peer", "name", f"{name}1")
            _ip("link", "set", f"{name}1", "netns", name)
            _ip("addr", "add", f"10.211.{number}.1/24", "dev", f"{name}0")
            _ip("link", "set", f"{name}0", "up")
            for arguments in (
                ("addr", "add", f"10.211.{number}.2/24", "dev", f"{name}1"),
                ("link", "set", f"{name}1", "up"),
                ("link", "set", "lo", "up"),
            ):
                _ip("-n", name, *arguments)
        super().__init__(folder)

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(f"http://10.211.{number}.2:8000" for number in range(2))

    def _start(self, number: int) -> Server:
        name = self._names[number]
        serve = {"host": f"10.211.{number}.2", "port": 8000, "models": [{"model": LLM, "options": OPTIONS}]}
        config = self._folder / f"{name}.yaml"
        config.write_text(json.dumps({"serve": {**serve, "target_wait_s": None}}))
        command = ["ip", "netns", "exec", name, SAGE, "--config", str(config), "infer", "serve", "--insecure"]
        return Server(command, self._folder / f"{name}.log")

    def cut(self, number: int, *, is_cut: bool) -> None:
        """Drop all packets to and from a server, or pass them again."""
        _ip("link", "set", f"{self._names[number]}0", "down" if is_cut else "up")

    def close(self) -> None:
        super().close()
        for name in self._names:
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", name)


class Router:
    """vllm-router over two servers."""

    name = "vllm-router"
    greedy = False
    flags = ("--policy", "round_robin", "--health-check-interval-secs", "1")

    def __init__(self, folder: Path, program: str, servers: Servers) -> None:
        self._folder, self._program, self.servers = folder, program, servers
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._router: Server | None = None

    def start_again(self) -> None:
        command = [
            self._program, "--host", "127.0.0.1", "--port", str(self.port), *self.flags,
            "--worker-urls", *self.servers.urls, "--prometheus-port", str(free_port()),
        ]  # fmt: skip
        self._router = Server(command, self._folder / "router.log")

    def kill(self) -> None:
        assert self._router is not None
        self._router.process.kill()
        self._router.process.wait()

    async def ready(self) -> None:
        if self._router is None:
            self.start_again()
        await until(lambda: answers(self.url), "the start of the router")

    async def open(self) -> None:
        self.servers.revive()
        await self.servers.ready()
        await self.ready()

    def pids(self) -> dict[str, int]:
        return self.servers.pids()

    def returned(self, old: set[int]) -> int | None:
        """A server that is back, in another process than before."""
        self.servers.revive()
        pairs = zip(self.servers.urls, self.pids().values(), strict=True)
        return next((pid for url, pid in pairs if pid not in old and answers(url)), None)

    async def drain(self, instance: str) -> tuple[float, str]:
        return await self.servers.restart(int(instance)), ""

    async def restart(self) -> float:
        return max([await self.servers.restart(number) for number in range(2)])

    def close(self) -> None:
        if self._router is not None:
            self._router.stop()


def _ip(*arguments: str) -> None:
    if shutil.which("ip") is None:
        raise SystemExit("network faults need the program ip (iproute2)")
    subprocess.run(["ip", *arguments], check=True, capture_output=True)

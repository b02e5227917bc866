"""The servers under test: a control plane over children, one over joined servers in network namespaces, a router."""

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

from sage_infer.errors import BackendUnavailable
from sage_llm.commands.control import ask
from servers import free_port

from failing.streams import LLM

__all__ = ["Joined", "Plane", "Router", "until"]

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
        await asyncio.sleep(0.02)


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
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Plane:
    """``sage llm serve`` with two children."""

    name = "sage llm serve"

    def __init__(self, folder: Path, backend: str = "openvino", joined: tuple[str, ...] = ()) -> None:
        self.folder, self.port = folder, free_port()
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
        wanted = ("ready", "probation")
        await until(lambda: (rows := self.rows()) and all(r["state"] in wanted for r in rows), "the return")

    def rows(self) -> list[dict[str, Any]]:
        """The replicas, as ``sage llm status`` shows them."""
        return list(self.status()["replicas"]) if self.server.process.poll() is None else []

    def status(self) -> dict[str, Any]:
        with contextlib.suppress(BackendUnavailable, OSError):
            return dict(ask(self.port, "status"))
        return {"replicas": []}

    def row(self, instance: str) -> dict[str, Any]:
        return next((row for row in self.rows() if row["instance"] == instance), {"state": "?"})

    def pids(self) -> dict[str, int]:
        return {row["instance"]: row["pid"] for row in self.rows() if row.get("pid")}

    async def ask(self, method: str, **arguments: Any) -> Any:
        return await asyncio.to_thread(ask, self.port, method, **arguments)

    def close(self) -> None:
        self.server.stop()


class Joined:
    """``sage llm serve --join`` over two ``sage infer serve``, each in a network namespace of its own.

    Needs root. The kernel must allow network namespaces.
    """

    name = "sage llm serve --join"

    def __init__(self, folder: Path) -> None:
        self._names = [f"sage{os.getpid() % 10_000}{letter}" for letter in "ab"]
        self._servers: list[Server] = []
        urls = []
        for number, name in enumerate(self._names):
            here, there = f"10.211.{number}.1", f"10.211.{number}.2"
            _ip("netns", "add", name)
            _ip("link", "add", f"{name}0", "type", "veth", "peer", "name", f"{name}1")
            _ip("link", "set", f"{name}1", "netns", name)
            _ip("addr", "add", f"{here}/24", "dev", f"{name}0")
            _ip("link", "set", f"{name}0", "up")
            for arguments in (
                ("addr", "add", f"{there}/24", "dev", f"{name}1"),
                ("link", "set", f"{name}1", "up"),
                ("link", "set", "lo", "up"),
            ):
                _ip("-n", name, *arguments)
            config = folder / f"{name}.yaml"
            config.write_text(
                json.dumps(
                    {"serve": {"host": there, "port": 8000, "models": [{"model": LLM, "options": OPTIONS}]}}
                )
            )
            command = [
                "ip",
                "netns",
                "exec",
                name,
                SAGE,
                "--config",
                str(config),
                "infer",
                "serve",
                "--insecure",
            ]
            self._servers.append(Server(command, folder / f"{name}.log"))
            urls.append(f"http://{there}:8000")
        self.urls = tuple(urls)

    async def ready(self) -> None:
        for url in self.urls:
            await until(partial(answers, url), f"the start of {url}")

    def cut(self, number: int, *, is_cut: bool) -> None:
        """Drop all packets to and from a server, or pass them again."""
        _ip("link", "set", f"{self._names[number]}0", "down" if is_cut else "up")

    def close(self) -> None:
        for server in self._servers:
            server.stop()
        for name in self._names:
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", name)


class Router:
    """vllm-router over two ``sage infer serve``; the servers are started again by ``revive``."""

    name = "vllm-router"

    def __init__(self, folder: Path, program: str) -> None:
        self._folder, self._ports = folder, [free_port(), free_port()]
        self.servers = [self._server(port) for port in self._ports]
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._program = program
        self._router: Server | None = None

    def _server(self, port: int) -> Server:
        config = self._folder / f"{port}.yaml"
        config.write_text(
            json.dumps({"serve": {"port": port, "models": [{"model": LLM, "options": OPTIONS}]}})
        )
        return Server([SAGE, "--config", str(config), "infer", "serve"], self._folder / f"{port}.log")

    async def ready(self) -> None:
        urls = [f"http://127.0.0.1:{port}" for port in self._ports]
        for url in urls:
            await until(partial(answers, url), f"the start of {url}")
        if self._router is None:
            command = [
                self._program, "--host", "127.0.0.1", "--port", str(self.port), "--policy", "round_robin",
                "--worker-urls", *urls, "--prometheus-port", str(free_port()),
            ]  # fmt: skip
            self._router = Server(command, self._folder / "router.log")
        await until(lambda: answers(self.url), "the start of the router")

    async def open(self) -> None:
        for number, server in enumerate(self.servers):
            if server.process.poll() is not None:
                self.servers[number] = self._server(self._ports[number])
        await self.ready()

    def pids(self) -> dict[str, int]:
        return {str(number): server.pid for number, server in enumerate(self.servers)}

    def close(self) -> None:
        for server in (*self.servers, *([self._router] if self._router else [])):
            server.stop()


def _ip(*arguments: str) -> None:
    if shutil.which("ip") is None:
        raise SystemExit("network faults need the program ip (iproute2)")
    subprocess.run(["ip", *arguments], check=True, capture_output=True)

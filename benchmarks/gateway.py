"""Cost of the gateway per request: CPU and added time to the first token, compared with other gateways.

    hatch run python benchmarks/gateway.py [--rounds 5] [--json results.json] [--only ours,relay]

Every gateway gets the same requests from the same client, 16 concurrently, in turn. Its backend answers a chat
immediately (one JSON answer), or with 32 chunks, one per 2 ms. For the others this is a bare uvloop server over HTTP;
ours calls an in-process backend that emits tokens at the same times. ``relay`` is a bare TCP relay on uvloop: the lower
bound for forwarding bytes in Python. CPU is that of the gateway's processes from /proc; the added time is the time to
the first token through the gateway minus that of the server behind it.

vllm-router and LiteLLM are installed into separate environments below the user's cache folder.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import platformdirs
import uvloop
from servers import free_port, running

CHUNKS, STEP_S, AT_ONCE = 32, 0.002, 16
START_S = 120.0
MODEL = "mock"
BODY = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Hello, how are you today?"}],
    "temperature": 0.5,
}
TEXT = b"data: " + json.dumps(
    {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL,
        "choices": [{"index": 0, "delta": {"content": " word"}, "logprobs": None, "finish_reason": None}],
    }
).encode() + b"\n\n"  # fmt: skip
LAST = TEXT.replace(b'"finish_reason": null', b'"finish_reason": "stop"') + b"data: [DONE]\n\n"
WHOLE = json.dumps(
    {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL,
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "word"}, "logprobs": None, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 8, "completion_tokens": 1, "total_tokens": 9},
    }
).encode()  # fmt: skip
READY = b'{"object": "list", "data": [{"id": "mock", "object": "model", "created": 1, "owned_by": "x"}]}'


# --- backends behind a gateway


class Steps:
    """Calls registered callbacks once per step, like an engine that computes one token per sequence."""

    def __init__(self) -> None:
        self.live: set[Callable[[], None]] = set()
        self._task = asyncio.ensure_future(self._run())

    def stop(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(STEP_S)
            for step in list(self.live):
                step()


class Upstream(asyncio.Protocol):
    """A minimal server. A word in the body marks a streaming request."""

    steps: Steps

    def connection_made(self, transport: Any) -> None:
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, mark, body = self.buffer.partition(b"\r\n\r\n")
        lowered = head.lower()
        length = int(lowered.partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
        if not mark or len(body) < length:
            return
        self.buffer = b""
        if not head.startswith(b"POST"):
            self.answer(READY)
        elif b'"stream": true' in body or b'"stream":true' in body:
            self.stream()
        else:
            self.answer(WHOLE)

    def answer(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(head + body)

    def stream(self) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        self.transport.write(head + chunk(TEXT))
        left = CHUNKS - 1

        def step() -> None:
            nonlocal left
            left -= 1
            if left:
                self.transport.write(chunk(TEXT))
            else:
                self.steps.live.discard(step)
                self.transport.write(chunk(LAST) + b"0\r\n\r\n")

        self.steps.live.add(step)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def serve_upstream(port: int) -> None:
    Upstream.steps = Steps()
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port)
    await server.serve_forever()


async def serve_ours(port: int) -> None:
    """The gateway over a backend that emits tokens like ``Upstream``."""
    from sage_infer.contracts import BufferedTokenStream, Health, ModelStatus
    from sage_infer.schemas import ModelDescriptor, Timing, TokenDelta, Usage
    from sage_infer_serve import GatewaySettings, running_gateway

    steps = Steps()
    word, end = TokenDelta(" word", (7,)), TokenDelta(" word", (7,), finish_reason="stop")
    timing, model = (
        Timing(queue_s=0, ttft_s=0, total_s=0),
        ModelDescriptor(model_id=MODEL, model_type="llm", model_path="/"),
    )

    class Backend:
        async def chat(
            self, messages: Any, params: Any, model: str, *, request_id: str, **_: Any
        ) -> BufferedTokenStream:
            stream = BufferedTokenStream(request_id, lambda: None)
            left = params.max_tokens

            def step() -> None:
                nonlocal left
                left -= 1
                stream.push(word if left else end)
                if not left:
                    steps.live.discard(step)
                    stream.finish("stop", Usage(prompt_tokens=8, completion_tokens=params.max_tokens), timing)

            step()
            if left:
                steps.live.add(step)
            return stream

        def list_models(self) -> list[ModelDescriptor]:
            return [model]

        def get_model_status(self, name: str) -> ModelStatus:
            return ModelStatus(model_id=name, state="ready", since=0.0)

        async def health(self) -> Health:
            return Health(status="ok")

    backend: Any = Backend()  # the parts of the contract that are called here
    freeze()
    async with running_gateway(backend, GatewaySettings(port=port)):
        await asyncio.Event().wait()


def freeze() -> None:
    """Exempt the objects of the start from garbage collection, as ``sage infer serve`` does."""
    gc.collect()
    gc.freeze()


async def serve_relay(port: int, upstream: int) -> None:
    loop = asyncio.get_running_loop()

    class Back(asyncio.Protocol):
        front: Any

        def data_received(self, data: bytes) -> None:
            self.front.write(data)

    class Front(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport
            self.back: asyncio.Transport | None = None
            self.waiting: list[bytes] = []
            self.task = asyncio.ensure_future(self.connect())

        async def connect(self) -> None:
            back, protocol = await loop.create_connection(Back, "127.0.0.1", upstream)
            protocol.front, self.back = self.transport, back
            for data in self.waiting:
                back.write(data)

        def data_received(self, data: bytes) -> None:
            if self.back is None:
                self.waiting.append(data)
            else:
                self.back.write(data)

        def connection_lost(self, error: Exception | None) -> None:
            if self.back is not None:
                self.back.close()

    server = await loop.create_server(Front, "127.0.0.1", port)
    await server.serve_forever()


# --- the client


class Client(asyncio.Protocol):
    """One connection that sends requests in a loop."""

    def __init__(self, port: int, stream: bool, count: int) -> None:
        fields = {"stream": True, "max_tokens": CHUNKS} if stream else {"max_tokens": 1}
        body = json.dumps({**BODY, **fields}).encode()
        self.request = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
            b"Authorization: Bearer sk-bench\r\nContent-Length: %d\r\n\r\n" % (port, len(body)) + body
        )
        self.mark = b"0\r\n\r\n" if stream else b"}"
        self.left, self.begun = count, 0.0
        self.first_s: list[float] = []
        self.buffer = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        if not self.left:
            self.transport.close()
            self.done.set_result(None)
            return
        self.left -= 1
        self.buffer, self.begun = b"", time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        seen = b"word" in self.buffer
        self.buffer += data
        if not seen and b"word" in self.buffer:
            self.first_s.append(time.perf_counter() - self.begun)
        if self.buffer.endswith(self.mark) and b"word" in self.buffer:
            if b" 200 " not in self.buffer[:20]:
                self.done.set_exception(RuntimeError(self.buffer[:300].decode("latin-1")))
            else:
                self.ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(f"closed: {self.buffer[:300].decode('latin-1')}"))


async def load(port: int, stream: bool, count: int) -> list[float]:
    """Times to the first token of ``count`` requests, 16 concurrently."""
    loop = asyncio.get_running_loop()
    each = max(1, count // AT_ONCE)
    clients = [
        (await loop.create_connection(lambda: Client(port, stream, each), "127.0.0.1", port))[1]
        for _ in range(AT_ONCE)
    ]
    await asyncio.gather(*(client.done for client in clients))
    return [seconds for client in clients for seconds in client.first_s]


# --- processes


def environment(name: str, requirement: str) -> Path:
    """The ``bin`` folder of an environment with one program, created if missing."""
    folder = Path(platformdirs.user_cache_dir("sage-infer")) / "bench-gateway" / name
    if not (folder / "installed").exists():
        print(f"installing {requirement} …", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run(
            [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", requirement], check=True
        )
        (folder / "installed").touch()
    return folder / "bin"


def command(name: str, port: int, upstream: int, folder: Path) -> list[str]:
    """The command that starts a gateway at ``port``."""
    url, listen = f"http://127.0.0.1:{upstream}", ["--host", "127.0.0.1", "--port", str(port)]
    if name == "vllm-router":
        program = environment("vllm-router", "vllm-router==0.1.17") / "vllm-router"
        return [str(program), *listen, "--worker-urls", url, "--policy", "round_robin"]
    if name == "litellm":
        config = folder / "litellm.yaml"
        settings = {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none"}
        models = [{"model_name": MODEL, "litellm_params": settings}]
        keyless = {"dangerously_permit_weak_or_unset_master_key": True}  # like ours
        config.write_text(json.dumps({"model_list": models, "general_settings": keyless}))
        program = environment("litellm", "litellm[proxy]") / "litellm"
        return [str(program), "--config", str(config), *listen, "--telemetry", "False"]
    return [sys.executable, __file__, "--serve", name, str(port), str(upstream)]


def cpu_s(group: int) -> float:
    """CPU of all processes of a group so far."""
    ticks = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == group:
                    ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


# --- figures

Readings = dict[str, dict[str, list[float]]]


def measure(names: Sequence[str], rounds: int, seconds: float, folder: Path) -> Readings:
    readings: Readings = defaultdict(lambda: defaultdict(list))
    upstream = free_port()
    with contextlib.ExitStack() as stack:
        behind = [sys.executable, __file__, "--serve", "upstream", str(upstream), "0"]
        stack.enter_context(running(behind, upstream, folder / "upstream.log", start_s=START_S))
        servers = {}
        for name in names:
            port = free_port()
            log = folder / f"{name}.log"
            started = running(command(name, port, upstream, folder), port, log, start_s=START_S)
            servers[name] = port, stack.enter_context(started)
            warm_up(port)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            one_round(servers, upstream, seconds, readings)
    return readings


def warm_up(port: int) -> None:
    """Wait until it answers, as some listen before they are ready."""
    until = time.monotonic() + 60
    while True:
        try:
            for stream in (False, True):
                uvloop.run(load(port, stream, 64))
            return
        except (OSError, RuntimeError):
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


def one_round(servers: dict[str, tuple[int, int]], upstream: int, seconds: float, readings: Readings) -> None:
    direct = statistics.median(uvloop.run(load(upstream, True, 512)))
    for name, (port, group) in servers.items():
        for stream in (False, True):
            kind = "stream" if stream else "request"
            begun = time.perf_counter()
            uvloop.run(load(port, stream, 64))
            count = max(64, int(64 * seconds / (time.perf_counter() - begun)))
            count -= count % AT_ONCE
            before = cpu_s(group)
            first = uvloop.run(load(port, stream, count))
            readings[name][f"CPU a {kind}, µs"].append((cpu_s(group) - before) / count * 1e6)
            if stream:
                added = (statistics.median(first) - direct) * 1000
                readings[name]["added to the first token, ms (median)"].append(added)


def report(readings: Readings) -> None:
    for figure in next(iter(readings.values())):
        print(f"\n{figure}")
        for name, values in readings.items():
            each = values[figure]
            ours = readings.get("ours", {}).get(figure)
            ratio = "" if ours is None or name == "ours" else f"   ours / it {ratio_of(ours, each)}"
            print(f"  {name:12} {statistics.median(each):10.2f}  ({min(each):.2f} to {max(each):.2f}){ratio}")


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Ratios per round, under the same machine load."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True) if b]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})" if ratios else "-"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of one measurement")
    parser.add_argument(
        "--only", default="ours,relay,vllm-router,litellm", help="gateways, separated by commas"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", nargs=3, metavar=("WHAT", "PORT", "UPSTREAM"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        what, port, upstream = arguments.serve[0], int(arguments.serve[1]), int(arguments.serve[2])
        servers = {"ours": lambda: serve_ours(port), "relay": lambda: serve_relay(port, upstream)}
        uvloop.run(servers.get(what, lambda: serve_upstream(port))())
        return
    import tempfile

    with tempfile.TemporaryDirectory(prefix="sage-gateway-") as folder:
        readings = measure(arguments.only.split(","), arguments.rounds, arguments.seconds, Path(folder))
    report(readings)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(readings, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Cost of the control plane's path per request and token, over the gateway's own, and beside vllm-router.

    hatch run python benchmarks/path.py [--rounds 5] [--json results.json] [--only gateway,frames,openai]

All get the same requests from the same client, 16 concurrently, in turn, and nothing computes: the backend answers with
one token, or with 32 tokens, one per 2 ms.

- ``gateway``: the gateway over a backend in its process, without a control plane.
- ``in-process``: gateway and control plane over a backend in their process.
- ``frames``: gateway and control plane over a replica in another process.
- ``openai``: gateway and control plane over an OpenAI-compatible server.
- ``vllm-router``: in front of the same server; installed into an environment below the user's cache folder.

CPU is that of the processes of the path from /proc, without the replica or server behind it. The added time is the time
to the first token minus that of the server alone. Prompts are token ids of a tokenizer that costs nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import uvloop
from gateway import (
    CHUNKS,
    LAST,
    MODEL,
    START_S,
    STEP_S,
    TEXT,
    Readings,
    Steps,
    Upstream,
    chunk,
    command,
    freeze,
    one_round,
    serve_ours,
    warm_up,
)
from sage_infer.contracts import BufferedTokenStream, PromptLike, TokenStream, as_prompts, request_ids
from sage_infer.schemas import (
    ModelDescriptor,
    Prompt,
    ReplicaSpec,
    RequestOptions,
    SamplingParams,
    Timing,
    TokenDelta,
    Usage,
)
from sage_infer.sdk import BackendReplica, BaseExecutor, BaseInferenceBackend, BaseReplica
from servers import free_port, running

NAMES = ("gateway", "in-process", "frames", "openai", "vllm-router")
PROMPT = Prompt(token_ids=tuple(range(40)))
DESCRIPTOR = ModelDescriptor(
    model_id=MODEL, model_type="llm", model_path="/", max_sequence_length=4096, max_batch_size=64
)
TIMING = Timing(queue_s=0.0, ttft_s=0.0, total_s=0.0)


class Server(Upstream):
    """The server of ``gateway.py``, with as many chunks as ``max_tokens`` says."""

    def data_received(self, data: bytes) -> None:
        found = re.search(rb'"max_tokens": ?(\d+)', self.buffer + data)
        self.left = int(found[1]) if found else CHUNKS
        super().data_received(data)

    def stream(self) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        if self.left == 1:
            self.transport.write(head + chunk(LAST) + b"0\r\n\r\n")
            return
        self.transport.write(head + chunk(TEXT))
        left = self.left - 1

        def step() -> None:
            nonlocal left
            left -= 1
            if left:
                self.transport.write(chunk(TEXT))
            else:
                self.steps.live.discard(step)
                self.transport.write(chunk(LAST) + b"0\r\n\r\n")

        self.steps.live.add(step)


async def serve_server(port: int) -> None:
    Server.steps = Steps()
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", port)
    await server.serve_forever()


class Ticking(BaseInferenceBackend):
    """Emits the first token of a request immediately, and one more per step."""

    name: ClassVar[str] = "ticking"
    features: ClassVar[Sequence[str]] = ("streaming", "seed", "resume")
    vocabulary = 1 << 16

    async def start(self) -> None:
        await super().start()
        self._steps = Steps()

    async def close(self) -> None:
        self._steps.stop()
        await super().close()

    async def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> list[TokenStream]:
        several = as_prompts(prompts)
        return [
            self._one(one, params.max_tokens or 1) for one in request_ids(request_id or "r", len(several))
        ]

    def _one(self, request_id: str, tokens: int) -> TokenStream:
        stream, left = BufferedTokenStream(request_id, lambda: None), tokens

        def step() -> None:
            nonlocal left
            left -= 1
            stream.push(TokenDelta(" word", (7,), finish_reason=None if left else "stop"))
            if not left:
                self._steps.live.discard(step)
                stream.finish("stop", Usage(prompt_tokens=40, completion_tokens=tokens), TIMING)

        step()
        if left:
            self._steps.live.add(step)
        return stream


class Codec:
    """A tokenizer that costs nothing."""

    async def render_chat(self, messages: Any, **_: Any) -> Prompt:
        return PROMPT

    async def tokenize(self, prompt: PromptLike) -> list[int]:
        return list(PROMPT.token_ids or ())

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return " word" * len(token_ids)


class Remote(BaseReplica):
    async def shut_down(self) -> None:
        """The process ends with the benchmark."""


class OneReplica(BaseExecutor):
    """Runs the replica in this process, or connects to the one behind a socket."""

    def __init__(self, socket: str | None) -> None:
        super().__init__()
        self._socket = socket

    async def launch(self, spec: ReplicaSpec) -> BaseReplica:
        from sage_llm.replicas.server import describe

        backend = Ticking(spec.model)
        await backend.start()
        if self._socket is None:
            return BackendReplica(spec, backend)
        replica = Remote(spec)
        replica.descriptor = describe(backend, spec, f"unix:{self._socket}")
        await backend.close()
        return replica


async def serve_plane(port: int, *, socket: str | None = None, upstream: int | None = None) -> None:
    """The gateway over a control plane with one replica: in this process, behind a socket, or a server."""
    from sage_infer_serve import GatewaySettings, running_gateway
    from sage_llm.manager.manager import ControlPlaneManager
    from sage_llm.manager.models import JoinedServer, ServedModel
    from sage_llm.replicas.local import LocalExecutor

    if upstream is None:
        model = ServedModel(descriptor=DESCRIPTOR, backend="ticking")
        executor: Any = OneReplica(socket)
    else:
        joined = (JoinedServer(url=f"http://127.0.0.1:{upstream}"),)
        model = ServedModel(descriptor=DESCRIPTOR, backend="openai", replicas=0, joined=joined)
        executor = LocalExecutor()
    plane = ControlPlaneManager([model], executor)
    await plane.start()
    if upstream is None:
        plane._texts[MODEL]._codec = Codec()  # no plug-in is installed that names it
    freeze()
    async with running_gateway(plane, GatewaySettings(port=port)):
        await asyncio.Event().wait()


async def serve_replica(path: str) -> None:
    from sage_llm.replicas.server import ReplicaServer, describe

    backend = Ticking(DESCRIPTOR)
    await backend.start()
    spec = ReplicaSpec(replica_id=f"{MODEL}/0", backend="ticking", model=DESCRIPTOR)
    server = ReplicaServer(backend, describe(backend, spec, f"unix:{path}"))
    await server.start(Path(path))
    listener = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", _port_of(path))
    await listener.serve_forever()


def _port_of(path: str) -> int:
    """A port that shows readiness, from the name of the socket."""
    return int(Path(path).stem)


def measure(names: Sequence[str], rounds: int, seconds: float, folder: Path) -> Readings:
    readings: Readings = defaultdict(lambda: defaultdict(list))
    upstream, ready = free_port(), free_port()
    socket = str(folder / f"{ready}.sock")
    me = [sys.executable, __file__, "--serve"]
    with ExitStack() as stack:

        def start(line: Sequence[str], port: int, log: str) -> int:
            return stack.enter_context(running(line, port, folder / log, start_s=START_S))

        start([*me, "upstream", str(upstream), "0", "-"], upstream, "upstream.log")
        start([*me, "replica", str(ready), "0", socket], ready, "replica.log")
        servers = {}
        for name in names:
            port = free_port()
            line = (
                command(name, port, upstream, folder)
                if name == "vllm-router"
                else [*me, name, str(port), str(upstream), socket]
            )
            servers[name] = port, start(line, port, f"{name}.log")
            warm_up(port)
        for number in range(rounds):
            print(
                f"round {number + 1} of {rounds}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True
            )
            one_round(servers, upstream, seconds, readings)
    for values in readings.values():
        whole, chunks = values["CPU a request, µs"], values["CPU a stream, µs"]
        values["CPU a further token, µs"] = [
            (b - a) / (CHUNKS - 1) for a, b in zip(whole, chunks, strict=True)
        ]
    return readings


def report(readings: Readings) -> dict[str, Any]:
    """Medians, and differences to the gateway alone in the same round."""
    base = readings.get("gateway")
    found: dict[str, Any] = {}
    for name, values in readings.items():
        found[name] = {
            figure: {
                "median": statistics.median(each),
                "range": [min(each), max(each)],
                "over the gateway": None
                if base is None or name == "gateway"
                else statistics.median(a - b for a, b in zip(each, base[figure], strict=True)),
            }
            for figure, each in values.items()
        }
    for figure in next(iter(found.values())):
        print(f"\n{figure}")
        for name, rows in found.items():
            row = rows[figure]
            low, high = row["range"]
            over = row["over the gateway"]
            more = "" if over is None else f"   over the gateway {over:+9.2f}"
            print(f"  {name:12} {row['median']:9.2f}  ({low:.2f} to {high:.2f}){more}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of one measurement")
    parser.add_argument("--only", default=",".join(NAMES), help="paths, separated by commas")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--serve", nargs=4, metavar=("WHAT", "PORT", "UPSTREAM", "SOCKET"), help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    if arguments.serve:
        what, port, upstream, socket = arguments.serve
        servers = {
            "upstream": lambda: serve_server(int(port)),
            "replica": lambda: serve_replica(socket),
            "gateway": lambda: serve_ours(int(port)),
            "in-process": lambda: serve_plane(int(port)),
            "frames": lambda: serve_plane(int(port), socket=socket),
            "openai": lambda: serve_plane(int(port), upstream=int(upstream)),
        }
        uvloop.run(servers[what]())
        return
    if unknown := set(arguments.only.split(",")) - set(NAMES):
        parser.error(f"no path {', '.join(sorted(unknown))}; paths: {', '.join(NAMES)}")
    with tempfile.TemporaryDirectory(prefix="sage-path-") as folder:
        found = report(measure(arguments.only.split(","), arguments.rounds, arguments.seconds, Path(folder)))
    if arguments.json is not None:
        figures = {"chunks": CHUNKS, "step_s": STEP_S, "load": os.getloadavg()[0], "paths": found}
        arguments.json.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

"""CPU time per token of a replica behind frames, compared with the same backend in this process.

    hatch run bench:replica [--streams 64] [--tokens 256] [--rounds 5] [--json results.json]

The backend computes nothing: every 5 ms it pushes one token to each stream. The consumer takes deltas as they arrive,
like the gateway. CPU time is that of both processes, and the difference to the run in one process is the cost of the
frames. A second run has streams of 32 tokens, so it includes the calls that open and end them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import uvloop
from sage_infer.compat import Runner
from sage_infer.schemas import (
    ModelDescriptor,
    ReplicaSpec,
    SamplingParams,
    TokenDelta,
)
from sage_llm.replicas.backends import InferenceReplica
from sage_llm.replicas.server import ReplicaServer, describe
from timed_engine import SteppingEngine

MODEL = ModelDescriptor(model_id="metronome", model_type="llm", model_path="/")
SPEC = ReplicaSpec(replica_id="metronome/0", backend="metronome", model=MODEL)
CHUNKS = 32


class Metronome(SteppingEngine):
    """The backend of this benchmark."""

    name: ClassVar[str] = "metronome"


async def consume(backend: Any, tokens: int, rounds: int) -> int:
    """Read ``rounds`` streams, one after another; return the number of tokens."""
    seen = 0

    def take(delta: TokenDelta) -> bool:
        nonlocal seen
        seen += 1
        return True

    for _ in range(rounds):
        (stream,) = await backend.generate([1, 2, 3], SamplingParams(max_tokens=tokens, ignore_eos=True))
        stream.on_delta(take)
        async for delta in stream:
            take(delta)
    return seen


async def load(backend: Any, streams: int, tokens: int, rounds: int) -> int:
    """Read from many streams simultaneously; return the number of tokens."""
    return sum(await asyncio.gather(*(consume(backend, tokens, rounds) for _ in range(streams))))


def cpu_of(pid: int) -> float:
    """CPU time of another process in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(
    backend: Any, other: int | None, streams: int, tokens: int, rounds: int
) -> dict[str, float]:
    """CPU time per token and per stream in microseconds, of this process and of ``other``."""
    await load(backend, streams, tokens, 1)
    begun = (time.process_time(), cpu_of(other) if other else 0.0)
    seen = await load(backend, streams, tokens, rounds)
    spent = time.process_time() - begun[0] + ((cpu_of(other) - begun[1]) if other else 0.0)
    return {"token": spent / seen * 1e6, "stream": spent / (streams * rounds) * 1e6}


async def in_process(streams: int, tokens: int, rounds: int) -> dict[str, float]:
    backend = Metronome(MODEL)
    await backend.start()
    found = await measure(backend, None, streams, tokens, rounds)
    await backend.close()
    return found


async def over_frames(path: str, pid: int, streams: int, tokens: int, rounds: int) -> dict[str, float]:
    client = InferenceReplica(f"unix:{path}")
    await client.start()
    found = await measure(client, pid, streams, tokens, rounds)
    await client.close()
    return found


async def serve(path: str) -> None:
    backend = Metronome(MODEL)
    await backend.start()
    server = ReplicaServer(backend, describe(backend, SPEC, f"unix:{path}"))
    await server.start(Path(path))
    print("ready", flush=True)
    await asyncio.Event().wait()


def run(work: Any) -> Any:
    with Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", metavar="SOCKET", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        run(serve(options.serve))
        return
    with tempfile.TemporaryDirectory(prefix="sage-") as folder:
        path = f"{folder}/r.sock"
        child = subprocess.Popen(
            [sys.executable, __file__, "--serve", path], stdout=subprocess.PIPE, text=True
        )
        try:
            assert child.stdout is not None
            child.stdout.readline()
            rows = {}
            for name, tokens, repeats in (("long", options.tokens, 4), (f"{CHUNKS} chunks", CHUNKS, 16)):
                here, there = [], []
                for _ in range(options.rounds):
                    here.append(run(in_process(options.streams, tokens, repeats)))
                    there.append(run(over_frames(path, child.pid, options.streams, tokens, repeats)))
                rows[name] = {
                    unit: {
                        "in_process_us": statistics.median(row[unit] for row in here),
                        "frames_us": statistics.median(row[unit] for row in there),
                        "cost_us": statistics.median(
                            b[unit] - a[unit] for a, b in zip(here, there, strict=True)
                        ),
                    }
                    for unit in ("token", "stream")
                }
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
    print(f"{'':12}{'':8}{'in process':>12}{'frames':>12}{'cost':>12}   µs CPU, {options.streams} streams")
    for name, units in rows.items():
        for unit, row in units.items():
            print(f"{name:12}{unit:8}" + "".join(f"{value:12.2f}" for value in row.values()))
    if options.json:
        options.json.write_text(json.dumps({"streams": options.streams, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""The simulator against life: embedded replicas under ``sage llm serve``, and the same requests simulated.

    python benchmarks/simulator_life.py TRACE --folder DIR [--loads 0.5 0.8] [--policies kv-cost round-robin …]
        [--replicas 2] [--seconds 28] [--kv-gb 0.25] [--sessions 0.03] [--nice -15] [--json FILE]

TRACE is a Mooncake trace (``.jsonl`` or ``.jsonl.gz``). A share of its sessions is replayed, without prompts of more
than 16 blocks; each block of 512 tokens becomes one of 32, and outputs have 8 to 39 tokens. Load 1 means that the
requests arrive in the time in which the simulated replicas compute them if all arrive together.

1. *Calibration*: as many models as there will be replicas, each with one replica and one thread, run under one
   server. One of them is measured by ``sage infer bench`` alone, then all simultaneously, at concurrency 1 with two
   lengths of prompts, and at 4 and 8: replicas on one machine slow each other. DIR keeps the results; they are
   measured again if they are not there.
2. For each load and policy, a new ``sage llm serve`` gets the requests over HTTP at their times, and
   ``sage_llm.simulator`` gets the same ones with the calibrated engine and the same policy.

Printed: mean and p90 of the time to first token, output tokens per second and the share of cached prompt tokens, live
and predicted, their ratios, and whether the order of the policies by their mean time to first token is predicted. On a
machine with other load, the ratios say little; with ``--nice``, which root may set below 0, servers and clients run
before other processes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import msgspec
import uvloop
from kv_policies import sampled, tokens_of
from sage_infer.models import resolve_model
from sage_infer_serve.bench.load import Outcome, Sender
from sage_infer_serve.bench.report import percentile
from sage_infer_serve.bench.workload import Lengths, Request, Workload
from sage_infer_serve.http.client import Client, Server
from sage_llm.policies import order, placement
from sage_llm.simulator import Cluster, EngineModel, Trace, simulate
from sage_llm.simulator.calibrate import Calibration, calibrate, contention
from sage_llm.simulator.schemas import Row
from servers import free_port, prefer, running

LLM, PAGE, SMOLLM2_BLOCK = "smollm2-135m", 32, 1_474_560  # bytes of 32 tokens in f32
SAGE = str(Path(sys.executable).with_name("sage"))
RUNS = (  # of the calibration: concurrency, prompt tokens, output tokens, requests
    (1, 40, 24, 10),
    (1, 320, 16, 10),
    (4, 120, 32, 20),
    (8, 60, 32, 24),
)
STEP_TOKENS, MAX_BATCH, SLOWDOWN = 512, 32, 2.5  # defaults of the embedded engine
START_S = 60.0


class Figures(NamedTuple):
    ttft_mean_s: float
    ttft_p90_s: float
    tokens_per_s: float
    saved: float


def rows_of(path: Path, share: float) -> list[Row]:
    """Scaled requests at times of the trace."""
    found = []
    for at, hashes, _ in sorted(sampled(path, share=share, blocks=16, seed=3)):
        found.append(Row(at, len(hashes) * PAGE + 1, 8 + hashes[-1] % 32, tuple(hashes)))
    return found


def at_load(rows: Sequence[Row], load: float, seconds: float, cluster: Cluster) -> list[Row]:
    """The first rows that keep the simulated replicas busy for ``load * seconds``, spread over ``seconds``."""
    low, high = 10, len(rows)
    while low < high:
        middle = (low + high) // 2
        if makespan(rows[:middle], cluster) < load * seconds:
            low = middle + 1
        else:
            high = middle
    chosen = rows[:low]
    first, last = chosen[0].at, chosen[-1].at
    return [row._replace(at=(row.at - first) * seconds / (last - first)) for row in chosen]


def makespan(rows: Sequence[Row], cluster: Cluster) -> float:
    together = [row._replace(at=number * 1e-4) for number, row in enumerate(rows)]
    return simulate(trace_of(together), cluster, placement("least-tokens"), order()).seconds


def trace_of(rows: Sequence[Row]) -> Trace:
    return Trace.of("scaled", PAGE, lambda: iter(rows))


def predicted(rows: Sequence[Row], cluster: Cluster, policy: str) -> Figures:
    result = simulate(trace_of(rows), cluster, placement(policy), order())
    assert result.ttft_s is not None
    return Figures(result.ttft_s.mean, result.ttft_s.p90, result.output_tokens_per_s, result.saved)


# --- life


def serve(arguments: argparse.Namespace, port: int, *more: str) -> list[str]:
    return [
        SAGE, "llm", "serve", "--backend", "openvino", "--port", str(port), "-o", "threads=1",
        "-o", f"kv_cache_gb={arguments.kv_gb}", "-o", f"max_batch_size={MAX_BATCH}", *more,
    ]  # fmt: skip


def measured(arguments: argparse.Namespace, folder: Path, busy: int) -> list[Path]:
    """Results of ``sage infer bench``, one per run and each of the ``busy`` replicas."""
    files = {
        (run, number): folder / f"c{run[0]}-{run[1]}-{number}-of-{busy}.json"
        for run in RUNS
        for number in range(busy)
    }
    if all(file.exists() for file in files.values()):
        return [*files.values()]
    with tempfile.TemporaryDirectory() as links:
        models = [LLM]
        for number in range(1, arguments.replicas):
            link = Path(links) / f"twin{number}.gguf"
            link.symlink_to(resolve_model(LLM).model_path)
            models.append(str(link))
        port = free_port()
        flags = [flag for model in models for flag in ("-m", model)]
        with running(
            serve(arguments, port, *flags), port, folder / "serve.log", start_s=START_S, path="/health"
        ) as pid:
            favour(pid, port, arguments.nice)
            names = asyncio.run(listed(port))
            for run in RUNS:
                concurrency, prompt, output, requests = run
                benches = [
                    subprocess.Popen(
                        [
                            SAGE, "infer", "bench", "--url", f"http://127.0.0.1:{port}", "--model", name, "--endpoint",
                            "completions", "-c", str(concurrency), "-n", str(requests), "--input-tokens", str(prompt),
                            "--output-tokens", str(output), "--ignore-eos", "--seed", str(number), "--warmup",
                            str(min(concurrency, 4)), "--json", str(files[run, number]),
                        ],
                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    )
                    for number, name in enumerate(names[:busy])
                ]  # fmt: skip
                if any(bench.wait() for bench in benches):
                    raise SystemExit("sage infer bench failed; run it by hand")
    return [*files.values()]


def favour(pid: int, port: int, nice: int | None) -> None:
    """Let a server, its replicas and gateways, and this process run before others."""
    if nice is None:
        return
    done = subprocess.run(
        [SAGE, "llm", "status", "--port", str(port), "--json"], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    rows = [*found["replicas"], *found.get("gateways", [])]
    for one in (pid, os.getpid(), *(row["pid"] for row in rows)):
        prefer(one, nice)


async def listed(port: int) -> list[str]:
    client = Client(Server.parse(f"http://127.0.0.1:{port}"))
    try:
        data = json.loads((await client.get("/v1/models")).body)
        return [model["id"] for model in data["data"]]
    finally:
        client.close()


def live(rows: Sequence[Row], arguments: argparse.Namespace, policy: str, folder: Path) -> Figures:
    port = free_port()
    command = serve(arguments, port, "-m", LLM, "--replicas", str(arguments.replicas), "--policy", policy)
    with running(command, port, folder / "serve.log", start_s=START_S, path="/health") as pid:
        favour(pid, port, arguments.nice)
        return uvloop.run(replay(rows, port))


async def replay(rows: Sequence[Row], port: int) -> Figures:
    client = Client(Server.parse(f"http://127.0.0.1:{port}"))
    lengths = Lengths()
    sender = Sender(client, Workload(endpoint="completions", model=LLM, lengths=lengths), timeout_s=120.0)
    warm = [request_of([500 + 40 * n, *tokens_of(-1 - n)], 8) for n in range(8)]
    await asyncio.gather(*(sender.send(one) for one in warm))
    bodies = [
        request_of([t for h in row.keys for t in tokens_of(h)] + [7], row.output_tokens) for row in rows
    ]
    start = time.perf_counter() + 0.2

    async def one(request: Request, due: float) -> Outcome:
        await asyncio.sleep(due - time.perf_counter())
        return await sender.send(request, due)

    found = await asyncio.gather(*(one(body, start + row.at) for body, row in zip(bodies, rows, strict=True)))
    client.close()
    failed = [outcome.error for outcome in found if outcome.error is not None or outcome.first is None]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(found)} requests failed: {failed[0]}")
    times = sorted(outcome.first - outcome.due for outcome in found if outcome.first is not None)
    lasted = max(outcome.ended for outcome in found) - start
    return Figures(
        sum(times) / len(times),
        percentile(times, 0.9),
        sum(outcome.output_tokens for outcome in found) / lasted,
        sum(outcome.cached_tokens or 0 for outcome in found) / sum(o.prompt_tokens for o in found),
    )


def request_of(tokens: Sequence[int], output: int) -> Request:
    body: dict[str, Any] = {
        "model": LLM, "prompt": list(tokens), "max_tokens": output, "temperature": 0, "ignore_eos": True,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    return Request(body=msgspec.json.encode(body), texts=0)


# --- the comparison


def compared(name: str, alive: Figures, foretold: Figures) -> str:
    def part(label: str, a: float, b: float, form: str) -> str:
        return f"{label} {a:{form}} / {b:{form}} ({b / max(a, 1e-9):.2f}x)"

    return (
        f"{name:18} "
        + "  ".join(
            (
                part("TTFT mean", alive.ttft_mean_s, foretold.ttft_mean_s, ".3f"),
                part("p90", alive.ttft_p90_s, foretold.ttft_p90_s, ".3f"),
                part("tokens/s", alive.tokens_per_s, foretold.tokens_per_s, ".1f"),
            )
        )
        + f"  saved {alive.saved:.1%} / {foretold.saved:.1%}  load average {os.getloadavg()[0]:.1f}"
    )


def cluster_of(arguments: argparse.Namespace, found: Calibration) -> Cluster:
    model = EngineModel(
        step=found.step, chunk=STEP_TOKENS, max_batch=MAX_BATCH, slowdown=SLOWDOWN,
        blocks=int(arguments.kv_gb * 2**30 / SMOLLM2_BLOCK),
    )  # fmt: skip
    return Cluster(
        instances=arguments.replicas, model=model, overhead_s=found.overhead_s, per_host=arguments.replicas,
        contention=found.contention or 0.0,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--loads", type=float, nargs="*", default=[0.5, 0.8])
    parser.add_argument("--policies", nargs="+", default=["kv-cost", "round-robin", "kv-cost:alpha=1e6"])
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=28.0)
    parser.add_argument("--kv-gb", type=float, default=0.25)
    parser.add_argument("--sessions", type=float, default=0.03)
    parser.add_argument("--nice", type=int)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the servers end as well
    arguments.folder.mkdir(parents=True, exist_ok=True)
    found = calibrate(measured(arguments, arguments.folder, 1), STEP_TOKENS)
    if arguments.replicas > 1:
        together = measured(arguments, arguments.folder, arguments.replicas)
        found = attrs.evolve(found, contention=contention(together, found, STEP_TOKENS, arguments.replicas))
    print("\n".join(found.lines()), flush=True)
    cluster, rows = cluster_of(arguments, found), rows_of(arguments.trace, arguments.sessions)
    cells: list[dict[str, Any]] = []
    for load in arguments.loads:
        chosen = at_load(rows, load, arguments.seconds, cluster)
        prompt = sum(row.prompt_tokens for row in chosen) / len(chosen)
        print(
            f"load {load:g}: {len(chosen)} requests of {prompt:.0f} prompt tokens in {arguments.seconds:g} s"
        )
        means: dict[str, tuple[float, float]] = {}
        for policy in arguments.policies:
            foretold = predicted(chosen, cluster, policy)
            alive = live(chosen, arguments, policy, arguments.folder)
            print(compared(policy, alive, foretold), flush=True)
            means[policy] = alive.ttft_mean_s, foretold.ttft_mean_s
            cells.append(
                {"load": load, "policy": policy, "live": alive._asdict(), "predicted": foretold._asdict()}
            )
        orders = [sorted(means, key=lambda name: means[name][side]) for side in (0, 1)]
        word = "the same" if orders[0] == orders[1] else "another"
        print(f"order live: {', '.join(orders[0])}; predicted: {word} ({', '.join(orders[1])})", flush=True)
    if arguments.json is not None:
        data = {"calibration": attrs.asdict(found), "cells": cells}
        arguments.json.write_text(json.dumps(data, indent=1), "utf-8")


if __name__ == "__main__":
    main()

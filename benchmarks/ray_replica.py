"""Latency of a token from an actor on a Ray cluster, compared with one from a child process of this machine.

    hatch run ray:latency [--streams 16] [--tokens 400] [--rounds 6] [--json results.json]

Both replicas run the same engine, which computes nothing: every 5 ms it pushes one token to each stream, with the time
as its text. The latency is the time until the consumer, which takes deltas as the gateway does, has the token. Both
replicas are started once and measured alternately. The cluster has one node on this machine, so the network is local.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from sage_infer.plugins import open_executor
from sage_infer.schemas import ModelDescriptor, ReplicaSpec, SamplingParams, TokenDelta
from sage_llm.replicas.connect import connect
from sage_llm.replicas.local import SERVER
from sage_llm.replicas.net.gate import TOKEN_VARIABLE
from sage_llm.replicas.net.server import NETWORK_SERVER

HERE = Path(__file__).parent
MODEL = ModelDescriptor(model_id="timed", model_type="llm", model_path="/")


async def latencies(backend: Any, streams: int, tokens: int) -> list[float]:
    """Read from many streams; return the latency of each token in milliseconds."""
    found: list[float] = []

    def take(delta: TokenDelta) -> bool:
        now = time.monotonic_ns()
        found.append((now - int(delta.text)) / 1e6)
        return True

    async def one() -> None:
        (stream,) = await backend.generate([1, 2, 3], SamplingParams(max_tokens=tokens, ignore_eos=True))
        stream.on_delta(take)
        async for delta in stream:
            take(delta)

    await asyncio.gather(*(one() for _ in range(streams)))
    return found


async def measure(address: str, streams: int, tokens: int, rounds: int) -> dict[str, list[list[float]]]:
    """Latencies of each round, by executor."""
    executors = {
        "local": open_executor("local"),
        "ray": open_executor("ray", address=address, namespace="bench"),
    }
    servers = {"local": SERVER, "ray": NETWORK_SERVER}
    found: dict[str, list[list[float]]] = {name: [] for name in executors}
    replicas = {}
    try:
        for name, executor in executors.items():
            spec = ReplicaSpec(
                replica_id=f"timed/{name}",
                backend="timed",
                model=MODEL,
                server=servers[name],
                environment={TOKEN_VARIABLE: "the token of a benchmark"},
            )
            replicas[name] = await connect(await executor.start(spec))
            await latencies(replicas[name].backend, streams, tokens)
        for number in range(rounds):
            for name in list(replicas)[:: 1 if number % 2 else -1]:
                found[name].append(await latencies(replicas[name].backend, streams, tokens))
    finally:
        for replica in replicas.values():
            await replica.close()
        for executor in executors.values():
            await executor.close()
    return found


def summary(found: dict[str, list[list[float]]]) -> dict[str, dict[str, float]]:
    """Median and 99th percentile by executor, each the median over the rounds."""
    result = {}
    for name, rounds in found.items():
        cuts = [statistics.quantiles(one, n=100) for one in rounds]
        result[name] = {
            "p50_ms": statistics.median(cut[49] for cut in cuts),
            "p99_ms": statistics.median(cut[98] for cut in cuts),
        }
    result["added"] = {key: result["ray"][key] - result["local"][key] for key in ("p50_ms", "p99_ms")}
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results to a file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        info = Path(folder) / "timed-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: timed\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[sage_infer.backends]\ntimed = timed_engine\n")
        paths = [folder, str(HERE)]
        os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        sys.path[:0] = paths
        node = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=node)
        try:
            found = asyncio.run(measure(cluster.address, given.streams, given.tokens, given.rounds))
        finally:
            ray.shutdown()
            cluster.shutdown()
    result = summary(found)
    print(
        f"{given.streams} streams, {given.rounds} rounds of {given.tokens} tokens each; load {os.getloadavg()[0]:.1f}"
    )
    for name, row in result.items():
        print(f"{name:<6}  p50 {row['p50_ms']:7.3f} ms   p99 {row['p99_ms']:7.3f} ms")
    if given.json:
        given.json.write_text(
            json.dumps({"streams": given.streams, "tokens": given.tokens, "result": result})
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

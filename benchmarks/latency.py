"""Latency of the embedded engine: cached prefixes, long prompts beside streams, cold start.

    hatch run python benchmarks/latency.py [--rounds 5] [--json results.json]

Every figure is a ratio of two readings of one round, except the cold start, which measures a process from outside:
time from the command to the first token, and peak resident set.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from sage_infer import SamplingParams, open_backend
from sage_infer.contracts import InferenceBackend, TokenStream

PREFIX, LONG, STREAMS = 1000, 4000, 8
WARM_UP = 16  # uncounted tokens per stream
ALONE_S = 6.0
Readings = dict[str, list[float]]


def random_prompt(length: int, seed: int) -> list[int]:
    numbers = random.Random(seed)
    return [numbers.randrange(1000, 40000) for _ in range(length)]


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)


async def drain(stream: TokenStream) -> list[int]:
    return [token async for delta in stream for token in delta.token_ids]


async def prefix_cache(backend: InferenceBackend, seed: int, readings: Readings) -> None:
    """The same 1,000 tokens twice, followed by different questions."""
    prefix = random_prompt(PREFIX, seed)
    ttft, cached = [], []
    for question in (random_prompt(8, seed + 1), random_prompt(8, seed + 2)):
        (stream,) = await backend.generate([[*prefix, *question]], greedy(1))
        await drain(stream)
        assert stream.timing is not None
        assert stream.usage is not None
        ttft.append(stream.timing.ttft_s)
        cached.append(float(stream.usage.cached_tokens))
    readings["TTFT of a 1,000-token prompt, s"].append(ttft[0])
    readings["TTFT with the prefix cached / without"].append(ttft[1] / ttft[0])
    readings["tokens found in the cache"].append(cached[1])


class Reader:
    """Reads a stream and records token times. ``going`` is set after its own prefill."""

    def __init__(self, stream: TokenStream) -> None:
        self.going = asyncio.Event()
        self._times: list[float] = []
        self._task = asyncio.create_task(self._read(stream))

    async def _read(self, stream: TokenStream) -> None:
        async for _ in stream:
            self._times.append(time.perf_counter())
            if len(self._times) == WARM_UP:
                self.going.set()

    def stop(self) -> list[float]:
        """End the request; returns the times between its tokens, in seconds."""
        self._task.cancel()
        return [later - earlier for earlier, later in itertools.pairwise(self._times[WARM_UP:])]


def percentile_99(values: list[float]) -> float:
    return sorted(values)[min(int(len(values) * 0.99), len(values) - 1)]


async def fairness(backend: InferenceBackend, seed: int, readings: Readings) -> None:
    """Eight streams alone, then the same during the prefill of a 4,000-token prompt."""
    p99 = []
    for disturbed in (False, True):
        prompts = [random_prompt(38, seed + i) for i in range(STREAMS)]
        readers = [Reader(stream) for stream in await backend.generate(prompts, greedy(4000))]
        for reader in readers:
            await reader.going.wait()
        started = time.perf_counter()
        if disturbed:
            (long,) = await backend.generate([random_prompt(LONG, seed + 99)], greedy(1))
            await drain(long)
            name = f"TTFT of a {LONG}-token prompt beside {STREAMS} streams, s"
            readings[name].append(time.perf_counter() - started)
        else:
            await asyncio.sleep(ALONE_S)
        p99.append(percentile_99([gap for reader in readers for gap in reader.stop()]))
    readings["inter-token p99 alone, ms"].append(1000 * p99[0])
    readings["inter-token p99 beside a long prefill / alone"].append(p99[1] / p99[0])


def cold_start(readings: Readings) -> None:
    """``sage infer generate`` in a new process, up to the first output on stdout."""
    command = [
        Path(sys.executable).with_name("sage"),
        "infer",
        "generate",
        "Hello",
        "--model",
        "smollm2-135m",
    ]
    started = time.perf_counter()
    with subprocess.Popen([*map(str, command), "--max-tokens", "4"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        readings["cold process to first token, s"].append(time.perf_counter() - started)
        process.stdout.read()
    if process.returncode != 0:
        raise SystemExit(f"{command} exited with {process.returncode}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    readings["resident set of that process, MB"].append(peak * 1024 / 1e6)


async def measure(rounds: int, readings: Readings) -> None:
    async with open_backend("openvino", model="smollm2-135m", serves="llm") as backend:
        for number in range(rounds):
            await prefix_cache(backend, 1000 * number, readings)
            await fairness(backend, 1000 * number + 500, readings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write all readings here")
    options = parser.parse_args()
    readings: Readings = defaultdict(list)
    for _ in range(options.rounds):
        cold_start(readings)
    asyncio.run(measure(options.rounds, readings))
    print("| | median (min to max) |\n|---|---|")
    for name, values in readings.items():
        print(f"| {name} | {statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g}) |")
    if options.json:
        options.json.write_text(json.dumps(readings, indent=2))


if __name__ == "__main__":
    main()

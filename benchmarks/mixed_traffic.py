"""Chat streams beside bursts of embedding: one process with time_slice and with mps, and two servers side by side.

    hatch run python benchmarks/mixed_traffic.py [--rounds 3] [--json results.json]

A round embeds 512 texts alone, then starts 16 streams and, while they run, measures in turn: the streams alone, and
beside a burst of 512 texts in each way. Turns come in another order every round, on the same engine and sequences.
Ratios are taken within a round: the inter-token p99 of the streams to that of the streams alone, and texts/s to those
of embedding alone. With weights of 3 for the LLM and 1 for the encoder, the encoder's fair share is a quarter. Before
the rounds every block of the KV cache is used once, and what the models hold is compared with the memory plan.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sage_infer import SamplingParams, open_backend
from sage_infer_hybrid import HybridBackend

STREAMS, TEXTS, WORDS = 16, 512, 24
WARM_UP_S, ALONE_S = 4.0, 6.0
FAIR_SHARE = 0.25
KV_GB, KV_BYTES_OF_TOKEN = 1.0, 2 * 30 * 3 * 64 * 4  # of SmolLM2 in float32
KV_TOKENS = int(KV_GB * 2**30 / KV_BYTES_OF_TOKEN)
Burst = Callable[[list[str]], Awaitable[Any]]


def texts(seed: int) -> list[str]:
    numbers = random.Random(seed)
    words = ["river", "market", "engine", "paper", "music", "winter", "garden", "signal", "bridge", "cloud"]
    return [" ".join(numbers.choices(words, k=WORDS)) for _ in range(TEXTS)]


def prompts(count: int, length: int) -> list[list[int]]:
    numbers = random.Random(count)
    return [[numbers.randrange(1000, 40000) for _ in range(length)] for _ in range(count)]


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)


async def read(stream: Any, times: list[float]) -> None:
    async for _ in stream:
        times.append(time.perf_counter())


class Streams:
    """``STREAMS`` streams that are read while something else is measured."""

    def __init__(self) -> None:
        self._times: list[list[float]] = [[] for _ in range(STREAMS)]
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, hybrid: HybridBackend) -> None:
        streams = await hybrid.generate(prompts(STREAMS, 38), greedy(KV_TOKENS // STREAMS - 100))
        self._tasks = [asyncio.create_task(read(*pair)) for pair in zip(streams, self._times, strict=True)]
        await asyncio.sleep(WARM_UP_S)

    async def p99_during(self, work: Awaitable[Any]) -> float:
        """Inter-token p99 in seconds."""
        begin = time.perf_counter()
        await work
        end = time.perf_counter()
        if any(task.done() for task in self._tasks):
            raise SystemExit("a stream ended before its measurement did; use a larger KV cache")
        gaps = sorted(
            later - earlier
            for times in self._times
            for earlier, later in itertools.pairwise(t for t in times if begin <= t <= end)
        )
        return gaps[min(int(len(gaps) * 0.99), len(gaps) - 1)]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def rate(embed: Burst, seed: int) -> float:
    """Texts a second of one burst."""
    burst, started = texts(seed), time.perf_counter()
    await embed(burst)
    return len(burst) / (time.perf_counter() - started)


def encoder_server(inbox: Any, outbox: Any) -> None:
    """A process of its own that embeds whatever comes, as another server on the machine would."""

    async def serve() -> None:
        async with open_backend("openvino-embedding", model="minilm", serves="embedding") as backend:
            await backend.embed_batch(texts(0)[:64])
            outbox.put("ready")
            while (burst := await asyncio.to_thread(inbox.get)) is not None:
                await backend.embed_batch(burst)
                outbox.put(len(burst))

    asyncio.run(serve())


@asynccontextmanager
async def second_process() -> AsyncIterator[Burst]:
    context = multiprocessing.get_context("spawn")
    inbox, outbox = context.Queue(), context.Queue()
    server = context.Process(target=encoder_server, args=(inbox, outbox), daemon=True)
    server.start()
    await asyncio.to_thread(outbox.get)

    async def embed(burst: list[str]) -> None:
        inbox.put(burst)
        await asyncio.to_thread(outbox.get)

    try:
        yield embed
    finally:
        inbox.put(None)
        await asyncio.to_thread(server.join)


@asynccontextmanager
async def started(hybrid: HybridBackend) -> AsyncIterator[HybridBackend]:
    try:
        await hybrid.start()
        yield hybrid
    finally:
        await hybrid.close()


async def memory_of(hybrid: HybridBackend) -> dict[str, float]:
    """What the plan says and what is held, after sequences that fill the KV cache and texts of full length."""
    each = KV_TOKENS // 4  # of four sequences, which are there at once
    streams = await hybrid.generate(prompts(4, each - 500), greedy(460))
    await asyncio.gather(*(read(stream, []) for stream in streams))
    await hybrid.embed(["river " * 600] * 64, truncate="end")
    return {
        "planned, MB": hybrid.memory_plan().used("cpu") / 1e6,
        "held, MB": (hybrid.measured_devices()["cpu"] or 0) / 1e6,
        "resident pages of files besides, MB": resident_file_bytes() / 1e6,
    }


def resident_file_bytes() -> int:
    """Pages of libraries and mapped weights of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))


async def one_round(number: int, hybrid: HybridBackend, ways: dict[str, Burst]) -> dict[str, float]:
    found: dict[str, float] = {}
    alone_rate = await rate(ways["mps"], number)
    streams = Streams()
    await streams.start(hybrid)
    p99, rates = {}, {}
    turns = ["alone", *ways]
    for way in turns[number % len(turns) :] + turns[: number % len(turns)]:
        if way == "alone":
            p99[way] = await streams.p99_during(asyncio.sleep(ALONE_S))
        else:

            async def burst(way: str = way) -> None:
                rates[way] = await rate(ways[way], number)

            p99[way] = await streams.p99_during(burst())
    await streams.stop()
    found["streams alone, inter-token p99, ms"] = 1000 * p99["alone"]
    found["embedding alone, texts/s"] = alone_rate
    for way in ways:
        found[f"{way}: inter-token p99 / alone"] = p99[way] / p99["alone"]
        found[f"{way}: texts/s / fair share"] = rates[way] / alone_rate / FAIR_SHARE
    return found


async def measure(rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    readings: dict[str, list[float]] = defaultdict(list)
    llm = {"model": "smollm2-135m", "options": {"kv_cache_gb": KV_GB, "prefix_caching": False}}
    async with started(HybridBackend(llm_config=llm, embedding_config="minilm")) as hybrid:
        memory = await memory_of(hybrid)
        async with started(HybridBackend(embedding_config="minilm")) as other, second_process() as server:
            await other.embed(texts(0)[:64])
            ways: dict[str, Burst] = {"time_slice": hybrid.embed, "mps": other.embed, "two servers": server}
            for number in range(rounds):
                for name, value in (await one_round(number, hybrid, ways)).items():
                    readings[name].append(value)
                print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return readings, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all readings here")
    options = parser.parse_args()
    readings, memory = asyncio.run(measure(options.rounds))
    print("| | median (min to max) |\n|---|---|")
    for name, values in readings.items():
        print(f"| {name} | {statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g}) |")
    for name, value in memory.items():
        print(f"| memory {name} | {value:.0f} |")
    if options.json:
        options.json.write_text(json.dumps({"readings": readings, "memory": memory}, indent=2) + "\n")


if __name__ == "__main__":
    main()

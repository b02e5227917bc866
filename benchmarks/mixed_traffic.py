"""Chat streams with concurrent embedding bursts: one process with time_slice or mps, and two separate servers.

    hatch run python benchmarks/mixed_traffic.py [--rounds 3] [--json results.json]

A round measures 16 streams alone, 512 texts alone, and both together in each setup. Ratios are taken within a
round: inter-token p99 relative to the streams alone, and texts/s relative to embedding alone. With
weights of 3 for the LLM and 1 for the encoder, the encoder's fair share is a quarter. After the first round, once every
KV block has been used, the memory of the process is compared with the memory plan.
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
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from sage_infer import SamplingParams, open_backend
from sage_infer_hybrid import HybridBackend

STREAMS, TEXTS, WORDS, TOKENS = 16, 512, 24, 4000
WARM_UP_S, ALONE_S = 4.0, 8.0
FAIR_SHARE = 0.25
KV_GB, KV_BYTES_OF_TOKEN = 0.5, 2 * 30 * 3 * 64 * 4  # of SmolLM2 in float32
OPTIONS: dict[str, Any] = {"kv_cache_gb": KV_GB, "prefix_caching": False}
Readings = dict[str, list[float]]
Embed = Callable[[list[str]], Awaitable[Any]]


def texts(seed: int) -> list[str]:
    numbers = random.Random(seed)
    words = ["river", "market", "engine", "paper", "music", "winter", "garden", "signal", "bridge", "cloud"]
    return [" ".join(numbers.choices(words, k=WORDS)) for _ in range(TEXTS)]


async def read(stream: Any, times: list[float]) -> None:
    async for _ in stream:
        times.append(time.perf_counter())


async def p99_of_streams(generate: Callable[[list[int]], Awaitable[Any]], during: Awaitable[Any]) -> float:
    """Inter-token p99 in seconds of ``STREAMS`` streams while ``during`` runs."""
    numbers = random.Random(1)
    prompts = [[numbers.randrange(1000, 40000) for _ in range(38)] for _ in range(STREAMS)]
    each: list[list[float]] = [[] for _ in prompts]
    tasks = [
        asyncio.create_task(read(await generate(prompt), times))
        for prompt, times in zip(prompts, each, strict=True)
    ]
    await asyncio.sleep(WARM_UP_S)
    begin = time.perf_counter()
    await during
    end = time.perf_counter()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    gaps = sorted(
        later - earlier
        for times in each
        for earlier, later in itertools.pairwise(t for t in times if begin <= t <= end)
    )
    return gaps[min(int(len(gaps) * 0.99), len(gaps) - 1)]


async def rate(embed: Embed, seed: int) -> float:
    """Texts per second of one burst."""
    burst, started = texts(seed), time.perf_counter()
    await embed(burst)
    return len(burst) / (time.perf_counter() - started)


async def one_process(mode: Any, seed: int) -> tuple[float, float, HybridBackend]:
    """Inter-token p99 and texts/s of both together; the instance stays open."""
    hybrid = HybridBackend(
        llm_config={"model": "smollm2-135m", "options": OPTIONS},
        embedding_config="minilm",
        sharing_mode=mode,
    )
    await hybrid.start()
    await hybrid.embed(texts(seed)[:64])

    async def generate(prompt: list[int]) -> Any:
        return (await hybrid.generate([prompt], greedy()))[0]

    found: list[float] = []

    async def bursts() -> None:
        found.append(await rate(hybrid.embed, seed))

    return await p99_of_streams(generate, bursts()), found[0], hybrid


def greedy() -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)


async def memory_of(hybrid: HybridBackend) -> dict[str, float]:
    """Planned and measured memory, after sequences that fill the KV cache and texts of full length."""
    tokens = int(KV_GB * 2**30 / KV_BYTES_OF_TOKEN) // 2  # of each of two concurrent sequences
    numbers = random.Random(2)
    prompts = [[numbers.randrange(1000, 40000) for _ in range(tokens - 400)] for _ in range(2)]
    params = SamplingParams(temperature=0, max_tokens=360, ignore_eos=True)
    streams = await hybrid.generate(prompts, params)
    await asyncio.gather(*(read(stream, []) for stream in streams))
    await hybrid.embed(["river " * 600] * 64, truncate="end")
    plan = hybrid.memory_plan()
    return {
        "planned, MB": plan.used("cpu") / 1e6,
        "held without file pages, MB": (hybrid.measured_devices()["cpu"] or 0) / 1e6,
        "RSS of the whole process, MB": resident_bytes("VmRSS") / 1e6,
        "of it file pages, MB": resident_bytes("RssFile") / 1e6,
    }


def resident_bytes(which: str) -> int:
    """Resident bytes of this process: all (``VmRSS``), or libraries and mapped weights (``RssFile``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(which))


async def streams_alone() -> float:
    async with open_backend("openvino", model="smollm2-135m", serves="llm", **OPTIONS) as backend:

        async def generate(prompt: list[int]) -> Any:
            return (await backend.generate([prompt], greedy()))[0]

        return await p99_of_streams(generate, asyncio.sleep(ALONE_S))


async def embedding_alone(seed: int) -> float:
    async with open_backend("openvino-embedding", model="minilm", serves="embedding") as backend:
        await backend.embed_batch(texts(seed)[:64])
        return await rate(backend.embed_batch, seed)


def encoder_server(inbox: Any, outbox: Any) -> None:
    """A separate process that embeds all requests, like another server on the machine."""

    async def serve() -> None:
        async with open_backend("openvino-embedding", model="minilm", serves="embedding") as backend:
            await backend.embed_batch(texts(0)[:64])
            outbox.put("ready")
            while (burst := await asyncio.to_thread(inbox.get)) is not None:
                await backend.embed_batch(burst)
                outbox.put(len(burst))

    asyncio.run(serve())


async def two_processes(seed: int) -> tuple[float, float]:
    context = multiprocessing.get_context("spawn")
    inbox, outbox = context.Queue(), context.Queue()
    server = context.Process(target=encoder_server, args=(inbox, outbox), daemon=True)
    server.start()
    await asyncio.to_thread(outbox.get)
    found: list[float] = []

    async def embed(burst: list[str]) -> None:
        inbox.put(burst)
        await asyncio.to_thread(outbox.get)

    async def bursts() -> None:
        found.append(await rate(embed, seed))

    try:
        async with open_backend("openvino", model="smollm2-135m", serves="llm", **OPTIONS) as backend:

            async def generate(prompt: list[int]) -> Any:
                return (await backend.generate([prompt], greedy()))[0]

            return await p99_of_streams(generate, bursts()), found[0]
    finally:
        inbox.put(None)
        await asyncio.to_thread(server.join)


async def measure(rounds: int, readings: Readings) -> dict[str, float]:
    memory: dict[str, float] = {}
    for number in range(rounds):
        alone_s, alone_rate = await streams_alone(), await embedding_alone(number)
        readings["streams alone, inter-token p99, ms"].append(1000 * alone_s)
        readings["embedding alone, texts/s"].append(alone_rate)
        for mode in ("time_slice", "mps"):
            p99, texts_s, hybrid = await one_process(mode, number)
            readings[f"{mode}: inter-token p99 / alone"].append(p99 / alone_s)
            readings[f"{mode}: texts/s / fair share"].append(texts_s / alone_rate / FAIR_SHARE)
            if mode == "time_slice" and not memory:
                memory = await memory_of(hybrid)
            await hybrid.close()
        p99, texts_s = await two_processes(number)
        readings["two servers: inter-token p99 / alone"].append(p99 / alone_s)
        readings["two servers: texts/s / fair share"].append(texts_s / alone_rate / FAIR_SHARE)
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all readings here")
    options = parser.parse_args()
    readings: Readings = defaultdict(list)
    memory = asyncio.run(measure(options.rounds, readings))
    print("| | median (min to max) |\n|---|---|")
    for name, values in readings.items():
        print(f"| {name} | {statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g}) |")
    for name, value in memory.items():
        print(f"| memory {name} | {value:.0f} |")
    if options.json:
        options.json.write_text(json.dumps({"readings": readings, "memory": memory}, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Thousands of requests that stop, finish or are abandoned at random: each ends exactly once and frees its resources.

    hatch run python benchmarks/stress.py [--requests 2000] [--at-once 64] [--backend openvino] [--json results.json]

Exits with 1 if a request ended incorrectly, a KV block was not freed, or memory kept growing.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from sage_infer import SamplingParams, open_backend
from sage_infer.contracts import InferenceBackend, TokenStream
from sage_infer.schemas import RequestOptions

STOPS = (" the", " and", ".", "\n", " of")
GROWTH_MB = 32.0  # maximum growth in the second half of the requests


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def random_request(numbers: random.Random) -> tuple[list[int], SamplingParams]:
    prompt = [numbers.randrange(1000, 40000) for _ in range(int(numbers.lognormvariate(3.5, 0.8)) + 1)]
    return prompt[:400], SamplingParams(
        temperature=numbers.choice((0.0, 0.0, 0.8)),
        top_p=numbers.choice((1.0, 0.9)),
        seed=numbers.randrange(1 << 30),
        max_tokens=numbers.randrange(1, 40),
        stop=tuple(numbers.sample(STOPS, numbers.choice((0, 0, 1, 2)))),
        ignore_eos=numbers.random() < 0.5,
    )


async def read(stream: TokenStream, give_up_after: int | None) -> str:
    """How the request ended; also checks the stream's own account."""
    count = 0
    async for delta in stream:
        count += len(delta.token_ids)
        if give_up_after is not None and count >= give_up_after:
            stream.cancel()
            return "given up"
    if stream.finish_reason is None or stream.usage is None:
        return "ended without a reason"
    if stream.usage.completion_tokens < count:
        return "more tokens than its usage says"
    return stream.finish_reason


async def run(backend: InferenceBackend, requests: int, at_once: int) -> dict[str, Any]:
    numbers, started = random.Random(7), time.perf_counter()
    before, left = backend.stats(), itertools.count()
    ends: Counter[str] = Counter()
    resident: list[float] = []

    async def client() -> None:
        while next(left) < requests:
            prompt, params = random_request(numbers)
            (stream,) = await backend.generate(
                [prompt], params, options=RequestOptions(priority=numbers.randrange(-1, 2))
            )
            give_up_after = numbers.randrange(1, 20) if numbers.random() < 0.3 else None
            ends[await read(stream, give_up_after)] += 1
            done = ends.total()
            if done % max(1, requests // 20) == 0:
                resident.append(resident_mb())
                print(f"\r{done} of {requests} …", end="", file=sys.stderr, flush=True)

    await asyncio.gather(*(client() for _ in range(at_once)))
    after = backend.stats()
    while after.running or after.waiting or after.finished - before.finished < requests:
        await asyncio.sleep(0.01)  # the engine is still aborting the last abandoned requests
        after = backend.stats()
        if time.perf_counter() - started > 3600:
            break
    print(file=sys.stderr)
    return {
        "requests": requests,
        "at once": at_once,
        "seconds": time.perf_counter() - started,
        "ends": dict(ends),
        "finished in the engine": after.finished - before.finished,
        "KV blocks free at the start": before.kv_blocks_free,
        "KV blocks free at the end": after.kv_blocks_free,
        "resident set at half time, MB": resident[len(resident) // 2],
        "resident set at the end, MB": resident[-1],
    }


def faults(report: dict[str, Any]) -> list[str]:
    found = []
    ends = report["ends"]
    if sum(ends.values()) != report["requests"] or not set(ends) <= {"stop", "length", "given up"}:
        found.append(f"requests ended as {ends}")
    if report["finished in the engine"] != report["requests"]:
        found.append(f"the engine ended {report['finished in the engine']} of {report['requests']} requests")
    if report["KV blocks free at the end"] != report["KV blocks free at the start"]:
        found.append("KV blocks are missing at the end")
    growth = report["resident set at the end, MB"] - report["resident set at half time, MB"]
    if growth > GROWTH_MB:
        found.append(f"the resident set grew by {growth:.0f} MB in the second half")
    return found


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    async with open_backend(options.backend, model=options.model, serves="llm") as backend:
        return await run(backend, options.requests, options.at_once)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--json", type=Path, help="write the report here")
    options = parser.parse_args()
    report = asyncio.run(measure(options))
    for name, value in report.items():
        print(f"{name}: {value}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    found = faults(report)
    for fault in found:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

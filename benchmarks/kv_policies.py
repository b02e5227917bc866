"""A KV store below the embedded engine, by policy: tokens not computed, and time to the first token, on a real trace.

    python benchmarks/kv_policies.py TRACE [--ways before lru hotness reuse] [--rounds 1] [--seconds 80]
        [--sessions 0.04] [--blocks 16] [--engine-blocks 48] [--memory-blocks 120] [--disk] [--json FILE]

TRACE is a Mooncake trace (``.jsonl`` or ``.jsonl.gz``: ``timestamp``, ``output_length`` and ``hash_ids``). A share of
its sessions is replayed, without prompts of more than ``--blocks`` blocks; each block of 512 tokens becomes one of 32,
and the time of the trace is compressed to ``--seconds``. Requests are sent at their times, whether or not earlier ones
have ended. Every way is an engine of its own with the same options but for ``kv_store``:

- ``lru``, ``hotness``, ``reuse``: the policy of a store in memory (with ``--disk``: of the memory above a disk);
- ``before``: ``lru``, without the line in which waiting requests wait for room in the buffers.

Printed: the share of the prompts' tokens that were not computed, those from the store alone, mean and p90 of the time
to the first token, and each as a ratio to the first way of the same round. Tokens are comparable on a loaded machine,
times only within a round. Where requests arrive faster than the engine computes, most of them ask the store before it
has their blocks: choose ``--seconds`` so that the engine keeps up.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sage_infer import SamplingParams
from sage_infer.backends import create_backend
from sage_infer.sdk.kv_broker import KVBroker
from sage_infer.sdk.kv_pages.pages import FetchedPages

PAGE = 32
SMOLLM2_BLOCK = 1_474_560  # bytes of 32 tokens in f32
OUTPUT_TOKENS = 8

Request = tuple[float, list[int]]


def sampled(path: Path, *, share: float, blocks: int, seed: int) -> Iterator[tuple[float, list[int]]]:
    """Time and blocks of the requests of a share of the sessions: requests that continue the same first one."""
    data = path.read_bytes()
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    draw = random.Random(seed)
    session_of: dict[int, int] = {}
    is_kept: dict[int, bool] = {}
    for number, line in enumerate(text.splitlines()):
        row = json.loads(line)
        hashes = row["hash_ids"]
        known = next((h for h in reversed(hashes[1:]) if h in session_of), None)  # all share the first block
        session = number if known is None else session_of[known]
        session_of.update((h, session) for h in hashes)
        if session not in is_kept:
            is_kept[session] = draw.random() < share
        if is_kept[session] and len(hashes) <= blocks:
            yield row["timestamp"] / 1000 + 3.0 * draw.random(), hashes


def requests_of(arguments: argparse.Namespace) -> list[Request]:
    rows = sorted(sampled(arguments.trace, share=arguments.sessions, blocks=arguments.blocks, seed=3))
    first, last = rows[0][0], rows[-1][0]
    scale = arguments.seconds / (last - first)
    return [((at - first) * scale, [t for h in hashes for t in tokens_of(h)] + [7]) for at, hashes in rows]


def tokens_of(block: int) -> list[int]:
    draw = random.Random(block)
    return [draw.randrange(100, 20_000) for _ in range(PAGE)]


def store_of(way: str, arguments: argparse.Namespace, folder: str) -> dict[str, Any]:
    policy, blocks = {"before": "lru"}.get(way, way), arguments.memory_blocks
    if not arguments.disk:
        return {"store": "paged", "capacity_blocks": blocks, "policy": policy}
    return {
        "store": "tiered", "policy": policy, "upper": {"capacity_blocks": blocks},
        "lower": {"store": "ssd", "path": folder, "capacity_gb": 8},
    }  # fmt: skip


async def ask(backend: Any, prompt: list[int], due: float) -> tuple[float, int]:
    """Seconds to the first token, and cached tokens."""
    await asyncio.sleep(due - time.perf_counter())
    params = SamplingParams(temperature=0.0, max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    (stream,) = await backend.generate(prompt, params)
    first = None
    async for _ in stream:
        first = time.perf_counter() if first is None else first
    return (first or time.perf_counter()) - due, stream.usage.cached_tokens


async def replay(way: str, requests: list[Request], arguments: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        backend = create_backend(
            "openvino", model=arguments.model, serves="llm", max_sequence_length=PAGE * arguments.blocks + 2 * PAGE,
            kv_cache_gb=arguments.engine_blocks * SMOLLM2_BLOCK / 2**30, max_batch_size=4, max_queue=10_000,
            kv_store=store_of(way, arguments, folder), kv_store_wait_s=10.0,
        )  # fmt: skip
        await backend.start()
        try:
            start = time.perf_counter() + 0.1
            found = await asyncio.gather(*(ask(backend, prompt, start + at) for at, prompt in requests))
            counts = backend.stats().extensions
        finally:
            await backend.close()
    times = sorted(seconds for seconds, _ in found)
    prompts = sum(len(prompt) for _, prompt in requests)
    return {
        "saved": sum(cached for _, cached in found) / prompts,
        "stored": counts["kv_store_fetched"] * PAGE / prompts,
        "ttft_mean_s": statistics.fmean(times),
        "ttft_p90_s": times[int(0.9 * len(times))],
        "later_requests": counts["kv_store_later_requests"],
        "skipped_requests": counts["kv_store_skipped_requests"],
        "load_average": os.getloadavg()[0],
    }


async def without_line(*_: object, **__: object) -> FetchedPages:
    return FetchedPages()


def run(way: str, requests: list[Request], arguments: argparse.Namespace) -> dict[str, float]:
    fetch_later = KVBroker.fetch_later
    try:
        if way == "before":
            KVBroker.fetch_later = without_line  # type: ignore[method-assign]
        return asyncio.run(replay(way, requests, arguments))
    finally:
        KVBroker.fetch_later = fetch_later  # type: ignore[method-assign]


def row(way: str, found: Mapping[str, float], first: Mapping[str, float]) -> str:
    ratios = (found[name] / max(first[name], 1e-9) for name in ("saved", "ttft_mean_s", "ttft_p90_s"))
    saved, mean, p90 = ratios
    return (
        f"{way:8} saved {found['saved']:6.1%} ({saved:.2f}x)  from the store {found['stored']:6.1%}  "
        f"TTFT mean {found['ttft_mean_s']:6.2f} s ({mean:.2f}x)  p90 {found['ttft_p90_s']:6.2f} s ({p90:.2f}x)  "
        f"later {found['later_requests']:.0f}  load {found['load_average']:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--ways", nargs="+", default=["before", "lru", "reuse"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=80.0)
    parser.add_argument("--sessions", type=float, default=0.04)
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--engine-blocks", type=int, default=48)
    parser.add_argument("--memory-blocks", type=int, default=120)
    parser.add_argument("--disk", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    requests = requests_of(arguments)
    tokens = sum(len(prompt) for _, prompt in requests)
    print(f"{len(requests)} requests, {tokens} prompt tokens in {arguments.seconds:g} s", flush=True)
    rounds = []
    for number in range(arguments.rounds):
        ways = arguments.ways if number % 2 == 0 else [*reversed(arguments.ways)]
        found: dict[str, dict[str, float]] = {}
        for way in ways:
            found[way] = run(way, requests, arguments)
            print(f"  {way}: {found[way]}", flush=True)
        for way in arguments.ways:
            print(row(way, found[way], found[arguments.ways[0]]), flush=True)
        rounds.append(found)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"requests": len(requests), "rounds": rounds}, indent=1))


if __name__ == "__main__":
    main()

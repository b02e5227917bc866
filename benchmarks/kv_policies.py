"""A KV store below the embedded engine, by policy: tokens not computed, and time to the first token, on a real trace.

    python benchmarks/kv_policies.py TRACE [--ways before lru hotness reuse slo recompute] [--rounds 1] [--seconds 80]
        [--sessions 0.04] [--blocks 16] [--engine-blocks 48] [--memory-blocks 120] [--disk] [--json FILE]

TRACE is a Mooncake trace (``.jsonl`` or ``.jsonl.gz``: ``timestamp``, ``output_length`` and ``hash_ids``). A share of
its sessions is replayed, without prompts of more than ``--blocks`` blocks; each block of 512 tokens becomes one of 32,
and the time of the trace is compressed to ``--seconds``. Requests are sent at their times, whether or not earlier ones
have ended. Every way is an engine of its own with the same options but for ``kv_store``:

- ``lru``, ``hotness``, ``reuse``: the policy of a store in memory (with ``--disk``: of the memory above a disk);
- ``before``: ``lru``, without the line in which waiting requests wait for room in the buffers.

- ``slo``, ``recompute``: likewise; half of the sessions are urgent, the others have priority 2, as batch work has.

Printed: the share of the prompts' tokens that were not computed, those from the store alone, mean and p90 of the time
to the first token, and each as a ratio to the first way of the same round. Tokens are comparable on a loaded machine,
times only within a round. Where requests arrive faster than the engine computes, most of them ask the store before it
has their blocks: choose ``--seconds`` so that the engine keeps up.

    python benchmarks/kv_policies.py TRACE --alone 2000 4000 16000 [--ways lru hotness reuse slo recompute]

replays the whole trace on the policies alone, with stores of so many blocks of 512 tokens, and prints the share of the
blocks found, of what they cost to compute (attention included), and of those of urgent and of patient sessions.
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
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sage_infer import SamplingParams
from sage_infer.backends import create_backend
from sage_infer.schemas import RequestOptions
from sage_infer.sdk.kv_broker import KVBroker
from sage_infer.sdk.kv_pages.pages import FetchedPages
from sage_infer_kvstore.policies.base import Request as Note
from sage_infer_kvstore.policies.names import policy_of

PAGE = 32
SMOLLM2_BLOCK = 1_474_560  # bytes of 32 tokens in f32
OUTPUT_TOKENS = 8

PATIENT_S = {True: 2.0, False: 60.0}  # of urgent sessions, and of others
TRACE_BLOCK = 512
ATTENTION_TOKENS = 8192  # at which a token costs twice as much

Request = tuple[float, list[int], bool]


def sampled(path: Path, *, share: float, blocks: int, seed: int) -> Iterator[tuple[float, list[int], bool]]:
    """Time and blocks of the requests of a share of the sessions, and whether their session is urgent.

    A session are the requests that continue the same first one.
    """
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
            yield row["timestamp"] / 1000 + 3.0 * draw.random(), hashes, session % 2 == 0


def requests_of(arguments: argparse.Namespace) -> list[Request]:
    rows = sorted(sampled(arguments.trace, share=arguments.sessions, blocks=arguments.blocks, seed=3))
    first, last = rows[0][0], rows[-1][0]
    scale = arguments.seconds / (last - first)
    return [
        ((at - first) * scale, [t for h in hashes for t in tokens_of(h)] + [7], urgent)
        for at, hashes, urgent in rows
    ]


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


def alone(rows: list[tuple[float, list[int], bool]], way: str, blocks: int) -> dict[str, float]:
    """Shares that a store of so many blocks finds, with a policy alone."""
    policy, held = policy_of(way, TRACE_BLOCK), set[bytes]()
    found: defaultdict[str, float] = defaultdict(float)
    asked: defaultdict[str, float] = defaultdict(float)
    for now, hashes, urgent in rows:
        keys = [number.to_bytes(16, "little") for number in hashes]
        policy.asked(keys, now, Note(PATIENT_S[urgent]))
        hits = [*(key in held for key in keys), False].index(False)
        for position in range(len(keys)):
            cost = 1.0 + position * TRACE_BLOCK / ATTENTION_TOKENS
            for name, amount in (("blocks", 1.0), ("cost", cost), ("urgent" if urgent else "patient", 1.0)):
                asked[name] += amount
                found[name] += amount if position < hits else 0.0
        for key in keys[:hits]:
            policy.used(key, now)
        own = {*keys}
        for key in keys[hits:]:
            while len(held) >= blocks and key not in held:
                victim = next((one for one in policy.order(now) if one not in own), None)
                if victim is None:
                    break
                policy.remove(victim)
                held.remove(victim)
            if len(held) < blocks or key in held:
                held.add(key)
                policy.add(key, now)
    return {name: found[name] / asked[name] for name in ("blocks", "cost", "urgent", "patient")}


def print_alone(arguments: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    rows = sorted(sampled(arguments.trace, share=1.0, blocks=10**9, seed=3))
    print(f"{len(rows)} requests, {sum(len(row[1]) for row in rows)} blocks", flush=True)
    results: dict[str, dict[str, dict[str, float]]] = {}
    for blocks in arguments.alone:
        for way in arguments.ways:
            found = results.setdefault(str(blocks), {})[way] = alone(rows, way, blocks)
            shares = "  ".join(f"{name} {share:6.1%}" for name, share in found.items())
            print(f"{blocks:6} blocks  {way:9}  {shares}", flush=True)
    return results


async def ask(backend: Any, prompt: list[int], urgent: bool, due: float) -> tuple[float, int]:
    """Seconds to the first token, and cached tokens."""
    await asyncio.sleep(due - time.perf_counter())
    params = SamplingParams(temperature=0.0, max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    options = RequestOptions(priority=0 if urgent else 2)
    (stream,) = await backend.generate(prompt, params, options=options)
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
            found = await asyncio.gather(
                *(ask(backend, prompt, urgent, start + at) for at, prompt, urgent in requests)
            )
            counts = backend.stats().extensions
        finally:
            await backend.close()
    times = sorted(seconds for seconds, _ in found)
    prompts = sum(len(prompt) for _, prompt, _ in requests)
    by_urgency = {
        name: [seconds for (seconds, _), (*_, urgent) in zip(found, requests, strict=True) if urgent == is_it]
        for name, is_it in (("urgent", True), ("patient", False))
    }
    return {
        "saved": sum(cached for _, cached in found) / prompts,
        "stored": counts["kv_store_fetched"] * PAGE / prompts,
        "ttft_mean_s": statistics.fmean(times),
        "ttft_p90_s": times[int(0.9 * len(times))],
        **{f"ttft_{name}_s": statistics.fmean(seconds) for name, seconds in by_urgency.items() if seconds},
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
    parser.add_argument("--alone", type=int, nargs="+", metavar="BLOCKS")
    arguments = parser.parse_args()
    if arguments.alone:
        shares = print_alone(arguments)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(shares, indent=1))
        return
    requests = requests_of(arguments)
    tokens = sum(len(prompt) for _, prompt, _ in requests)
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

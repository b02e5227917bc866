"""Cost of the contract on vLLM: the adapter and raw ``AsyncLLM`` alternate in one process and one engine.

    python benchmarks/vllm_overhead.py [--model NAME] [--pairs 5] [--concurrency 1 8 32] [--json FILE]

Every pair runs the same work through both, with new prompts and alternating order. Ratios are
taken within a pair. CPU time is that of this process only, in which the adapter runs; the engine's own
processes do the same work in both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from attrs import asdict, frozen
from sage_infer import SamplingParams
from sage_infer.backends import create_backend
from sage_infer.cli.options import parse_options

PROMPT_TOKENS = 32
Generate = Callable[[list[int], int], Awaitable[tuple[float, int]]]
"""Generate that many tokens for a prompt; returns the time of the first one and the number of tokens."""


@frozen
class Run:
    """One run: seconds, tokens, time to the first token (median over requests), CPU seconds of this process."""

    seconds: float
    tokens: int
    ttft_s: float
    cpu_s: float


@frozen
class Pair:
    concurrency: int
    adapter: Run
    raw: Run

    @property
    def throughput(self) -> float:
        return (self.adapter.tokens / self.adapter.seconds) / (self.raw.tokens / self.raw.seconds)

    @property
    def ttft(self) -> float:
        return self.adapter.ttft_s / self.raw.ttft_s

    @property
    def added_us(self) -> float:
        """CPU microseconds per token that the adapter adds."""
        return 1e6 * (self.adapter.cpu_s / self.adapter.tokens - self.raw.cpu_s / self.raw.tokens)


def through_adapter(backend: Any) -> Generate:
    async def generate(ids: list[int], tokens: int) -> tuple[float, int]:
        params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        (stream,) = await backend.generate(ids, params)
        first, count = 0.0, 0
        async for delta in stream:
            first = first or time.perf_counter()
            count += len(delta.token_ids)
        return first, count

    return generate


def through_vllm(backend: Any) -> Generate:
    running = backend._running
    compat, llm = running.compat, running.engine.llm
    numbers = iter(range(10**9))

    async def generate(ids: list[int], tokens: int) -> tuple[float, int]:
        params = compat.SamplingParams(
            temperature=0.0, max_tokens=tokens, ignore_eos=True, output_kind=compat.RequestOutputKind.DELTA
        )
        first, count = 0.0, 0
        async for output in llm.generate(compat.tokens_input(ids), params, f"raw-{next(numbers)}"):
            first = first or time.perf_counter()
            count += len(output.outputs[0].token_ids)
        return first, count

    return generate


async def run(generate: Generate, prompts: Sequence[list[int]], tokens: int) -> Run:
    cpu, started = time.process_time(), time.perf_counter()
    results = await asyncio.gather(*[generate(prompt, tokens) for prompt in prompts])
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    ttft = statistics.median(first - started for first, _ in results)
    return Run(seconds, sum(count for _, count in results), ttft, cpu)


async def measure(args: argparse.Namespace) -> list[Pair]:
    options = {"eager": True, "prefix_caching": False, "max_batch_size": max(args.concurrency)}
    backend = create_backend(
        "vllm", model=args.model, serves="llm", **{**options, **parse_options(args.option)}
    )
    await backend.start()
    try:
        ways = {"adapter": through_adapter(backend), "raw": through_vllm(backend)}
        draw = random.Random(1)

        def prompts(count: int) -> list[list[int]]:
            return [[draw.randrange(100, 20_000) for _ in range(PROMPT_TOKENS)] for _ in range(count)]

        for way in ways.values():  # exclude one-time costs
            await run(way, prompts(max(args.concurrency)), 8)
        pairs = []
        for number in range(args.pairs):
            for concurrency in args.concurrency:
                order = sorted(ways, reverse=bool(number % 2))
                done = {name: await run(ways[name], prompts(concurrency), args.tokens) for name in order}
                pairs.append(Pair(concurrency, done["adapter"], done["raw"]))
                print(f"pair {number + 1} of {args.pairs}, concurrency {concurrency}: "
                      f"{pairs[-1].throughput:.3f}", flush=True)  # fmt: skip
        return pairs
    finally:
        await backend.close()


def spread(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--option", "-o", action="append", help="KEY=VALUE for the backend")
    parser.add_argument("--json", type=Path, help="write all runs to this file")
    args = parser.parse_args()
    pairs = asyncio.run(measure(args))
    print(f"\n{args.pairs} pairs, {args.tokens} tokens per request: median (min to max)")
    print("| concurrency | raw tok/s | throughput ratio | TTFT ratio | CPU added, µs per token |")
    print("|---:|---:|---|---|---|")
    for concurrency in args.concurrency:
        rows = [pair for pair in pairs if pair.concurrency == concurrency]
        raw = statistics.median(pair.raw.tokens / pair.raw.seconds for pair in rows)
        cells = (
            f"{concurrency}", f"{raw:.0f}", spread([p.throughput for p in rows], ".3f"),
            spread([p.ttft for p in rows], ".3f"), spread([p.added_us for p in rows], ".1f"),
        )  # fmt: skip
        print(f"| {' | '.join(cells)} |")
    if args.json:
        args.json.write_text(json.dumps([asdict(pair) for pair in pairs], indent=1))


if __name__ == "__main__":
    main()

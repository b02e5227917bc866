"""Chains of embed, rank and chat among other chats: scheduled under one deadline, and each step apart.

    hatch run python benchmarks/chains.py [--rounds 3] [--requests 60] [--load 0.8] [--json results.json]

One control plane serves SmolLM2 and two MiniLMs with the embedded engines. A chain embeds a question, embeds documents
to rank them by cosine (no wheel has a cross-encoder), and asks a chat about the best one. Other chats without a
deadline use the same LLM. Each round measures how long a chain takes alone, and how many chats per second the LLM
completes when it is saturated. Then the same arrivals, at ``--load`` of that rate, are sent twice, in turns: with the
chain's name and deadline, and without. Chains arrive one by one and chats in bursts, both as Poisson processes. The
deadline is ``--factor`` times the duration of a chain alone. A chain counts if it ends within its deadline; refused
ones do not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from sage_infer import SamplingParams, resolve_model
from sage_infer.errors import SageInferError
from sage_infer.schemas import ModelDescriptor, RequestOptions
from sage_llm import ControlPlaneManager, LocalExecutor, ServedModel
from sage_llm.manager.settings import ControlPlaneSettings

LLM, EMBEDDER, RANKER = "smollm2-135m", "minilm", "minilm-ranker"
WORDS = ["river", "market", "engine", "paper", "music", "winter", "garden", "signal", "bridge", "cloud"]
DOCUMENTS, BATCH, BURST = 4, 2, 8
CHAIN_TOKENS, CHAT_TOKENS = 8, 32


def served(threads: int) -> list[ServedModel]:
    llm = ServedModel(
        descriptor=resolve_model(LLM),
        backend="openvino",
        options={"kv_cache_gb": 0.25, "max_batch_size": BATCH, "threads": threads, "prefix_caching": False},
    )
    path = resolve_model(EMBEDDER, model_type="embedding").model_path
    encoders = [
        ServedModel(
            descriptor=ModelDescriptor(model_id=name, model_type="embedding", model_path=path),
            backend="openvino-embedding",
            options={"threads": 1},
        )
        for name in (EMBEDDER, RANKER)
    ]
    return [llm, *encoders]


def text(numbers: random.Random, words: int) -> str:
    return " ".join(numbers.choices(WORDS, k=words))


async def chat(plane: ControlPlaneManager, prompt: str, tokens: int, options: RequestOptions | None) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    async with await plane.chat(
        [{"role": "user", "content": prompt}], params, LLM, options=options
    ) as stream:
        async for _ in stream:
            pass


async def chain(plane: ControlPlaneManager, seed: int, name: str, deadline: float | None) -> float:
    """Run a chain and return its duration in seconds."""
    numbers, begun = random.Random(seed), time.monotonic()
    first = RequestOptions(chain=name, deadline=deadline) if name else None
    later = RequestOptions(chain=name) if name else None
    question = text(numbers, 12)
    wanted = (await plane.embed([question], EMBEDDER, options=first)).vectors[0]
    documents = [text(numbers, 30) for _ in range(DOCUMENTS)]
    found = (await plane.embed(documents, RANKER, options=later)).vectors
    scores = [sum(a * b for a, b in zip(wanted, vector, strict=True)) for vector in found]
    best = documents[scores.index(max(scores))]
    await chat(plane, f"{best}\n{question}?", CHAIN_TOKENS, later)
    return time.monotonic() - begun


async def saturated(plane: ControlPlaneManager, count: int) -> float:
    """Chats per second with twice as many clients as the batch has places, in the mix of the measurement."""
    kinds = [number % 2 == 0 for number in range(count)]
    numbers, begun = random.Random(0), time.monotonic()

    async def client() -> None:
        while kinds:
            tokens, words = (CHAIN_TOKENS, 42) if kinds.pop() else (CHAT_TOKENS, 20)
            await chat(plane, text(numbers, words), tokens, None)

    await asyncio.gather(*(client() for _ in range(2 * BATCH)))
    return count / (time.monotonic() - begun)


def arrivals(rate: float, count: int, seed: int) -> list[tuple[float, bool]]:
    """Times, and whether a chain arrives: as many chains, one by one, as chats in bursts of ``BURST``."""
    numbers = random.Random(seed)
    found = []
    for is_chain, size in ((True, 1), (False, BURST)):
        now = 0.0
        for _ in range(-(-count // (2 * size))):
            now += numbers.expovariate(rate / 2 / size)
            found += [(now, is_chain)] * size
    return sorted(found)


async def phase(
    plane: ControlPlaneManager, planned: list[tuple[float, bool]], deadline: float, seed: int, together: bool
) -> dict[str, float]:
    """Send the planned arrivals; return the share of chains in time, and median durations."""
    begun = time.monotonic()
    took: list[float | None] = []
    refused, chats = 0, []

    async def one_chain(number: int) -> None:
        nonlocal refused
        name = f"rag/{seed}-{number}" if together else ""
        started = time.monotonic()
        try:
            took.append(await chain(plane, number, name, deadline if together else None))
        except SageInferError:
            took.append(None)
            refused += time.monotonic() - started < deadline / 10

    async def one_chat(number: int) -> None:
        started = time.monotonic()
        await chat(plane, text(random.Random(number), 20), CHAT_TOKENS, None)
        chats.append(time.monotonic() - started)

    tasks = []
    for number, (at, is_chain) in enumerate(planned):
        await asyncio.sleep(max(begun + at - time.monotonic(), 0.0))
        tasks.append(asyncio.ensure_future(one_chain(number) if is_chain else one_chat(number)))
    await asyncio.gather(*tasks)
    ended = [seconds for seconds in took if seconds is not None]
    return {
        "chains": len(took),
        "attainment": sum(seconds <= deadline for seconds in ended) / max(len(took), 1),
        "refused": refused,
        "chain_s": statistics.median(ended) if ended else 0.0,
        "chat_s": statistics.median(chats) if chats else 0.0,
    }


async def measure(rounds: int, requests: int, load: float, factor: float) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    executor = LocalExecutor()
    settings = ControlPlaneSettings(target_wait_s=60.0)
    plane = ControlPlaneManager(served(os.cpu_count() or 1), executor, settings)
    await plane.start()
    try:
        for number in range(rounds):
            alone = statistics.median([await chain(plane, seed, "", None) for seed in range(7)])
            for seed in range(4):
                await chain(plane, seed, f"rag/warm{number}-{seed}", 600.0)  # the pipeline is known
            rate = await saturated(plane, max(requests // 2, 4 * BATCH)) * load
            planned = arrivals(rate, requests, number)
            row: dict[str, Any] = {"alone_s": alone, "rate": rate, "load_1m": os.getloadavg()[0]}
            order = (True, False) if number % 2 == 0 else (False, True)
            for together in order:
                name = "chain" if together else "apart"
                row[name] = await phase(plane, planned, factor * alone, number, together)
            found.append(row)
            print(json.dumps(row), flush=True)
    finally:
        await plane.close()
        await executor.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=60, help="chains and chats per phase")
    parser.add_argument("--load", type=float, default=0.8, help="of the LLM's saturated rate")
    parser.add_argument("--factor", type=float, default=3.0, help="deadline, in durations of a chain alone")
    parser.add_argument("--json", type=Path, help="write the rounds to this file")
    given = parser.parse_args()
    rows = asyncio.run(measure(given.rounds, given.requests, given.load, given.factor))
    chains = sum(row["chain"]["chains"] for row in rows)
    share = {
        name: sum(row[name]["attainment"] * row[name]["chains"] for row in rows) / max(chains, 1)
        for name in ("chain", "apart")
    }
    ratio = share["chain"] / share["apart"] if share["apart"] else float("inf")
    print(
        f"{chains} chains each: in time {share['chain']:.1%} as chains, {share['apart']:.1%} apart, ratio {ratio:.2f}; "
        f"median chat {statistics.median(row['chain']['chat_s'] for row in rows):.2f} s beside chains, "
        f"{statistics.median(row['apart']['chat_s'] for row in rows):.2f} s apart"
    )
    if given.json:
        result = {"load": given.load, "factor": given.factor, "ratio": ratio, **share, "rounds": rows}
        given.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    sys.exit(0 if ratio >= 1.2 else 1)


if __name__ == "__main__":
    main()

"""Chains of embed, rerank and chat among other chats: scheduled under one deadline, and each step apart.

    hatch run python benchmarks/chains.py [--rounds 2] [--requests 80] [--load 0.8] [--json results.json]

One control plane serves SmolLM2, MiniLM and a cross-encoder with the embedded engines. A chain embeds a question,
reranks documents, and asks a chat about the best one. The cross-encoder has the layers of MiniLM and a random head,
because no wheel has a trained one: its cost is that of ms-marco-MiniLM-L6, its order means nothing. Other chats without
a deadline use the same LLM.

Each round, of at most two minutes, measures how many chains and chats per second are completed under saturation, and
how long a chain takes alone. Then the same arrivals, at ``--load`` of that rate, are sent twice, in turns: with the
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
import shutil
import statistics
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sage_infer import SamplingParams, resolve_model
from sage_infer.errors import SageInferError
from sage_infer.schemas import ModelDescriptor, RequestOptions
from sage_llm import ControlPlaneManager, LocalExecutor, ServedModel
from sage_llm.manager.settings import ControlPlaneSettings

LLM, EMBEDDER, RANKER = "smollm2-135m", "minilm", "cross-encoder"
WORDS = ["river", "market", "engine", "paper", "music", "winter", "garden", "signal", "bridge", "cloud"]
DOCUMENTS, BATCH, BURST = 4, 4, 8
CHAIN_TOKENS, CHAT_TOKENS = 8, 32
PHASE_S, REST_S = 25.0, 15.0  # arrivals of a phase, and time for the last ones to end


def cross_encoder(source: Path, folder: Path) -> Path:
    """A ``BertForSequenceClassification`` with the layers of a BERT encoder and a random head."""
    shutil.copytree(source, folder)
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        (folder / name).unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    (folder / "config.json").write_text(json.dumps(config))
    data = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    header = {name if name == "__metadata__" else f"bert.{name}": row for name, row in header.items()}
    numbers = random.Random(0)
    for name, shape in (("classifier.weight", [1, config["hidden_size"]]), ("classifier.bias", [1])):
        values = [numbers.gauss(0.0, 0.05) for _ in range(shape[-1])]
        added = struct.pack(f"<{len(values)}f", *values)
        header[name] = {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [len(body), len(body) + len(added)],
        }
        body += added
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
    return folder


def served(threads: int, folder: Path) -> list[ServedModel]:
    llm = ServedModel(
        descriptor=resolve_model(LLM),
        backend="openvino",
        options={"kv_cache_gb": 0.25, "max_batch_size": BATCH, "threads": threads, "prefix_caching": False},
    )
    path = resolve_model(EMBEDDER, model_type="embedding").model_path
    ranker = cross_encoder(Path(path), folder / RANKER)
    descriptors = (
        ModelDescriptor(model_id=EMBEDDER, model_type="embedding", model_path=path),
        ModelDescriptor(model_id=RANKER, model_type="reranker", model_path=str(ranker)),
    )
    return [
        llm,
        *(
            ServedModel(descriptor=one, backend="openvino-embedding", options={"threads": 1})
            for one in descriptors
        ),
    ]


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
    await plane.embed([question], EMBEDDER, options=first)
    documents = [text(numbers, 30) for _ in range(DOCUMENTS)]
    ranked = await plane.rerank(question, documents, RANKER, top_n=1, options=later)
    best = documents[ranked.hits[0].index]
    await chat(plane, f"{best}\n{question}?", CHAIN_TOKENS, later)
    return time.monotonic() - begun


async def saturated(plane: ControlPlaneManager, count: int) -> float:
    """Chains and chats per second, in turns, with twice as many clients as the batch has places."""
    left = list(range(count))
    numbers, begun = random.Random(0), time.monotonic()

    async def client() -> None:
        while left:
            number = left.pop()
            if number % 2:
                await chain(plane, number, "", None)
            else:
                await chat(plane, text(numbers, 20), CHAT_TOKENS, None)

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
    refused, chats = 0, [0.0]

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

    tasks: list[asyncio.Task[None]] = []
    for number, (at, is_chain) in enumerate(planned):
        await asyncio.sleep(max(begun + at - time.monotonic(), 0.0))
        tasks.append(asyncio.ensure_future(one_chain(number) if is_chain else one_chat(number)))
    _, late = await asyncio.wait(tasks, timeout=REST_S)
    for task in late:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    count = sum(is_chain for _, is_chain in planned)
    ended = [seconds for seconds in took if seconds is not None]
    return {
        "chains": count,
        "attainment": sum(seconds <= deadline for seconds in ended) / max(count, 1),
        "refused": refused,
        "unfinished": len(late),
        "chain_s": statistics.median(ended) if ended else 0.0,
        "chat_s": statistics.median(chats) if chats else 0.0,
    }


async def measure(
    rounds: int, requests: int, load: float, factor: float, folder: Path
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    executor = LocalExecutor()
    settings = ControlPlaneSettings(target_wait_s=60.0)
    plane = ControlPlaneManager(served(os.cpu_count() or 1, folder), executor, settings)
    await plane.start()
    try:
        for number in range(rounds):
            rate = await saturated(plane, max(requests // 2, 4 * BATCH)) * load  # first: it warms up
            for seed in range(4):
                await chain(plane, seed, f"rag/warm{number}-{seed}", 600.0)  # the pipeline is known
            alone = statistics.median([await chain(plane, seed, "", None) for seed in range(7)])
            planned = [one for one in arrivals(rate, requests, number) if one[0] < PHASE_S]
            row: dict[str, Any] = {"alone_s": alone, "rate": rate, "load_1m": os.getloadavg()[0]}
            print(f"round {number}: alone {alone:.2f} s, {rate:.1f} requests/s", file=sys.stderr, flush=True)
            order = (True, False) if number % 2 == 0 else (False, True)
            for together in order:
                name = "chain" if together else "apart"
                row[name] = await phase(plane, planned, factor * alone, number, together)
                print(f"{name}: {row[name]}", file=sys.stderr, flush=True)
            found.append(row)
            print(json.dumps(row), flush=True)
    finally:
        await plane.close()
        await executor.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--requests", type=int, default=80, help="chains and chats per phase")
    parser.add_argument("--load", type=float, default=0.8, help="of the saturated rate")
    parser.add_argument("--factor", type=float, default=3.0, help="deadline, in durations of a chain alone")
    parser.add_argument("--json", type=Path, help="write the rounds to this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(measure(given.rounds, given.requests, given.load, given.factor, Path(folder)))
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

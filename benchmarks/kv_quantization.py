"""Perplexity, size and speed of KV in the store ``quantized``, beside KV that was not rounded.

    python benchmarks/kv_quantization.py [--windows 3] [--text FILE] [--json FILE]

The embedded engine computes windows of a text (this repository's documentation) with SmolLM2-135M and puts their KV
into a quantized store. A new engine reads it; the script checks that every block of a prompt comes from the store. It
then scores the tokens after that prompt: a constraint (``guided.choice``) makes the engine output the text itself, and
its log probabilities are those of the model before the constraint. So each scored token attends to rounded KV, but for
the tokens of the last, partial block, which no store holds. The reference is the same with a store that rounds nothing.
Sizes are those of a page against the same page in bf16. Speeds are CPU time of one thread, in GB/s of the engine's
floats.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sage_infer import open_backend
from sage_infer.discovery import model_specs
from sage_infer.models import add_model
from sage_infer.schemas import GuidedDecoding, KVCacheSchema, Prompt, SamplingParams
from sage_infer_kvstore.quantized.codec import PageCodec
from sage_infer_kvstore.quantized.numbers import from_float32

ROOT = Path(__file__).parents[1]
WINDOW, FIRST = 1024, 256
DTYPES = ("int8", "fp8_e4m3", "fp8_e5m2", "int4")

Scores = dict[tuple[int, int], list[float]]
"""Log probabilities of the tokens after a prompt, by window and length of the prompt."""


def settings(folder: Path, dtype: str | None) -> Mapping[str, Any]:
    disk = {"store": "ssd", "path": str(folder), "capacity_blocks": 4096}
    return disk if dtype is None else {"store": "quantized", "lower": disk, "dtype": dtype}


def engine(store: Mapping[str, Any]) -> Any:
    return open_backend(
        "openvino", model=str(add_model(model_specs()["smollm2-135m"])), kv_store=store, kv_store_wait_s=600.0,
        kv_cache_gb=0.5,
    )  # fmt: skip


async def prefill(backend: Any, tokens: list[int]) -> int:
    """Compute a prompt; returns how many of its tokens were cached."""
    params = SamplingParams(temperature=0.0, max_tokens=1)
    (stream,) = await backend.generate(Prompt(token_ids=tuple(tokens)), params)
    _ = [delta async for delta in stream]
    return int(stream.usage.cached_tokens)


async def scored(backend: Any, tokens: list[int], prompt: int, page: int) -> list[float]:
    """Log probabilities of the tokens from ``prompt`` + 1 to the end of the block."""
    rest = tokens[prompt + 1 : prompt + page]
    params = SamplingParams(
        temperature=0.0,
        max_tokens=len(rest),
        logprobs=0,
        guided=GuidedDecoding(choice=(await backend.detokenize(rest),)),
    )
    (stream,) = await backend.generate(Prompt(token_ids=tuple(tokens[: prompt + 1])), params)
    found = [entry async for delta in stream for entry in delta.logprobs or ()]
    assert stream.usage.cached_tokens == prompt, (
        f"{stream.usage.cached_tokens} of {prompt} tokens were cached"
    )
    values = []
    for entry, token in zip(found, rest, strict=False):
        if entry.token_id != token:  # other tokens can spell the same text
            break
        values.append(entry.logprob)
    return values


async def scores(text: str, count: int, dtype: str | None) -> tuple[Scores, KVCacheSchema]:
    with tempfile.TemporaryDirectory(prefix="sage-bench-") as folder:
        store = settings(Path(folder), dtype)
        async with engine(store) as backend:
            tokens = await backend.tokenize(text)
            windows = [tokens[at : at + WINDOW] for at in range(0, count * WINDOW, WINDOW)]
            assert len(windows[-1]) == WINDOW, f"the text has {len(tokens)} tokens; give a longer one"
            for window in windows:
                await prefill(backend, window)
            schema = backend.get_capability().kv_schema
        found: Scores = {}
        async with engine(store) as backend:
            page = schema.page_size
            for number, window in enumerate(windows):
                cached = await prefill(backend, window)
                assert cached >= WINDOW - page, f"the store returned {cached} of {WINDOW} tokens"
                prompts = range(FIRST, WINDOW, page)
                values = await asyncio.gather(*(scored(backend, window, at, page) for at in prompts))
                found.update({(number, at): value for at, value in zip(prompts, values, strict=True)})
        return found, schema


def rates(schema: KVCacheSchema, dtype: str) -> tuple[float, float, float]:
    """Bytes of a quantized page as a part of bf16's, and GB/s of rounding and of reading."""
    codec = PageCodec(schema, dtype=dtype, granularity="token_head")
    page = np.empty(schema.bytes_per_page, np.uint8)
    from_float32(
        np.random.default_rng(1).normal(0, 2, elements(schema)).astype(np.float32), page, schema.dtype
    )
    packed, back = np.empty(codec.schema.bytes_per_page, np.uint8), np.empty_like(page)
    found = []
    for run in (lambda: codec.encode(page, packed), lambda: codec.decode(packed, back)):
        best = math.inf
        for _ in range(20):
            begun = time.thread_time()
            run()
            best = min(best, time.thread_time() - begun)
        found.append(len(page) / best / 1e9)
    return len(packed) / (2 * elements(schema)), found[0], found[1]


def elements(schema: KVCacheSchema) -> int:
    return 2 * schema.num_layers * schema.num_heads * schema.page_size * schema.head_dim


async def main(options: argparse.Namespace) -> None:
    paths = [options.text] if options.text else sorted((ROOT / "docs").glob("*.md"))
    text = "\n".join(path.read_text("utf-8") for path in paths)[: options.windows * WINDOW * 8]
    plain, schema = await scores(text, options.windows, None)
    readings: dict[str, dict[str, float]] = {}
    print(
        "| KV | perplexity | change | of bf16's bytes | rounds, GB/s | reads, GB/s |\n|---|---:|---:|---:|---:|---:|"
    )
    for dtype in (None, *DTYPES):
        found = plain if dtype is None else (await scores(text, options.windows, dtype))[0]
        ours, reference = [], []
        for place, values in found.items():
            both = min(len(values), len(plain[place]))
            ours += values[:both]
            reference += plain[place][:both]
        perplexity = math.exp(-sum(ours) / len(ours))
        change = 100 * (math.exp((sum(reference) - sum(ours)) / len(ours)) - 1)
        if dtype is None:
            print(f"| {schema.dtype} | {perplexity:.4f} | {len(ours)} tokens | | | |")
            readings[schema.dtype] = {"perplexity": perplexity, "tokens": len(ours)}
            continue
        share, rounds, reads = rates(schema, dtype)
        print(
            f"| {dtype} | {perplexity:.4f} | {change:+.2f} % | {share:.3f} | {rounds:.2f} | {reads:.2f} |",
            flush=True,
        )
        readings[dtype] = {
            "perplexity": perplexity, "tokens": len(ours), "change_percent": change, "bytes_of_bf16": share,
            "rounds_gb_per_s": rounds, "reads_gb_per_s": reads,
        }  # fmt: skip
    if options.json:
        result = {"load": os.getloadavg()[0], "readings": readings}
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--text", type=Path, help="text to score; this repository's docs/*.md if omitted")
    parser.add_argument("--json", type=Path)
    asyncio.run(main(parser.parse_args()))

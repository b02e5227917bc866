"""Greedy tokens with KV from each tier against those without, on the embedded engine and on vLLM.

    python benchmarks/kv_equality.py [--engines openvino vllm] [--precision float32|bfloat16] [--prompts 20]
        [--tokens 1500] [--layers 30] [--ways own memory disk server shared] [--first N] [--json FILE] [--report]

The model is SmolLM2-135M; with ``--layers 4``, only its first four layers, which take an eighth of the time.
Each way is a run of one or two engines, each in a process of its own:

- ``own``: the engine's own KV (HBM on a card). Every prompt is computed, then asked again. The computed answer is the
  reference of all ways.
- ``memory``: the store ``tiered``, memory over a disk. The engine computes all prompts, then gets them from memory.
- ``disk``: an engine of the next process gets them from that disk. Runs with ``memory``.
- ``server``: a Valkey or Redis server that this script starts; the reader is another process, after the writer's end.
  Needs the extra ``sage-infer-kvstore[valkey]``.
- ``shared``: shared memory that the writer has left; the reader is another process.

A hit counts only where the engine reports the prompt's whole pages as cached, and, except for ``own``, where it fetched
them from the store. Where tokens differ, the difference of the two best log probabilities at that place is reported: a
tie that rounding decides has a small one. With ``--json``, results are added to those in the file, so that ways, and
parts of the prompts (``--first``), can run one by one; ``--report`` only prints them. Exits with 1 where float32 tokens
differ or a prompt was not read.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sage_infer import SamplingParams, open_backend
from sage_infer.discovery import model_specs
from sage_infer.models import add_model
from sage_infer.schemas import Prompt

DOCS = Path(__file__).parents[1] / "docs"
PAGE = 32
LAYERS, TOKEN_FLOATS = 30, 2 * 3 * 64  # of SmolLM2-135M, and keys and values of a token in a layer
BYTES = {"float32": 4, "bfloat16": 2}
WAYS = ("own", "memory", "disk", "server", "shared")
OUTPUT = 16
CACHED = 4.2  # prompts that an engine keeps itself, where there is a store
PARAMS = SamplingParams(temperature=0.0, max_tokens=OUTPUT, ignore_eos=True, logprobs=2)

Row = dict[str, Any]


def options_of(given: Mapping[str, Any]) -> Row:
    """Options of a backend.

    Below a store, the engine's own cache is small: a request may fetch a quarter of it, which a prompt needs.
    """
    engine, precision, store = given["engine"], given["precision"], given["store"]
    tokens = given["tokens"] + 2 * PAGE
    size = TOKEN_FLOATS * given["layers"] * BYTES[precision] * tokens / 2**30
    size *= given["prompts"] + 1 if store is None else CACHED
    common: Row = {"kv_cache_gb": size, "max_batch_size": 1, "max_sequence_length": tokens}
    if store is not None:
        common |= {"kv_store": store, "kv_store_wait_s": 600.0}
    if engine == "vllm":
        shape: Row = {"kv_schema": {"page_size": PAGE}} if store is None else {"prefix_caching": False}
        step = {"max_num_batched_tokens": 512}  # the engine tries its largest step when it starts
        return {**common, **shape, "dtype": precision, "eager": True, "engine_options": step}
    return {**common, "weight_format": "f32", "precision": {"float32": "f32", "bfloat16": "bf16"}[precision]}


@contextmanager
def model_of(layers: int) -> Iterator[str]:
    """The model's name, or a folder with its first layers."""
    if layers == LAYERS:
        yield "smollm2-135m"
        return
    from safetensors.numpy import load_file, save_file
    from sage_infer_vllm.models.prepare import loadable_folder

    whole = loadable_folder(
        add_model(model_specs()["smollm2-135m"]), cache_dir=None, progress=lambda *_: None
    )
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for file in (*whole.glob("tokenizer*.json"), *whole.glob("chat_template.*")):
            shutil.copy(file, folder)
        config = json.loads((whole / "config.json").read_text("utf-8"))
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}), "utf-8")
        tensors = {}
        for weights in whole.glob("*.safetensors"):
            for name, tensor in load_file(weights).items():
                found = re.search(r"layers\.(\d+)\.", name)
                if found is None or int(found[1]) < layers:
                    tensors[name] = tensor
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        yield made


async def prompts_of(backend: Any, first: int, count: int, tokens: int) -> list[list[int]]:
    """Pieces of this repository's documentation."""
    found: list[int] = []
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text("utf-8")
        for at in range(0, len(text), 2000):
            if len(found) >= (first + count) * tokens:
                break
            found += await backend.tokenize(text[at : at + 2000])
    assert len(found) >= (first + count) * tokens, f"the documentation has {len(found)} tokens only"
    return [found[tokens * number : tokens * (number + 1)] for number in range(first, first + count)]


async def answer(backend: Any, prompt: Sequence[int]) -> Row:
    (stream,) = await backend.generate(Prompt(token_ids=tuple(prompt)), PARAMS)
    found: list[int] = []
    gaps: list[float] = []
    async for delta in stream:
        found += delta.token_ids
        for entry in delta.logprobs or ():
            best, second = sorted((p for _, _, p in entry.alternatives), reverse=True)[:2]
            gaps.append(best - second)
    return {
        "output": found, "gaps": gaps, "cached": stream.usage.cached_tokens,
        "ttft_s": stream.timing.ttft_s,
    }  # fmt: skip


async def settled(backend: Any, pages: int) -> None:
    """Wait until so many pages are in the store, or were dropped: those prompts are no hits later."""
    while True:
        found = backend.stats().extensions
        if found["kv_store_saved"] + found["kv_store_dropped"] >= pages or found["kv_store_failures"]:
            return
        await asyncio.sleep(0.02)


async def one(given: Mapping[str, Any]) -> list[list[Row]]:
    """In a process of its own: each prompt's answers of one engine, by pass."""
    count, tokens = given["prompts"], given["tokens"]
    name: str = given["engine"]
    async with open_backend(name, model=str(given["model"]), serves="llm", **options_of(given)) as backend:
        page = backend.get_kv_schema().page_size
        prompts = await prompts_of(backend, given["first"], count, tokens)
        passes: list[list[Row]] = []
        for number in range(given["passes"]):
            found: list[Row] = []
            for prompt in prompts:
                before = fetched(backend)
                row = await answer(backend, prompt)
                # The last token is always computed; a hit has every other whole page.
                whole = (tokens - 1) // page * page
                row |= {"is_hit": row["cached"] >= whole, "fetched": fetched(backend) - before}
                row["digest"] = hashlib.sha256(json.dumps(prompt).encode()).hexdigest()[:16]
                found.append(row)
                if number == 0 and given["writes"]:
                    await settled(backend, len(found) * (tokens // page))
            passes.append(found)
            if given["store"] is not None:
                counts = backend.stats().extensions
                assert not counts["kv_store_corrupt"] + counts["kv_store_failures"], counts
        return passes


def fetched(backend: Any) -> float:
    return float(backend.stats().extensions.get("kv_store_fetched", 0))


def run(given: Mapping[str, Any]) -> list[list[Row]]:
    """The answers of an engine in another process."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", json.dumps(given)], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"{given['engine']} ended with {done.returncode}")
    found: list[list[Row]] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def server(folder: str) -> Iterator[str]:
    """The address of a Valkey or Redis server."""
    binary = shutil.which("valkey-server") or shutil.which("redis-server")
    if binary is None:
        raise SystemExit("no valkey-server or redis-server on this machine (apt-get install valkey-server)")
    path = f"{folder}/s"
    command = [binary, "--port", "0", "--unixsocket", path, "--save", "", "--dir", folder]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            while not Path(path).exists():
                if process.poll() is not None:
                    raise SystemExit(f"{binary} has ended with {process.returncode}")
                time.sleep(0.01)
            yield f"unix://{path}?db=0"
        finally:
            process.kill()


def rows_of(way: str, passes: Sequence[Sequence[Row]], given: Mapping[str, Any]) -> list[Row]:
    return [
        {
            "engine": given["engine"], "precision": given["precision"], "layers": given["layers"],
            "tokens": given["tokens"], "way": way, "prompt": given["first"] + number, "load": os.getloadavg()[0], **row,
        }
        for found in passes
        for number, row in enumerate(found)
    ]  # fmt: skip


def measure(given: Mapping[str, Any], way: str) -> list[Row]:
    """Run a way; rows whose way begins with ``computed`` are answers without a hit."""
    blocks = 64 + given["prompts"] * (given["tokens"] // 16 + 2)  # enough for pages of 16 or 32
    with tempfile.TemporaryDirectory() as folder:
        if way == "own":
            computed, hits = run({**given, "store": None, "writes": False, "passes": 2})
            return [*rows_of("computed", [computed], given), *rows_of(way, [hits], given)]
        if way == "memory":
            disk = {"store": "ssd", "path": folder, "capacity_blocks": blocks}
            store = {
                "store": "tiered", "upper": {"capacity_blocks": blocks}, "lower": disk, "wait_s": 600.0,
            }  # fmt: skip
            computed, hits = run({**given, "store": store, "writes": True, "passes": 2})
            (again,) = run({**given, "store": disk, "writes": False, "passes": 1})
            return [
                *rows_of("computed, tiered", [computed], given), *rows_of("memory", [hits], given),
                *rows_of("disk", [again], given),
            ]  # fmt: skip
        if way == "server":
            with server(folder) as url:
                store = {"store": "valkey", "url": url, "capacity_blocks": blocks, "timeout_s": 60.0}
                return written_and_read(given, way, store)
        name = f"equality-{uuid.uuid4().hex}"
        try:
            return written_and_read(
                given, way, {"store": "paged", "name": name, "capacity_blocks": blocks, "keep": True}
            )
        finally:
            for file in Path("/dev/shm").glob(f"sage-kv-{name}-*"):
                with suppress(FileNotFoundError):
                    file.unlink()


def written_and_read(given: Mapping[str, Any], way: str, store: Mapping[str, Any]) -> list[Row]:
    (computed,) = run({**given, "store": store, "writes": True, "passes": 1})
    (hits,) = run({**given, "store": store, "writes": False, "passes": 1})
    return [*rows_of(f"computed, {way}", [computed], given), *rows_of(way, [hits], given)]


def setting(row: Row) -> tuple[Any, ...]:
    return row["engine"], row["precision"], row["layers"], row["tokens"]


def merged(rows: list[Row], new: list[Row]) -> list[Row]:
    """Rows with new ones in the place of those of the same run."""
    known = {(*setting(row), row["way"], row["prompt"]) for row in new}
    return [row for row in rows if (*setting(row), row["way"], row["prompt"]) not in known] + new


def report(rows: Sequence[Row]) -> bool:
    """Print a row for each engine and way; returns whether all is as it must be."""
    print(
        "| engine | precision | layers | tokens | KV from | prompts | hits | equal | first difference: place (gap) |"
    )
    print("|---|---|---:|---:|---|---:|---:|---:|---|")
    is_right = True
    for kind in dict.fromkeys(map(setting, rows)):
        ours = [row for row in rows if setting(row) == kind]
        plain = {row["digest"]: row for row in ours if row["way"] == "computed"}
        for way in dict.fromkeys(row["way"] for row in ours if row["way"] != "computed"):
            asked = [row for row in ours if row["way"] == way and row["digest"] in plain]
            is_computed = way.startswith("computed")
            needs_fetch = way != "own" and not is_computed
            hits = [
                row["cached"] > 0 if is_computed else row["is_hit"] and (row["fetched"] > 0) == needs_fetch
                for row in asked
            ]
            others = []
            for row in asked:
                reference = plain[row["digest"]]
                pairs = zip(reference["output"], row["output"], strict=True)
                at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
                if at is not None:
                    others.append(f"prompt {row['prompt']}: {at} ({reference['gaps'][at]:.3f})")
            cells = *kind, way, len(asked), sum(hits), len(asked) - len(others), ", ".join(others)
            print(f"| {' | '.join(map(str, cells))} |")
            is_right &= not any(hits) if is_computed else all(hits)
            is_right &= kind[1] != "float32" or not others
    return is_right


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", nargs="+", choices=("openvino", "vllm"), default=["openvino", "vllm"])
    parser.add_argument("--precision", choices=tuple(BYTES), default="float32")
    parser.add_argument(
        "--prompts", type=int, default=20, help="more than an engine keeps itself, so at least 6"
    )
    parser.add_argument("--first", type=int, default=0, help="number of the first prompt")
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--layers", type=int, default=LAYERS, choices=range(1, LAYERS + 1), metavar="1..30")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="disk comes with memory")
    parser.add_argument("--json", type=Path, help="add the answers to this file")
    parser.add_argument("--report", action="store_true", help="only print what the file has")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print("\n" + json.dumps(asyncio.run(one(json.loads(args.one)))))
        return 0
    rows: list[Row] = []
    if args.json is not None and args.json.exists():
        rows = json.loads(args.json.read_text("utf-8"))["rows"]
    with model_of(args.layers) as model:
        for engine in [] if args.report else args.engines:
            given = {
                "engine": engine, "precision": args.precision, "layers": args.layers, "model": model,
                "prompts": args.prompts, "first": args.first, "tokens": args.tokens,
            }  # fmt: skip
            for way in dict.fromkeys("memory" if way == "disk" else way for way in args.ways):
                began = time.monotonic()
                rows = merged(rows, measure(given, way))
                took = time.monotonic() - began
                print(f"{engine}, {args.precision}, {way}: {took:.0f} s", file=sys.stderr, flush=True)
                if args.json is not None:
                    text = json.dumps({"machine": {"cores": os.cpu_count()}, "rows": rows})
                    args.json.write_text(text + "\n", "utf-8")
    return 0 if report(rows) else 1


if __name__ == "__main__":
    sys.exit(main())

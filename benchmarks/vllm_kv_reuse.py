"""Time to the first token on vLLM when a prompt's KV lies in a KV store, against computing it; and beside other stores.

    python benchmarks/vllm_kv_reuse.py [--model NAME] [--tokens 1536] [--prompts 4] [--rounds 2] [--json FILE]
        [--ways dram ssd handover example offloading simple lmcache nixl decode]

Each way is an engine in a process of its own, one after the other, in alternating order each round; vLLM's own prefix
cache is off, so that a hit comes from the store. In an engine, every prompt is computed once (cold) and asked again
(hit), and ratios are taken within such a pair. ``ssd`` is asked by a second engine, after a restart, and its cold
prompts are new ones. ``example``, ``offloading``, ``simple`` and ``lmcache`` are connectors of vLLM: ExampleConnector
(files), OffloadingConnector with the spec in ``vllm_offloading_spec.py``, SimpleCPUOffloadConnector and LMCache (main
memory). ``handover`` and ``nixl`` have two engines: one has computed the prompt, and the other's time is taken from the
moment when it is asked, with the transfer in it: ``export_kv``, ``import_kv`` and ``decode``, or vLLM's NixlConnector.
A way that does not run is reported with its reason.
``decode`` compares the time per output token with pages of 32 tokens and with vLLM's default, of two engines in one
process that are asked alternately.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sage_infer import SamplingParams
from sage_infer.backends import create_backend

PAGE = 32
STORED = {"kv_store_wait_s": 60.0}


def connector(name: str, **extra: Any) -> dict[str, Any]:
    return {
        "kv_transfer_config": {
            "kv_connector": name, "kv_role": "kv_both", "kv_connector_extra_config": extra,
        }
    }  # fmt: skip


def options_of(way: str, folder: Path, pages: int) -> dict[str, Any]:
    """Options of the backend for a way."""
    page = {"kv_schema": {"page_size": PAGE}}
    if way == "dram":
        return {**STORED, "kv_store": {"store": "paged", "capacity_blocks": pages}}
    if way in ("ssd-write", "ssd"):
        return {**STORED, "kv_store": {"store": "ssd", "path": str(folder), "capacity_blocks": pages}}
    if way == "example":
        return {**page, "engine_options": connector("ExampleConnector", shared_storage_path=str(folder))}
    if way == "simple":
        return {**page, "engine_options": connector("SimpleCPUOffloadConnector", cpu_bytes_to_use=2 * 2**30)}
    if way == "offloading":
        spec = {"spec_name": "HostSpec", "spec_module_path": "vllm_offloading_spec"}
        options = connector("OffloadingConnector", cpu_bytes_to_use=2 * 2**30, **spec)
        return {**page, "engine_options": options}
    if way == "lmcache":
        return {**page, "engine_options": connector("LMCacheConnectorV1")}
    if way == "nixl":
        options = connector("NixlConnector")
        options["kv_transfer_config"]["kv_buffer_device"] = "cpu"
        return {**page, "engine_options": options}
    return {} if way == "decode-default" else page


def engine(given: Mapping[str, Any], way: str) -> Any:
    count, tokens = given["prompts"], given["tokens"]
    pages = 4 * count * (-(-tokens // PAGE) + 4)
    return create_backend(
        "vllm", model=given["model"], serves="llm", prefix_caching=False, eager=True, kv_cache_gb=given["kv_gb"],
        max_sequence_length=tokens + 256, **options_of(way, Path(given["folder"]), pages),
    )  # fmt: skip


def prompts_of(seed: int, count: int, tokens: int) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(100, 20_000) for _ in range(tokens)] for _ in range(count)]


async def ask(backend: Any, prompt: list[int], tokens: int) -> dict[str, Any]:
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    (stream,) = await backend.generate(prompt, params)
    found = [token async for delta in stream for token in delta.token_ids]
    return {
        "ttft_s": stream.timing.ttft_s, "inter_token_s": stream.timing.inter_token_s,
        "cached": stream.usage.cached_tokens, "tokens": found,
    }  # fmt: skip


async def one_way(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """In a process of its own: the answers of one engine."""
    way, count, tokens, seed = given["way"], given["prompts"], given["tokens"], given["seed"]
    if way == "decode":
        return await decoded(given)
    if way in ("handover", "nixl"):
        return await handed_over(given)
    backend = engine(given, way)
    await backend.start()
    try:
        await ask(backend, prompts_of(seed + 10**6, 1, tokens)[0], 2)  # exclude one-time costs
        prompts = prompts_of(seed, count, tokens)
        if way == "ssd-write":
            found = [await ask(backend, prompt, 2) for prompt in prompts]
            await saved(backend, count * (tokens // PAGE))
            return [{"way": way, "cold": cold} for cold in found]
        pairs = []
        for number, prompt in enumerate(prompts):
            new = prompts_of(seed + 1000 + number, 1, tokens)[0] if way == "ssd" else prompt
            cold = await ask(backend, new, 2)
            if way == "dram":
                await saved(backend, (number + 2) * (tokens // PAGE))
            hit = await ask(backend, prompt, 2)
            pairs.append({"way": way, "cold": cold, "hit": hit})
        return pairs
    finally:
        await backend.close()


async def decoded(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Pairs of answers of two engines."""
    ways = ("decode-32", "decode-default")
    backends = {way: engine(given, way) for way in ways}
    try:
        prompts = prompts_of(given["seed"], 1 + 3 * given["prompts"], 512)
        for way in ways:
            await backends[way].start()
            await ask(backends[way], prompts[0], 8)
        rows = []
        for number, prompt in enumerate(prompts[1:]):
            for way in ways[:: -1 if number % 2 else 1]:
                rows.append({"way": way, "pair": number, **await ask(backends[way], prompt, 64)})
        return rows
    finally:
        for backend in backends.values():
            await backend.close()


async def handed_over(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Prompts that one engine computes and another one continues."""
    way, count, tokens, seed = given["way"], given["prompts"], given["tokens"], given["seed"]
    move = through_nixl if way == "nixl" else through_export
    os.environ["VLLM_NIXL_SIDE_CHANNEL_PORT"] = str(free_port())
    source = engine(given, way)
    await source.start()
    os.environ["VLLM_NIXL_SIDE_CHANNEL_PORT"] = str(free_port())
    target = engine(given, way)
    try:
        await target.start()
        for backend in (source, target):
            await ask(backend, prompts_of(seed + 10**6, 1, tokens)[0], 2)
        await move(source, target, prompts_of(seed + 2 * 10**6, 1, tokens)[0], "first")
        pairs = []
        for number, prompt in enumerate(prompts_of(seed, count, tokens)):
            cold = await ask(target, prompt, 2)
            pairs.append({"way": way, "cold": cold, "hit": await move(source, target, prompt, f"r{number}")})
        return pairs
    finally:
        await target.close()
        await source.close()


async def through_export(source: Any, target: Any, prompt: list[int], name: str) -> dict[str, Any]:
    params = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
    (state,) = (await source.prefill(prompt, request_id=name, params=params)).states
    began = time.perf_counter()
    state, buffers = await source.export_kv(state)
    state = await target.import_kv(state, buffers)
    found: list[int] = []
    first = 0.0
    async for delta in (await target.decode(state, request_id=name)).stream:
        first = first or time.perf_counter() - began
        found += delta.token_ids
    await source.abort(name)
    return {"ttft_s": first, "inter_token_s": None, "cached": len(prompt) - 1, "tokens": found}


async def through_nixl(source: Any, target: Any, prompt: list[int], name: str) -> dict[str, Any]:
    """vLLM's own requests: the adapter has no parameters for other connectors."""
    remote = {"remote_engine_id": None, "remote_block_ids": None, "remote_host": None, "remote_port": None}
    wanted = {"do_remote_decode": True, "do_remote_prefill": False, **remote}
    *_, last = [output async for output in raw(source, prompt, 1, name, wanted)]
    began = time.perf_counter()
    found: list[int] = []
    first, cached = 0.0, 0
    async for output in raw(target, prompt, 2, f"{name}-d", last.kv_transfer_params):
        first = first or time.perf_counter() - began
        cached = output.num_cached_tokens or cached
        found += output.outputs[0].token_ids
    return {"ttft_s": first, "inter_token_s": None, "cached": cached, "tokens": found}


def raw(backend: Any, prompt: list[int], tokens: int, name: str, transfer: Any) -> AsyncIterator[Any]:
    compat, llm = backend._running.compat, backend._running.engine.llm
    params = compat.SamplingParams(
        temperature=0.0, max_tokens=tokens, ignore_eos=True, output_kind=compat.RequestOutputKind.DELTA,
        extra_args={"kv_transfer_params": transfer},
    )  # fmt: skip
    outputs: AsyncIterator[Any] = llm.generate(compat.tokens_input(prompt), params, name)
    return outputs


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def saved(backend: Any, pages: int) -> None:
    while True:
        found = backend.stats().extensions
        if found["kv_store_saved"] + found["kv_store_dropped"] >= pages:
            return
        await asyncio.sleep(0.01)


def run(way: str, args: argparse.Namespace, folder: Path, seed: int) -> list[dict[str, Any]]:
    """The answers of an engine in another process."""
    given = {
        "way": way, "prompts": args.prompts, "tokens": args.tokens, "seed": seed, "model": args.model,
        "folder": str(folder), "kv_gb": args.kv_gb,
    }  # fmt: skip
    here = str(Path(__file__).parent)  # vLLM's processes import the spec
    path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, __file__, "--one", json.dumps(given)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = [line for line in lines if "Error" in line][-1:] or lines[-1:]  # warnings may follow it
        print(f"{way}: does not run: {' '.join(reason)[:600]}", flush=True)
        return []
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    for row in found:
        if "hit" in row:
            cold, hit = row["cold"], row["hit"]
            print(f"{way}: cold {cold['ttft_s']:.2f} s, hit {hit['ttft_s']:.3f} s with {hit['cached']} cached, "
                  f"{hit['ttft_s'] / cold['ttft_s']:.3f}", flush=True)  # fmt: skip
    return found


def spread(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def report(rows: Sequence[Mapping[str, Any]], tokens: int) -> None:
    print(f"\n{tokens} tokens, pages of {PAGE}: median (min to max)")
    print("| way | pairs | cold, s | hit, s | ratio | cached tokens | same tokens |")
    print("|---|---:|---|---|---|---:|---:|")
    for way in dict.fromkeys(row["way"] for row in rows if "hit" in row):
        pairs = [row for row in rows if row["way"] == way]
        same = [row["cold" if way != "ssd" else "written"]["tokens"] == row["hit"]["tokens"] for row in pairs]
        cells = (
            way, f"{len(pairs)}", spread([r["cold"]["ttft_s"] for r in pairs], ".2f"),
            spread([r["hit"]["ttft_s"] for r in pairs], ".3f"),
            spread([r["hit"]["ttft_s"] / r["cold"]["ttft_s"] for r in pairs], ".3f"),
            f"{min(r['hit']['cached'] for r in pairs)}", f"{sum(same)} of {len(same)}",
        )  # fmt: skip
        print(f"| {' | '.join(cells)} |")
    small, default = (
        [row["inter_token_s"] for row in rows if row["way"] == way] for way in ("decode-32", "decode-default")
    )
    if small:
        pairs = sorted((row for row in rows if row["way"] == "decode-32"), key=lambda row: row["pair"])
        others = sorted((row for row in rows if row["way"] == "decode-default"), key=lambda row: row["pair"])
        ratios = [a["inter_token_s"] / b["inter_token_s"] for a, b in zip(pairs, others, strict=True)]
        print(f"\ntime per output token: pages of {PAGE} {spread([1e3 * s for s in small], '.2f')} ms, "
              f"default {spread([1e3 * s for s in default], '.2f')} ms, "
              f"ratio {spread(ratios, '.3f')} of {len(ratios)} pairs")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=1536)
    parser.add_argument("--prompts", type=int, default=4, help="per engine")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--kv-gb", type=float, default=0.5)
    parser.add_argument(
        "--ways",
        nargs="+",
        default=["dram", "ssd", "handover", "example", "offloading", "simple", "lmcache", "nixl", "decode"],
    )
    parser.add_argument("--json", type=Path, help="write all answers to this file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print("\n" + json.dumps(asyncio.run(one_way(json.loads(args.one)))))
        return
    rows: list[dict[str, Any]] = []
    for number in range(args.rounds):
        for way in args.ways[:: -1 if number % 2 else 1]:
            seed = 100_000 * number
            with tempfile.TemporaryDirectory() as folder:
                written = run("ssd-write", args, Path(folder), seed) if way == "ssd" else []
                found = run(way, args, Path(folder), seed)
            for row in found:
                row["load"] = os.getloadavg()[0]
                if "pair" in row:
                    row["pair"] += number * 3 * args.prompts
            if way == "ssd":  # a hit is compared with what the first engine computed
                for row, first in zip(found, written, strict=False):
                    row["written"] = first["cold"]
            rows += found
    report(rows, args.tokens)
    if args.json:
        machine = {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()}
        args.json.write_text(
            json.dumps({"machine": machine, "tokens": args.tokens, "page": PAGE, "rows": rows}, indent=1)
            + "\n"
        )


if __name__ == "__main__":
    main()

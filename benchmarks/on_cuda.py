"""What only a machine with a CUDA device can show, in one run of a few minutes.

    python benchmarks/on_cuda.py [--step NAME …] [--json FILE] [--cpu]

Steps:

- ``hardware`` compares the detector with ``nvidia-smi``;
- ``copies`` runs the tests of KV pages in device memory;
- ``contract`` compares the adapter with raw ``AsyncLLM``;
- ``store`` compares the time to the first token with KV from host memory and without;
- ``export`` takes KV out while other requests decode;
- ``handover`` decodes on a second engine what the first one prefilled;
- ``sleep`` frees the device and wakes;
- ``hybrid`` compares the memory of an LLM and an encoder with their plan.

Needs vLLM, transformers, sage-infer-vllm, -hybrid, -cuda-hal, -host-hal and -kvstore, and no network: models are made
here, with random weights. A step that fails says why, and the others run. ``--cpu`` runs small models on a CPU build
of vLLM, so that nothing but the device is new on a machine that has one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from attrs import frozen
from on_cuda_models import embedding_model, llm_model
from sage_infer import SamplingParams, open_backend
from sage_infer.contracts import KVTransfer
from vllm_overhead import Pair, run, through_adapter, through_vllm

GIB = 2**30
TEXT_VOCABULARY = 30_000
COPIES = str(
    Path(__file__).resolve().parents[1]
    / "packages/sage-infer-vllm/tests/disaggregation/test_vllm_device_cache.py"
)


@frozen
class Setting:
    """Models and sizes of one run."""

    llm: str
    encoder: str
    kv_gb: float
    prompts: Sequence[int]
    rounds: int
    on_card: bool

    def options(self, **more: Any) -> dict[str, Any]:
        own = (
            {"dtype": "bfloat16", "cuda_kv": True}
            if self.on_card
            else {"dtype": "float32", "max_batch_size": 16}
        )
        return {"kv_cache_gb": self.kv_gb, "eager": True, "max_sequence_length": 8448, **own, **more}


class Prompts:
    """Prompts that no earlier request has seen."""

    def __init__(self) -> None:
        import random

        self._draw = random.Random(7)

    def __call__(self, tokens: int) -> list[int]:
        return [self._draw.randrange(100, TEXT_VOCABULARY) for _ in range(tokens)]


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


async def tokens_of(stream: Any) -> tuple[float, list[int]]:
    """The time of the first token, and all tokens."""
    first, found = 0.0, []
    async for delta in stream:
        first = first or time.perf_counter()
        found += delta.token_ids
    return first, found


def greedy(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)


async def timed(backend: Any, prompt: list[int], tokens: int) -> tuple[float, list[int]]:
    """Seconds to the first token, and the tokens."""
    began = time.perf_counter()
    (stream,) = await backend.generate(prompt, greedy(tokens))
    first, found = await tokens_of(stream)
    return first - began, found


def agreement(pairs: Sequence[tuple[list[int], list[int]]]) -> dict[str, Any]:
    """How many token sequences are equal, and the share of equal tokens up to the first difference."""
    common = [next((i for i, (a, b) in enumerate(zip(*p, strict=True)) if a != b), len(p[0])) for p in pairs]
    whole = sum(len(p[0]) for p in pairs)
    return {
        "equal": sum(a == b for a, b in pairs),
        "of": len(pairs),
        "share_before_a_tie": sum(common) / whole,
    }


# --- steps


async def hardware(setting: Setting) -> dict[str, Any]:
    fields = "name,uuid,memory.total,compute_cap,driver_version,pci.bus_id"
    told = await output_of("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    profile = json.loads(await output_of(sys.executable, "-m", "sage_infer", "hal", "profile", "--json"))
    return {"nvidia_smi": told.strip().splitlines(), "accelerators": profile["accelerators"]}


async def copies(setting: Setting) -> dict[str, Any]:
    told = await output_of(
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest", COPIES
    )
    return {"pytest": told.strip().splitlines()[-1]}


async def output_of(*command: str) -> str:
    """Standard output of a command; its errors where it fails."""
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    told = (await process.communicate())[0].decode()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: {told[-3000:]}")
    return told


async def contract(setting: Setting) -> dict[str, Any]:
    graphs = {"compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}}
    more = {"eager": False, "engine_options": graphs} if setting.on_card else {}
    options = setting.options(prefix_caching=False, **more)
    async with open_backend("vllm", model=setting.llm, serves="llm", **options) as backend:
        ways, prompts, found = (
            {"adapter": through_adapter(backend), "raw": through_vllm(backend)},
            Prompts(),
            {},
        )
        counts, tokens = ((1, 8, 32, 128), 128) if setting.on_card else ((1, 8), 16)
        for way in ways.values():
            await run(way, [prompts(32) for _ in range(max(counts))], 8)
        for count in counts:
            pairs = []
            for number in range(setting.rounds):
                order = sorted(ways, reverse=bool(number % 2))
                runs = {
                    name: await run(ways[name], [prompts(32) for _ in range(count)], tokens) for name in order
                }
                pairs.append(Pair(count, runs["adapter"], runs["raw"]))
            found[str(count)] = {
                "throughput_ratio": spread([pair.throughput for pair in pairs]),
                "ttft_ratio": spread([pair.ttft for pair in pairs]),
                "added_us_per_token": spread([pair.added_us for pair in pairs]),
                "tokens_per_s": spread([pair.adapter.tokens / pair.adapter.seconds for pair in pairs]),
            }
        return found


async def store(setting: Setting) -> dict[str, Any]:
    kept = {"store": "paged", "capacity_gb": 24 if setting.on_card else 0.5}
    options = setting.options(prefix_caching=False, kv_store=kept)
    async with open_backend("vllm", model=setting.llm, serves="llm", **options) as backend:
        found: dict[str, dict[str, Any]] = {}
        prompts = Prompts()
        await timed(backend, prompts(max(setting.prompts)), 2)
        for length in setting.prompts:
            ratios, colds, pairs = [], [], []
            for _ in range(setting.rounds):
                prompt = prompts(length)
                cold, expected = await timed(backend, prompt, 16)
                await saved(backend)
                hit, tokens = await timed(backend, prompt, 16)
                ratios.append(hit / cold)
                colds.append(cold)
                pairs.append((expected, tokens))
            found[str(length)] = {
                "ttft_hit_to_cold": spread(ratios), "cold_s": spread(colds), "tokens": agreement(pairs)
            }  # fmt: skip
        found["stats"] = {k: v for k, v in backend.stats().extensions.items() if k.startswith("kv_store")}
        return found


async def saved(backend: Any) -> None:
    """Wait until the store has taken all that was computed."""
    before = None
    while (now := dict(backend.stats().extensions)) != before:
        before = now
        await asyncio.sleep(0.3)


async def export(setting: Setting) -> dict[str, Any]:
    length, tokens = max(setting.prompts), 400 if setting.on_card else 24
    streams = 16 if setting.on_card else 2
    async with open_backend("vllm", model=setting.llm, serves="llm", **setting.options()) as backend:
        rates: dict[str, list[float]] = {"alone": [], "beside": []}
        prompts, seconds, moved = Prompts(), [], 0
        splitting, transfer = backend, cast(KVTransfer, backend)
        for number in range(2 * setting.rounds):
            way = ("alone", "beside")[number % 2]
            held = None
            if way == "beside":
                held = await splitting.prefill(prompts(length), request_id=f"held-{number}", params=greedy(8))
            began = time.perf_counter()
            decoding = [asyncio.create_task(timed(backend, prompts(64), tokens)) for _ in range(streams)]
            if held is not None:
                while not all(task.done() for task in decoding):
                    start = time.perf_counter()
                    _, buffers = await transfer.export_kv(held.states[0])
                    seconds.append(time.perf_counter() - start)
                    moved = sum(buffer.nbytes for buffer in buffers)
                    await asyncio.sleep(0.05)
            await asyncio.gather(*decoding)
            rates[way].append(streams * tokens / (time.perf_counter() - began))
            if held is not None:
                await backend.abort(f"held-{number}")
        ratios = [b / a for a, b in zip(rates["alone"], rates["beside"], strict=True)]
        return {
            "bytes": moved, "exports": len(seconds), "seconds": spread(seconds),
            "gib_per_s": moved / GIB / statistics.median(seconds),
            "decode_rate_beside_exports": spread(ratios), "decode_tokens_per_s": spread(rates["alone"]),
        }  # fmt: skip


async def handover(setting: Setting) -> dict[str, Any]:
    options = setting.options(kv_cache_gb=setting.kv_gb / 2, prefix_caching=False)
    async with (
        open_backend("vllm", model=setting.llm, serves="llm", **options) as one,
        open_backend("vllm", model=setting.llm, serves="llm", **options) as other,
    ):
        prompts, pairs, seconds, moved = Prompts(), [], [], 0
        for number in range(setting.rounds * 2):
            prompt = prompts(min(setting.prompts))
            expected = (await timed(other, prompt, 32))[1]
            result = await one.prefill(prompt, request_id=f"p{number}", params=greedy(32))
            start = time.perf_counter()
            state, buffers = await cast(KVTransfer, one).export_kv(result.states[0])
            state = await cast(KVTransfer, other).import_kv(state, buffers)
            seconds.append(time.perf_counter() - start)
            moved = sum(buffer.nbytes for buffer in buffers)
            decoding = await other.decode(state, request_id=f"d{number}")
            pairs.append((expected, (await tokens_of(decoding.stream))[1]))
            await one.abort(f"p{number}")
        return {"bytes": moved, "seconds": spread(seconds), "tokens": agreement(pairs)}


async def sleep(setting: Setting) -> dict[str, Any]:
    if not setting.on_card:
        return {"left out": "vLLM sleeps on devices only"}
    options = setting.options(engine_options={"enable_sleep_mode": True})
    async with open_backend("vllm", model=setting.llm, serves="llm", **options) as backend:
        prompt, sleeping = Prompts()(256), cast(Any, backend)
        expected, before = (await timed(backend, prompt, 32))[1], used_bytes()
        times = []
        for level in (1, 1):
            start = time.perf_counter()
            await sleeping.sleep(level)
            asleep, middle = used_bytes(), time.perf_counter()
            await sleeping.wake()
            times.append((middle - start, time.perf_counter() - middle))
        tokens = (await timed(backend, prompt, 32))[1]
        return {
            "awake_gib": before / GIB, "asleep_gib": asleep / GIB, "sleep_s": times[1][0], "wake_s": times[1][1],
            "tokens": agreement([(expected, tokens)]),
        }  # fmt: skip


async def hybrid(setting: Setting) -> dict[str, Any]:
    before = used_bytes() if setting.on_card else 0
    options = {k: v for k, v in setting.options().items() if k != "kv_cache_gb"}
    llm = {
        "model_id": "llm",
        "model": setting.llm,
        "backend": "vllm",
        "options": options,
        "memory_fraction": 0.3,
    }
    encoder = {"model_id": "encoder", "model": setting.encoder, "backend": "vllm-embedding",
               "options": {"eager": True}, "memory_fraction": 0.1}  # fmt: skip
    async with open_backend(
        "hybrid", serves="hybrid", llm_config=llm, embedding_config=encoder, sharing_mode="mps"
    ) as both:
        (stream,) = await both.generate([5] * 64, greedy(16), model="llm")
        await tokens_of(stream)
        vectors = await both.embed(["w5 w6 w7", "w8"], model="encoder")
        plan = cast(Any, both).memory_plan()
        return {
            "planned": [repr(share) for share in plan.shares],
            "planned_gib": sum(share.total for share in plan.shares) / GIB,
            "measured_gib": (used_bytes() - before) / GIB if setting.on_card else None,
            "dimension": vectors.dim,
        }


def used_bytes() -> int:
    """Memory of the first device that is in use, by ``nvidia-smi``."""
    told = subprocess.run(
        ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return int(told.split()[0]) * 2**20


STEPS: Mapping[str, Callable[[Setting], Coroutine[Any, Any, dict[str, Any]]]] = {
    "hardware": hardware, "copies": copies, "contract": contract, "store": store, "export": export,
    "handover": handover, "sleep": sleep, "hybrid": hybrid,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--step", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--cpu", action="store_true", help="small models on a CPU build of vLLM")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write all results to this file")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if set(args.step) - {"hardware", "copies"}:
            size = "small" if args.cpu else "1.7b"
            llm, encoder = llm_model(Path(folder) / "llm", size), embedding_model(Path(folder) / "encoder")
        else:
            llm, encoder = "", ""
        setting = (
            Setting(llm, encoder, 0.5, (256, 512), min(args.rounds, 2), on_card=False)
            if args.cpu
            else Setting(llm, encoder, 16.0, (1536, 8192), args.rounds, on_card=True)
        )
        for name in args.step:
            began = time.perf_counter()
            try:
                results[name] = asyncio.run(STEPS[name](setting))
            except Exception:
                results[name] = {"failed": traceback.format_exc()}
            results[name]["step_s"] = round(time.perf_counter() - began, 1)
            print(
                f"== {name} ({results[name]['step_s']} s)\n{json.dumps(results[name], indent=1)}", flush=True
            )
            if args.json:
                args.json.write_text(json.dumps(results, indent=1))
    failed = [name for name, result in results.items() if "failed" in result]
    print(f"{len(results) - len(failed)} steps done" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

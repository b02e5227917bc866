"""Prompts computed on one replica and continued on another, against one instance: texts, times and bytes.

    python benchmarks/pd.py [--backend openvino|vllm] [--prompts 20] [--transport local|tcp|store] [--kv-preset fp8]
        [--layers 30] [--prefill-page 128 --decode-page 32] [--json FILE]

Starts a control plane with one prefill and one decode replica in processes of their own, float32. Every prompt is sent
through it, so that its KV travels, and to the decode replica alone, under another cache salt. With ``--transport
store`` both replicas have a KV store in shared memory, and the decode replica finds the full pages of the prompt there.
``--layers`` uses the model's first layers only. With ``--prefill-page`` and ``--decode-page``, the replicas have KV
pages of these sizes (vLLM), and the decode replica converts what it fetches. Exits with 1 unless all KV was handed
over, also through a store, and all tokens are equal. With ``--kv-preset``, KV is rounded, and tokens may differ: vLLM
computes a prompt with KV that is not rounded yet, and the decode replica computes its last token with KV that is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import attrs
from kv_equality import LAYERS, model_of
from sage_infer import SageInferError, SamplingParams, resolve_model
from sage_infer.contracts import TokenStream
from sage_infer.schemas import RequestOptions
from sage_llm import ControlPlaneManager, LocalExecutor, ServedModel
from sage_llm.manager.pd import HandOverSettings
from sage_llm.manager.settings import ControlPlaneSettings
from sage_llm.replicas.local import SERVER

OPTIONS: dict[str, dict[str, Any]] = {
    "openvino": {"kv_cache_gb": 0.25, "weight_format": "f32", "max_sequence_length": 1024},
    "vllm": {"kv_cache_gb": 0.5, "dtype": "float32", "eager": True, "max_sequence_length": 1024},
}
THREADS = max(1, (os.cpu_count() or 2) // 2)  # of each of the two replicas, as `sage llm serve` divides them
SUBJECTS = ("memory", "caches", "batches", "prompts", "numbers", "rivers", "bread", "clocks", "maps", "glass")
ASKS = (
    "In one sentence, why do {} matter?",
    "List three facts about {} and explain each of them in a few words.",
)


async def run(arguments: argparse.Namespace, path: str) -> dict[str, Any]:
    options = {"threads": THREADS, **OPTIONS[arguments.backend]}
    schema = {"preset": arguments.kv_preset, "page_size": arguments.decode_page}
    schema = {name: value for name, value in schema.items() if value is not None}
    prefill = {} if arguments.prefill_page is None else {**schema, "page_size": arguments.prefill_page}
    if schema:
        options["kv_schema"] = schema
    if arguments.transport == "store":
        options["kv_store"] = {"store": "paged", "name": f"pd-{os.getpid()}", "capacity_gb": 0.25}
    model = ServedModel(
        descriptor=resolve_model(path, model_type="llm"),
        backend=arguments.backend,
        options=options,
        replicas=1,
        prefill_replicas=1,
        prefill_options={"kv_schema": prefill} if prefill else {},
        server=SERVER,
    )
    settings = ControlPlaneSettings(
        policy="pd:min_tokens=0,delay_s=1000", hand_over=HandOverSettings(transport=arguments.transport)
    )
    plane = ControlPlaneManager([model], LocalExecutor(grace_s=0), settings)
    try:
        await plane.start()
        by_role = {r.spec.role: r.instance for r in plane.fleet.replicas.values()}
        decode = by_role["decode"]
        assert decode is not None
        schemas = {role: i.descriptor.capability.kv_schema for role, i in by_role.items() if i is not None}
        pages = {str(role): None if found is None else found.page_size for role, found in schemas.items()}
        rows = []
        for number in range(arguments.prompts):
            question = ASKS[number % len(ASKS)].format(SUBJECTS[number % len(SUBJECTS)])
            greedy = SamplingParams(max_tokens=arguments.tokens, temperature=0.0)
            params = greedy if number % 4 != 3 else attrs.evolve(greedy, temperature=0.8, seed=number)
            prompt = await plane.render_chat([{"role": "user", "content": question}])
            apart = await timed(await plane.generate([prompt], params, request_id=f"pd-{number}"))
            own = RequestOptions(cache_salt="alone")  # else it would find the KV that has just travelled
            alone = await timed(await decode.backend.generate([prompt], params, options=own))
            receipt = plane.dispatcher.placement.receipts[f"pd-{number}"]
            moved = receipt.transfer
            rows.append(
                {
                    "equal": apart[0] == alone[0],
                    "given_up": receipt.given_up,
                    "prompt_tokens": receipt.request.prompt_tokens,
                    "cached_tokens": receipt.cached,
                    "bytes": None if moved is None else moved.nbytes,
                    "transfer_s": None if moved is None else moved.seconds,
                    "prefill_s": None if moved is None else moved.prefill_s,
                    "ttft_apart_s": apart[1],
                    "ttft_alone_s": alone[1],
                }
            )
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        return summary(arguments, pages, rows)
    finally:
        await plane.close()


async def timed(streams: list[TokenStream]) -> tuple[list[int], float]:
    """Tokens of a stream, and the time to its first one as the engine's caller saw it."""
    (stream,) = streams
    tokens = [token async for delta in stream for token in delta.token_ids]
    assert stream.timing is not None
    return tokens, stream.timing.ttft_s


def summary(
    arguments: argparse.Namespace, pages: dict[str, int | None], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    moved = [row for row in rows if row["bytes"] is not None]
    return {
        "backend": arguments.backend,
        "transport": arguments.transport,
        "layers": arguments.layers,
        "kv_preset": arguments.kv_preset,
        "page_tokens": pages,
        "prompts": len(rows),
        "handed_over": len(moved),
        "from_cache": sum(bool(row["cached_tokens"]) for row in rows),
        "median_cached_tokens": statistics.median(row["cached_tokens"] or 0 for row in rows),
        "equal": sum(row["equal"] for row in rows),
        "median_mib": statistics.median(row["bytes"] for row in moved) / 2**20 if moved else None,
        "median_transfer_s": statistics.median(row["transfer_s"] for row in moved) if moved else None,
        "median_ttft_apart_s": statistics.median(row["ttft_apart_s"] for row in rows),
        "median_ttft_alone_s": statistics.median(row["ttft_alone_s"] for row in rows),
        "load_average": os.getloadavg()[0],
        "cpus": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backend", default="openvino", choices=sorted(OPTIONS))
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--transport", default="local", help="an installed transport, or store")
    parser.add_argument("--layers", type=int, default=LAYERS, help="number of the model's first layers")
    parser.add_argument("--kv-preset", metavar="PRESET", help="precision of KV, such as fp8 or int8")
    parser.add_argument(
        "--prefill-page", type=int, metavar="TOKENS", help="size of the prefill replica's pages"
    )
    parser.add_argument(
        "--decode-page", type=int, metavar="TOKENS", help="size of the decode replica's pages"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    try:
        with model_of(arguments.layers) as path:
            found = asyncio.run(run(arguments, path))
    except SageInferError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(found, indent=2))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    wanted = [found["equal"], found["handed_over"]]
    if arguments.transport == "store":
        wanted.append(found["from_cache"])
    return 0 if set(wanted) == {arguments.prompts} else 1


if __name__ == "__main__":
    sys.exit(main())

"""Compare our gateway over the vLLM adapter with `vllm serve`: throughput and TTFT by vLLM's own benchmark client.

    python benchmarks/vllm_serve.py [--rounds 4] [--concurrency 1 16 64] [--json results.json]

Requires an environment with sage-infer-vllm, sage-infer-hybrid, sage-infer-serve and vLLM. Both servers run
simultaneously with the same engine settings and are measured in alternating order, while the other one
is idle. Ratios are taken within a round. Every run has new prompts, and neither uses a prefix cache.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sage_infer_vllm.models.prepare import loadable_folder
from servers import free_port, running

MODEL = "smollm2-135m"
INPUT, OUTPUT = 64, 64
LENGTH, SEQUENCES, KV_GB = 2048, 64, 1
START_S = 300.0
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": str(KV_GB), "VLLM_LOGGING_LEVEL": "WARNING"}
Reading = dict[str, float]
# `vllm bench serve` without its command line, which requires a distribution named exactly vllm.
CLIENT = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


def model_folder() -> str:
    """The sample model as a folder that both servers can load."""
    sage = Path(sys.executable).with_name("sage")
    found = subprocess.run(
        [sage, "infer", "model", "path", MODEL], capture_output=True, text=True, check=True
    )
    return str(loadable_folder(found.stdout.strip(), cache_dir=None, progress=lambda stage, share: None))


def ours(port: int, folder: Path, model: str) -> list[str]:
    options = {
        "eager": True, "prefix_caching": False, "max_batch_size": SEQUENCES, "max_sequence_length": LENGTH,
        "kv_cache_gb": KV_GB, "dtype": "float32",
    }  # fmt: skip
    served = {"model": model, "backend": "vllm", "aliases": [MODEL], "options": options}
    config = folder / "sage_infer.yaml"
    config.write_text(json.dumps({"serve": {"models": [served], "port": port}}))
    return [str(Path(sys.executable).with_name("sage")), "--config", str(config), "infer", "serve"]


def vllms(port: int, model: str) -> list[str]:
    return [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", MODEL,
        "--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--no-enable-prefix-caching",
        "--max-num-seqs", str(SEQUENCES), "--max-model-len", str(LENGTH), "--dtype", "float32",
        "--disable-uvicorn-access-log",
    ]  # fmt: skip


def ask(port: int, concurrency: int, requests: int, tokenizer: str, seed: int, folder: Path) -> Reading:
    """One run of vLLM's client over streamed chats."""
    command = [
        sys.executable, "-c", CLIENT, "--backend", "openai-chat",
        "--base-url", f"http://127.0.0.1:{port}", "--endpoint", "/v1/chat/completions", "--model", MODEL,
        "--tokenizer", tokenizer, "--dataset-name", "random", "--random-input-len", str(INPUT),
        "--random-output-len", str(OUTPUT), "--ignore-eos", "--num-prompts", str(requests),
        "--max-concurrency", str(concurrency), "--seed", str(seed), "--temperature", "0", "--disable-tqdm",
        "--save-result", "--result-dir", str(folder), "--result-filename", "result.json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"vLLM's client failed: {(done.stdout + done.stderr)[-2000:]}")
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    if result["completed"] != requests:
        raise SystemExit(f"{result['completed']} of {requests} requests were answered")
    return {
        "output tokens/s": result["output_throughput"],
        "TTFT, ms": result["median_ttft_ms"],
        "inter-token, ms": result["median_itl_ms"],
    }


def measure(rounds: int, concurrency: Sequence[int], folder: Path) -> dict[str, list[dict[str, Reading]]]:
    readings: dict[str, list[dict[str, Reading]]] = defaultdict(list)
    model = model_folder()
    ports = {"sage infer serve": free_port(), "vllm serve": free_port()}
    commands = {
        "sage infer serve": ours(ports["sage infer serve"], folder, model),
        "vllm serve": vllms(ports["vllm serve"], model),
    }
    with contextlib.ExitStack() as stack:
        for number, (name, command) in enumerate(commands.items()):
            log = folder / f"{number}.log"
            stack.enter_context(
                running(
                    command, ports[name], log, start_s=START_S, path="/v1/models", environment=ENVIRONMENT
                )
            )
            ask(ports[name], max(concurrency), max(concurrency), model, 0, folder)  # warm up
        for number in range(rounds):
            for at_once in concurrency:
                order = list(ports) if number % 2 == 0 else list(reversed(ports))
                requests = max(4, 2 * at_once)
                pair = {
                    name: ask(ports[name], at_once, requests, model, 1 + number, folder) for name in order
                }
                readings[str(at_once)].append(pair)
                print(f"round {number + 1} of {rounds}, {at_once} at once: {pair}", file=sys.stderr)
    return readings


def table(readings: dict[str, list[dict[str, Reading]]]) -> str:
    lines = [
        "| at once | ours, tokens/s | vllm serve | ratio | ours, TTFT ms | vllm serve | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for at_once, pairs in readings.items():
        cells = []
        for figure in ("output tokens/s", "TTFT, ms"):
            one = [pair["sage infer serve"][figure] for pair in pairs]
            other = [pair["vllm serve"][figure] for pair in pairs]
            ratios = [a / b for a, b in zip(one, other, strict=True)]
            cells += [
                f"{statistics.median(one):.0f}", f"{statistics.median(other):.0f}",
                f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
            ]  # fmt: skip
        lines.append(f"| {at_once} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--rounds", type=int, default=4, help="an even number, so that each goes first equally often"
    )
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--json", type=Path, help="write all readings here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        readings = measure(options.rounds, options.concurrency, Path(folder))
    print(table(readings))
    if options.json:
        options.json.write_text(json.dumps(readings, indent=2) + "\n")


if __name__ == "__main__":
    main()

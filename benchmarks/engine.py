"""Compare the embedded engine with other CPU engines: tokens/s at 1, 8 and 32 requests, and TTFT of a long prompt.

    hatch run bench:engine [--rounds 5] [--json results.json] [--only NAME …] [--vllm-python PYTHON]

Every engine gets the same weights, SmolLM2-135M in Q8_0 (converted from the sample model, and read exactly by all),
the same token ids as prompts, greedy decoding and no prefix cache. A round runs every engine once, each in
its own process; ratios are taken per round, so that noise affects all equally.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sage_infer.compat import Runner

CONCURRENCY = (1, 8, 32)
PROMPT_TOKENS, OUTPUT_TOKENS, LONG_PROMPT = 38, 64, 1000
Prompts = list[list[int]]
Reading = dict[str, float]


def make_prompts(count: int, length: int, seed: int) -> Prompts:
    """Random token ids without shared prefixes, identical for every engine."""
    numbers = random.Random(seed)
    return [[numbers.randrange(1000, 40000) for _ in range(length)] for _ in range(count)]


def measure(run: Callable[[Prompts, int], int]) -> Reading:
    """``run(prompts, tokens)`` generates for all prompts simultaneously and returns the number of tokens."""
    # Warm up kernels, threads and memory: some engines touch their KV cache at startup, others on first use.
    run(make_prompts(max(CONCURRENCY), PROMPT_TOKENS, seed=0), OUTPUT_TOKENS)
    reading: Reading = {}
    for count in CONCURRENCY:
        prompts = make_prompts(count, PROMPT_TOKENS, seed=count)
        started = time.perf_counter()
        tokens = run(prompts, OUTPUT_TOKENS)
        reading[f"tok/s @{count}"] = tokens / (time.perf_counter() - started)
        if tokens != count * OUTPUT_TOKENS:
            raise SystemExit(f"{tokens} tokens generated, expected {count * OUTPUT_TOKENS}")
    times = []
    for attempt in range(3):
        started = time.perf_counter()
        run(make_prompts(1, LONG_PROMPT, seed=100 + attempt), 1)
        times.append(time.perf_counter() - started)
    reading["TTFT s"] = statistics.median(times)
    return reading


def through_contract(backend_name: str, gguf: str, **options: Any) -> Reading:
    from sage_infer import SamplingParams
    from sage_infer.backends import create_backend
    from sage_infer.contracts import TokenStream
    from sage_infer.schemas import ModelDescriptor

    async def count(stream: TokenStream) -> int:
        return sum([len(delta.token_ids) async for delta in stream])

    async def generate(prompts: Prompts, tokens: int) -> int:
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        return sum(await asyncio.gather(*map(count, await backend.generate(prompts, params))))

    model = ModelDescriptor(model_id="bench", model_type="llm", model_path=gguf)
    backend = create_backend(backend_name, model=model, serves="llm", prefix_caching=False, **options)
    with Runner() as runner:
        runner.run(backend.start())
        reading = measure(lambda prompts, tokens: runner.run(generate(prompts, tokens)))
        runner.run(backend.close())
    return reading


def ours(gguf: str, **options: Any) -> Reading:
    return through_contract("openvino", gguf, **options)


def vllm(gguf: str) -> Reading:
    """vLLM does not read GGUF on CPUs: its adapter writes a float32 folder with the same weights."""
    dtype = "bfloat16" if "avx512_bf16" in Path("/proc/cpuinfo").read_text() else "float32"
    return through_contract(
        "vllm", gguf, dtype=dtype, max_batch_size=32, max_sequence_length=2048, eager=True
    )


def openvino_genai(gguf: str, **options: Any) -> Reading:
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    folder = Path(gguf).with_suffix(".genai")
    if not (folder / "openvino_model.xml").exists():  # its GGUF reader writes the IR beside the file
        genai.LLMPipeline(gguf, "CPU", enable_save_ov_model=True)
        folder.mkdir()
        for file in Path(gguf).parent.glob("openvino_*"):
            file.rename(folder / file.name)
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size, scheduler.enable_prefix_caching = 1, False
    pipeline = genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", options)

    def run(prompts: Prompts, tokens: int) -> int:
        config = genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=True, do_sample=False)
        inputs = [ov.Tensor(np.array([prompt], np.int64)) for prompt in prompts]
        results = pipeline.generate(inputs, [config] * len(inputs))
        return sum(len(result.m_generation_ids[0]) for result in results)

    return measure(run)


def llama_cpp(gguf: str, **options: Any) -> Reading:
    from concurrent.futures import ThreadPoolExecutor

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.n_parallel, params.n_ctx, params.cont_batching = 32, 32 * 256, True
    params.n_predict, params.cache_prompt, params.kv_unified = -1, False, True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    params.verbosity = -1
    server = xllamacpp.Server(params)

    def complete(prompt: list[int], tokens: int) -> int:
        request = {
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
        }
        answer = server.handle_completions(request)
        return int(answer["usage"]["completion_tokens"])

    def run(prompts: Prompts, tokens: int) -> int:
        with ThreadPoolExecutor(len(prompts)) as pool:
            return sum(pool.map(lambda prompt: complete(prompt, tokens), prompts))

    return measure(run)


def fast_precision() -> str:
    """Default precision of ``openvino_genai``: bf16 if the CPU supports it, else f32."""
    import openvino as ov

    return "bf16" if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


def ours_like_genai(gguf: str) -> Reading:
    """Settings equivalent to ``openvino_genai``, which quantizes activations on CPUs with 8-bit products."""
    return ours(gguf, precision=fast_precision(), kv_precision="u8", dynamic_quantization=True)


def ours_with_whole_activations(gguf: str) -> Reading:
    return ours(gguf, precision=fast_precision(), kv_precision="u8")


def openvino_genai_fast(gguf: str) -> Reading:
    return openvino_genai(gguf, INFERENCE_PRECISION_HINT=fast_precision(), KV_CACHE_PRECISION="u8")


BASE = "sage-infer (KV u8)"
VLLM = "vLLM"
CONTENDERS: dict[str, Callable[[str], Reading]] = {
    BASE: ours_like_genai,
    "sage-infer (KV u8, activations not rounded)": ours_with_whole_activations,
    "sage-infer (default: f32, KV f32)": ours,
    "openvino_genai (KV u8)": openvino_genai_fast,
    "llama.cpp (KV f16)": llama_cpp,
    VLLM: vllm,
}


def make_q8_0(target: Path) -> None:
    """The sample model with every matrix in Q8_0, so that all engines have the same weights."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
    from gguf.quants import dequantize, quantize
    from sage_infer.discovery import model_specs
    from sage_infer.models import add_model

    reader = GGUFReader(add_model(model_specs()["smollm2-135m"]))
    writer = GGUFWriter(str(target), "llama")
    for name, value in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        content = 7 if name == "general.file_type" else value.contents()
        if value.types[0] == GGUFValueType.ARRAY:
            writer.add_key_value(name, content, GGUFValueType.ARRAY, value.types[-1])
        else:
            writer.add_key_value(name, content, value.types[0])
    for tensor in reader.tensors:
        weights = dequantize(tensor.data, tensor.tensor_type)
        if weights.ndim == 1:
            writer.add_tensor(tensor.name, weights)
        else:
            q8_0 = GGMLQuantizationType.Q8_0
            writer.add_tensor(tensor.name, quantize(weights, q8_0), raw_dtype=q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def run_worker(name: str, gguf: Path, python: str) -> Reading:
    command = [python, __file__, "--worker", name, "--gguf", str(gguf)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    reading: Reading = json.loads(done.stdout.splitlines()[-1])
    return reading


def table(readings: dict[str, list[Reading]]) -> str:
    """Medians per engine, and the ratios of ``BASE`` to each per round, as Markdown."""
    columns = list(next(iter(readings.values()))[0])
    lines = [f"| engine | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for name, rounds in readings.items():
        cells = (f"{statistics.median(r[c] for r in rounds):.3g}" for c in columns)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for name in readings:
        if name != BASE and BASE in readings:
            pairs = {
                c: [a[c] / b[c] for a, b in zip(readings[BASE], readings[name], strict=True)] for c in columns
            }
            cells = (f"{statistics.median(p):.2f}× ({min(p):.2f}–{max(p):.2f})" for p in pairs.values())
            lines.append(f"| *{BASE} ÷ {name}* | {' | '.join(cells)} |")
    return "\n".join(lines)


def machine() -> dict[str, str]:
    """The machine and versions of the measurement."""
    from importlib.metadata import version

    import openvino as ov

    cpu = str(ov.Core().get_property("CPU", "FULL_DEVICE_NAME"))
    packages = ("sage-infer-openvino", "openvino", "openvino-genai", "xllamacpp")
    return {
        "cpu": cpu,
        "cores": str(len(os.sched_getaffinity(0))),
        "computes in": fast_precision(),
        **{name: version(name) for name in packages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write all readings here")
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=None)
    parser.add_argument(
        "--vllm-python", help="interpreter of an environment with sage-infer-vllm, to include vLLM"
    )
    parser.add_argument("--worker", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    parser.add_argument("--gguf", help=argparse.SUPPRESS)
    parser.add_argument(
        "--table", type=Path, help="print the table from results written by --json, without measuring"
    )
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.table.read_text())["readings"]))
        return
    if options.worker:
        print(json.dumps(CONTENDERS[options.worker](options.gguf)))
        return
    names = options.only or [name for name in CONTENDERS if name != VLLM or options.vllm_python]
    if VLLM in names and not options.vllm_python:
        parser.error(
            "vLLM needs its own environment: set --vllm-python to the path from `hatch env find vllm.0.32`"
        )
    with tempfile.TemporaryDirectory() as folder:
        gguf = Path(folder) / "smollm2-135m-q8_0.gguf"
        make_q8_0(gguf)
        readings: dict[str, list[Reading]] = {name: [] for name in names}
        for round_number in range(options.rounds):
            for name in names:
                python = options.vllm_python if name == VLLM else sys.executable
                readings[name].append(run_worker(name, gguf, python))
                print(f"round {round_number + 1}: {name}: {readings[name][-1]}", file=sys.stderr)
    print(table(readings))
    if options.json:
        report = {"machine": machine(), "readings": readings}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

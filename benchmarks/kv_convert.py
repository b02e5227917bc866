"""Conversion of KV pages between vLLM and OpenVINO, beside memcpy of the same pages, on one core.

    python benchmarks/kv_convert.py [--rounds 8] [--tokens 1024] [--numpy] [--json FILE]

Pages of vLLM's CPU kernels (128 tokens) become pages of OpenVINO (32 tokens) and the other way: in float32 and
bfloat16, where elements only move, from float32 to bfloat16, and to and from OpenVINO's 8-bit pages. Rates count the
bytes of the floats. ``--numpy`` measures what users without Numba have. Rounds alternate which side runs first; ratios
are taken per round. CPU time of this one thread is measured, so that other load on the machine matters less.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sage_infer.schemas import KVCacheSchema
from sage_infer.sdk import KVPageConverter
from sage_infer_openvino.kv_format import cast_floats
from sage_infer_openvino.kv_kernels import wait

MODELS: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {"num_layers": 30, "num_heads": 3, "head_dim": 64},
    "Llama-3.1-8B": {"num_layers": 32, "num_heads": 8, "head_dim": 128},
}
VLLM: dict[str, Any] = {
    "page_size": 128, "format_id": "vllm-0.32.0-cpu_attn-vec16",
    "axis_order": ("layer", "head", "kv", "token", "dim"), "key_axis_order": ("layer", "head", "kv", "dim", "token"),
}  # fmt: skip
OPENVINO: dict[str, Any] = {"page_size": 32}
INT8: dict[str, Any] = {
    "dtype": "int8", "page_size": 32, "scale_dtype": "fp32", "scale_granularity": "channel",
    "value_scale_granularity": "token_head", "zero_points": True, "format_id": "openvino-2026.4",
}  # fmt: skip
PAIRS: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("vllm fp32 -> openvino f32", {**VLLM, "dtype": "fp32"}, {**OPENVINO, "dtype": "fp32"}),
    ("openvino f32 -> vllm fp32", {**OPENVINO, "dtype": "fp32"}, {**VLLM, "dtype": "fp32"}),
    ("vllm bf16 -> openvino bf16", {**VLLM, "dtype": "bf16"}, {**OPENVINO, "dtype": "bf16"}),
    ("openvino bf16 -> vllm bf16", {**OPENVINO, "dtype": "bf16"}, {**VLLM, "dtype": "bf16"}),
    ("vllm fp32 -> openvino bf16", {**VLLM, "dtype": "fp32"}, {**OPENVINO, "dtype": "bf16"}),
    ("vllm fp32 -> openvino u8", {**VLLM, "dtype": "fp32"}, INT8),
    ("openvino u8 -> vllm fp32", INT8, {**VLLM, "dtype": "fp32"}),
)


def seconds(run: Callable[[], object]) -> float:
    """CPU time of the best of three runs."""
    best = float("inf")
    for _ in range(3):
        began = time.thread_time()
        run()
        best = min(best, time.thread_time() - began)
    return best


class Conversion:
    """One pair of schemas over pages that have been touched."""

    def __init__(self, source: KVCacheSchema, target: KVCacheSchema, tokens: int) -> None:
        self.converter, self.tokens = KVPageConverter(source, target, cast=cast_floats), tokens
        plain = KVCacheSchema(
            dtype="fp32", page_size=128, num_layers=source.num_layers, num_heads=source.num_heads,
            head_dim=source.head_dim,
        )  # fmt: skip
        draw = np.random.default_rng(1)
        floats = [
            draw.normal(0, 2, plain.bytes_per_page // 4).astype(np.float32).data.cast("B")
            for _ in range(-(-tokens // plain.page_size))
        ]
        self.pages = KVPageConverter(plain, source, cast=cast_floats).converted(floats, tokens)
        self.out = self.converter.converted(self.pages, tokens)
        elements = 2 * source.num_layers * source.num_heads * source.head_dim * tokens
        width = (
            2 if "bf16" in (source.dtype, target.dtype) and "fp32" not in (source.dtype, target.dtype) else 4
        )
        self.nbytes = elements * width
        self.copied = [np.frombuffer(bytearray(page), np.uint8) for page in self.pages]

    def convert(self) -> None:
        self.converter.convert(self.pages, self.tokens, self.out)

    def copy(self) -> None:
        for target, source in zip(self.copied, self.pages, strict=True):
            target[:] = np.frombuffer(source, np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of the converted sequence")
    parser.add_argument("--numpy", action="store_true", help="without Numba, if it is installed")
    parser.add_argument("--json", type=Path, help="write all readings here")
    options = parser.parse_args()
    if options.numpy:
        os.environ["NUMBA_DISABLE_JIT"] = "1"
    kernels = "compiled by Numba" if wait() else "NumPy"
    print(f"8-bit pages: {kernels}")
    readings: dict[str, list[dict[str, float]]] = {}
    print(
        f"{'model':14} {'pages':28} {'GB/s':>6} {'of memcpy':>10}   (min to max of {options.rounds} rounds)"
    )
    for model, shape in MODELS.items():
        for name, source, target in PAIRS:
            one = Conversion(
                KVCacheSchema(**source, **shape), KVCacheSchema(**target, **shape), options.tokens
            )
            copied = sum(page.nbytes for page in one.pages)
            found = readings.setdefault(f"{model}: {name}", [])
            for number in range(options.rounds):
                copy = seconds(one.copy) if number % 2 else None
                convert = seconds(one.convert)
                memcpy = copied / (seconds(one.copy) if copy is None else copy) / 1e9
                found.append({"gb_per_s": one.nbytes / convert / 1e9, "memcpy_gb_per_s": memcpy})
            rates = [reading["gb_per_s"] for reading in found]
            share = statistics.median(reading["gb_per_s"] / reading["memcpy_gb_per_s"] for reading in found)
            print(
                f"{model:14} {name:28} {statistics.median(rates):6.2f} {share:10.2f}   "
                f"({min(rates):.2f} to {max(rates):.2f})"
            )
    if options.json:
        machine = {
            "processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
        }  # fmt: skip
        options.json.write_text(
            json.dumps({"machine": machine, "kernels": kernels, "readings": readings}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()

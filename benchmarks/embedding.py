"""Compare the embedded encoder with sentence-transformers (torch): texts/s, and similarity of the vectors.

    hatch run bench-embedding:embedding [--rounds 7] [--json results.json] [--model FOLDER]

Both compute all-MiniLM-L6-v2 in float32 with their default number of CPU threads. Every text has exactly 16,
128 or 256 tokens including special ones, so that neither pads. Each engine stays loaded in its own process; in
a round both run every length once, in alternating order, and ratios are taken
per round, so that noise affects both equally.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

COUNTS = {16: 512, 128: 64, 256: 32}  # tokens of a text: texts in one call
OURS, THEIRS = "sage-infer", "sentence-transformers"
Embed = Callable[[list[str]], Any]


def sage_infer(model: str) -> Embed:
    import numpy as np
    from sage_infer.compat import Runner
    from sage_infer.models import resolve_model
    from sage_infer_openvino.embedding_backend import OpenVINOEmbeddingBackend

    runner = Runner()
    backend = OpenVINOEmbeddingBackend(resolve_model(model, model_type="embedding"))
    runner.run(backend.start())

    def embed(texts: list[str]) -> Any:
        result = runner.run(backend.embed_batch(texts))
        return np.frombuffer(result.data, np.float32).reshape(len(result), result.dim)

    return embed


def sentence_transformers(model: str) -> Embed:
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(model, device="cpu")
    return lambda texts: encoder.encode(texts, show_progress_bar=False)


CONTENDERS: dict[str, Callable[[str], Embed]] = {OURS: sage_infer, THEIRS: sentence_transformers}


def make_texts(model: str) -> dict[int, list[str]]:
    """Random one-token words, so that a text has an exact number of tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    words = sorted(
        word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha() and len(word) > 2
    )
    numbers = random.Random(0)
    texts = {}
    for length, count in COUNTS.items():
        texts[length] = [" ".join(numbers.choices(words, k=length - 2)) for _ in range(count)]
        found = {len(encoding.ids) for encoding in tokenizer.encode_batch(texts[length])}
        if found != {length}:
            raise SystemExit(f"texts of {length} tokens have {sorted(found)} in this model's vocabulary")
    return texts


def work(name: str, model: str) -> None:
    """Answers each line of standard input, ``{"texts": […], "vectors": file or null}``, with the seconds it took."""
    import numpy as np

    out, sys.stdout = sys.stdout, sys.stderr  # keep library output out of the answers
    embed = CONTENDERS[name](model)
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        started = time.perf_counter()
        vectors = embed(request["texts"])
        seconds = time.perf_counter() - started
        if request["vectors"]:
            np.save(request["vectors"], vectors)
        print(seconds, file=out, flush=True)


class Worker:
    """One loaded engine in its own process."""

    def __init__(self, name: str, model: str) -> None:
        self.name = name
        command = [sys.executable, __file__, "--worker", name, "--model", model]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._answer()

    def embed(self, texts: list[str], vectors: str | None = None) -> float:
        assert self.process.stdin is not None
        print(json.dumps({"texts": texts, "vectors": vectors}), file=self.process.stdin, flush=True)
        return float(self._answer())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} exited with {self.process.wait()}; its output is above")
        return line


def smallest_cosine(workers: dict[str, Worker], texts: list[str]) -> float:
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        vectors = []
        for name, worker in workers.items():
            file = f"{folder}/{name}.npy"
            worker.embed(texts, file)
            vectors.append(np.load(file).astype(np.float64))
    one, other = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in vectors)
    return float((one * other).sum(1).min())


def measure(model: str, rounds: int) -> dict[int, dict[str, Any]]:
    texts = make_texts(model)
    workers = {name: Worker(name, model) for name in CONTENDERS}
    readings: dict[int, dict[str, Any]] = {
        length: {"smallest_cosine": smallest_cosine(workers, texts[length]), **{name: [] for name in workers}}
        for length in COUNTS
    }  # this also warmed them up
    for number in range(rounds):
        order = list(workers) if number % 2 == 0 else list(workers)[::-1]
        for length, count in COUNTS.items():
            for name in order:
                readings[length][name].append(count / workers[name].embed(texts[length]))
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    for worker in workers.values():
        worker.close()
    return readings


def show(readings: dict[int, dict[str, Any]]) -> None:
    print(f"| tokens | {OURS}, texts/s | {THEIRS}, texts/s | ratio (min to max) | smallest cosine |")
    print("|---:|---:|---:|---:|---:|")
    for length, reading in readings.items():
        ours, theirs = (statistics.median(reading[name]) for name in (OURS, THEIRS))
        ratios = [a / b for a, b in zip(reading[OURS], reading[THEIRS], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {length} | {ours:.1f} | {theirs:.1f} | {spread} | {reading['smallest_cosine']:.7f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write all readings here")
    parser.add_argument("--model", help="a sentence-transformers folder; default: the sample model")
    parser.add_argument("--worker", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.model)
        return
    if options.model is None:
        from sage_infer.discovery import model_specs
        from sage_infer.models import add_model

        options.model = str(add_model(model_specs()["minilm"]))
    readings = measure(options.model, options.rounds)
    show(readings)
    if options.json:
        machine = {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        }
        options.json.write_text(json.dumps({**machine, "texts": COUNTS, "readings": readings}, indent=2))


if __name__ == "__main__":
    main()

"""A control plane over two replicas of a real LLM and one of an embedding model, behind the contract alone.

python examples/phase0_demo.py [--backend openvino|vllm|…] [--model smollm2-135m]

The control plane places each request on an instance. In the middle of the answers it drains one replica, and the
streams continue on the other with the same text. ``served`` alone knows which backend runs: what schedules, and asks,
is the same for all.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from typing import Any

from sage_infer import SageInferError, SamplingParams, list_backends, resolve_model
from sage_infer.contracts import TokenStream
from sage_llm import ControlPlaneManager, LocalExecutor, ServedModel

QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "What do bees make?",
    "Write a sentence about the sea.",
)
TEXTS = ("A cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose in March.")
PARAMS = SamplingParams(temperature=0, max_tokens=48)
ENCODERS = ("openvino-embedding",)
OPTIONS: dict[str, dict[str, Any]] = {
    "openvino": {"kv_cache_gb": 0.25},
    "vllm": {"max_sequence_length": 1024, "eager": True, "kv_cache_gb": 0.5},
}
REPLICAS = {"vllm": 1}  # a second one takes a gigabyte more, and half a minute


def served(backend: str, model: str) -> list[ServedModel]:
    """An LLM on a backend, and an embedding model if the embedded encoder is installed."""
    llm = ServedModel(
        descriptor=resolve_model(model, model_type="llm"),
        backend=backend,
        options=OPTIONS.get(backend, {}),
        replicas=REPLICAS.get(backend, 2),
    )
    ready = [row.name for row in list_backends() if row.name in ENCODERS and row.state == "ready"]
    if not ready:
        return [llm]
    return [
        llm,
        ServedModel(descriptor=resolve_model("minilm", model_type="embedding"), backend=ready[0]),
    ]


async def read(stream: TokenStream) -> str:
    return "".join([delta.text async for delta in stream])


async def ask(plane: ControlPlaneManager, questions: tuple[str, ...]) -> list[TokenStream]:
    llm = plane.list_models()[0].model_id
    if plane.get_model_capability(llm).supports("chat"):
        return [await plane.chat([{"role": "user", "content": question}], PARAMS) for question in questions]
    return await plane.generate(list(questions), PARAMS)


async def demo(models: list[ServedModel]) -> ControlPlaneManager:
    """Serve the models, ask, drain a replica, ask for embeddings; returns the closed control plane."""
    plane = ControlPlaneManager(models, LocalExecutor())
    started = time.monotonic()
    await plane.start()
    print(f"\n{len(plane.fleet.replicas)} replicas ready in {time.monotonic() - started:.1f} s")
    try:
        answers = await asyncio.gather(*map(read, await ask(plane, QUESTIONS)))
        for question, answer in zip(QUESTIONS, answers, strict=True):
            print(f"> {question}\n  {answer.strip()}")
        if models[0].replicas > 1:
            await drained(plane, answers)
        if len(models) > 1:
            await compare(plane)
        requests = plane.cluster()["requests"]
        print(f"\nrequests: {requests['finished']} finished, {requests['failed']} failed")
        return plane
    finally:
        await plane.close()


async def compare(plane: ControlPlaneManager) -> None:
    """Embed a few texts, and compare their meaning."""
    vectors = (await plane.embed(list(TEXTS))).vectors
    print("\ncosine similarity of embeddings")
    for i, j in ((0, 1), (0, 2)):
        cosine = sum(a * b for a, b in zip(vectors[i], vectors[j], strict=True))
        print(f"  {cosine:5.2f}  {TEXTS[i]} | {TEXTS[j]}")


async def drained(plane: ControlPlaneManager, expected: list[str]) -> None:
    """Ask again, and drain a replica while it answers."""
    reading = [asyncio.ensure_future(read(stream)) for stream in await ask(plane, QUESTIONS)]
    result = await plane.drain(f"{plane.list_models()[0].model_id}/0", deadline_s=0.0)
    same = await asyncio.gather(*reading) == expected
    print(
        f"\ndrained {result.replica_id} in {result.took_s:.2f} s: {result.migrated} of {result.open} streams migrated, "
        f"texts {'equal' if same else 'DIFFERENT'}"
    )
    if not same:
        raise SageInferError("a migrated stream differs from the undisturbed one")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="openvino", help="backend of the LLM (default: openvino)")
    parser.add_argument("--model", default="smollm2-135m", help="the LLM (default: smollm2-135m)")
    given = parser.parse_args()
    print("discovered: " + ", ".join(f"{row.name} ({row.state})" for row in list_backends()))
    add = [sys.executable, "-m", "sage_infer.cli.main", "infer", "model", "add", given.model, "minilm"]
    if subprocess.call(add) != 0:  # the command has reported the reason
        return 1
    try:
        asyncio.run(demo(served(given.backend, given.model)))
    except SageInferError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

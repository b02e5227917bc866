"""A real LLM and a real embedding model, each through a discovered plug-in and its contract.

python examples/phase0_demo.py
"""

from __future__ import annotations

import asyncio
import subprocess
import sys

from sage_infer import SageInferError, SamplingParams, list_backends, open_backend

QUESTION = "What is the capital of France?"
TEXTS = ("A cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose in March.")


async def ask() -> None:
    async with open_backend("openvino", model="smollm2-135m", serves="llm") as llm:
        prompt = await llm.render_chat([{"role": "user", "content": QUESTION}])
        (stream,) = await llm.generate(prompt, SamplingParams(temperature=0, max_tokens=64))
        print(f"\nsmollm2-135m on openvino\n> {QUESTION}")
        async for delta in stream:
            print(delta.text, end="", flush=True)
        if stream.usage and stream.timing:
            rate = stream.usage.completion_tokens / stream.timing.total_s
            print(
                f"\n[{stream.usage.completion_tokens} tokens, {rate:.0f} tokens/s, TTFT {stream.timing.ttft_s:.3f} s]"
            )


async def compare() -> None:
    async with open_backend("openvino-embedding", model="minilm", serves="embedding") as encoder:
        vectors = (await encoder.embed_batch(TEXTS)).vectors
        print("\nminilm on openvino-embedding: cosine similarity")
        for i, j in ((0, 1), (0, 2)):
            cosine = sum(a * b for a, b in zip(vectors[i], vectors[j], strict=True))
            print(f"  {cosine:5.2f}  {TEXTS[i]} | {TEXTS[j]}")


def main() -> int:
    print("discovered: " + ", ".join(f"{row.name} ({row.state})" for row in list_backends()))
    add = [sys.executable, "-m", "sage_infer.cli.main", "infer", "model", "add", "smollm2-135m", "minilm"]
    if subprocess.call(add) != 0:  # the command has reported the reason
        return 1
    try:
        asyncio.run(ask())
        asyncio.run(compare())
    except SageInferError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

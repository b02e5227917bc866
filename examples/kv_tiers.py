"""An engine that remembers: KV of a long document in memory over a disk, used again after a restart.

python examples/kv_tiers.py [FOLDER]
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from sage_infer import SageInferError, SamplingParams, open_backend, resolve_model

DOCUMENT = "\n".join(
    f"Station {number}: the keeper of lighthouse {number} logs wind force {number % 9} and {3 * number} passing ships."
    for number in range(1, 9)
)
QUESTIONS = ("Which station logs the most ships?", "How many ships does station 5 log?")


async def ask(folder: Path) -> None:
    """Start an engine, ask both questions, and stop it."""
    store = {
        "store": "tiered",
        "policy": "reuse",  # prompts that are unlikely to be continued leave memory first
        "upper": {"capacity_gb": 0.25},
        "lower": {"store": "ssd", "path": str(folder), "capacity_gb": 1},
    }
    async with open_backend(
        "openvino", model="smollm2-135m", kv_store=store, kv_store_wait_s=30.0, kv_cache_gb=0.25
    ) as engine:
        for question in QUESTIONS:
            (stream,) = await engine.generate(
                f"{DOCUMENT}\n\nQuestion: {question}\nAnswer:", SamplingParams(temperature=0, max_tokens=16)
            )
            text = "".join([delta.text async for delta in stream])
            usage, timing = stream.usage, stream.timing
            assert usage is not None
            assert timing is not None
            print(
                f"{usage.cached_tokens:5} of {usage.prompt_tokens} tokens cached, first token after "
                f"{timing.ttft_s:.2f} s: {' '.join(text.split())}"
            )


async def main(folder: Path) -> int:
    try:
        resolve_model("smollm2-135m")
        for run in ("first run", "after a restart"):
            print(f"{run}:", flush=True)
            await ask(folder)
    except SageInferError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(asyncio.run(main(Path(sys.argv[1]))))
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(asyncio.run(main(Path(temporary))))

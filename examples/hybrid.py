"""One instance with an LLM and an embedding model: memory plan, models at the start, models loaded later, shared use.

python examples/hybrid.py
"""

from __future__ import annotations

import asyncio
import sys

from sage_infer import SageInferError, SamplingParams, resolve_model
from sage_infer_hybrid import HybridBackend

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
TEXTS = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose in March."]
SMALL = {"kv_cache_gb": 0.25}


async def answer(hybrid: HybridBackend, model: str | None = None) -> str:
    stream = await hybrid.chat(QUESTION, SamplingParams(temperature=0, max_tokens=32), model=model)
    return "".join([delta.text async for delta in stream])


def planned() -> None:
    """A share of memory for each model, before either is loaded."""
    hybrid = HybridBackend(
        llm_config={"model_id": "smollm2-135m", "device_ids": [0], "memory_fraction": 0.5},
        embedding_config={"model_id": "minilm", "device_ids": [0], "memory_fraction": 0.2},
    )
    for share in hybrid.plan().shares:
        print(f"0. {share.model_id} on {share.device}: {share.weights / 2**20:.0f} MiB of weights")


async def named_at_the_start() -> None:
    """Both models are planned before either is loaded."""
    hybrid = HybridBackend(
        llm_config={"model": "smollm2-135m", "options": SMALL},
        embedding_config={"model": "minilm", "aliases": ["text-embedding-3-small"]},
        sharing_mode="time_slice",
    )
    await hybrid.start()
    try:
        print("1.", await answer(hybrid))
        vectors = (await hybrid.embed(TEXTS, model="text-embedding-3-small")).vectors
        print("   cosine:", *(f"{sum(map(float.__mul__, vectors[0], v)):.2f}" for v in vectors[1:]))
        for share in hybrid.memory_plan().shares:
            print(f"   {share.model_id}: {share.total / 2**20:.0f} MiB on {share.device}")
    finally:
        await hybrid.close()


async def loaded_while_it_runs() -> None:
    """An instance without models gets one, and another; one goes to sleep, and wakes for the next request."""
    hybrid = HybridBackend()
    await hybrid.start()
    try:
        await hybrid.load_model(resolve_model("minilm", model_type="embedding"))
        await hybrid.load_model({"model": "smollm2-135m", "options": SMALL})
        print("2.", ", ".join(f"{m.model_id} ({m.model_type})" for m in hybrid.list_models()))
        await hybrid.sleep_model("smollm2-135m")
        print("   asleep:", hybrid.get_model_status("smollm2-135m").state)
        print("  ", await answer(hybrid, "smollm2-135m"))
        await hybrid.unload_model("minilm")
        print("   unloaded:", hybrid.get_model_status("minilm").state)
    finally:
        await hybrid.close()


async def used_simultaneously() -> None:
    """Texts are embedded in slices while streams are read."""
    hybrid = HybridBackend(
        llm_config={"model": "smollm2-135m", "options": SMALL}, embedding_config={"model": "minilm"}
    )
    await hybrid.start()
    try:
        answers = [asyncio.create_task(answer(hybrid)) for _ in range(4)]
        vectors = await hybrid.embed(TEXTS * 20)
        print(
            f"3. {len(vectors)} vectors beside {len({*await asyncio.gather(*answers)})} answer(s) to 4 requests"
        )
    finally:
        await hybrid.close()


async def main() -> int:
    try:
        planned()
        for scenario in (named_at_the_start, loaded_while_it_runs, used_simultaneously):
            await scenario()
    except SageInferError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

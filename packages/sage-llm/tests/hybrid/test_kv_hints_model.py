"""The real engine with a disk below memory: KV of a request that waits in the control plane moves to memory."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import plane
import pytest
from plane import read, running_plane, small_llm, until
from sage_infer.schemas import SamplingParams

PAGE = 32
PROMPT = " ".join(f"Lighthouse number {n} stands on a rock." for n in range(20))
SHORT = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
LONG = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)


def test_kv_moves_up_while_a_request_waits(smollm2: str, cache_dir: str, tmp_path: Path) -> None:
    """A first engine fills the disk. A second one is busy when the same prompt comes, and is told of it."""
    pytest.importorskip("sage_infer_kvstore", reason="it brings the store `tiered`")
    store = {
        "store": "tiered", "upper": {"capacity_gb": 0.1},
        "lower": {"store": "ssd", "path": str(tmp_path), "capacity_gb": 0.2},
    }  # fmt: skip
    model = small_llm(
        smollm2, cache_dir, replicas=1, max_batch_size=1, kv_store=store, kv_store_wait_s=plane.GUARD_S
    )

    async def ask(manager: Any, prompt: str, params: SamplingParams) -> Any:
        (stream,) = await manager.generate([prompt], params)
        return await read(stream), stream.usage.cached_tokens

    async def main() -> None:
        async with running_plane([model]) as manager:
            expected, cached = await ask(manager, PROMPT, SHORT)
            assert cached == 0
        async with running_plane([model]) as manager:
            busy = [asyncio.ensure_future(ask(manager, f"Count to {n}.", LONG)) for n in range(4)]
            await until(lambda: manager.dispatcher.placement.waiting())
            found, cached = await ask(manager, PROMPT, SHORT)
            assert found == expected
            pages = (expected[3][0] - 1) // PAGE
            assert cached == pages * PAGE > 5 * PAGE
            assert manager.fleet.hints.pages == pages
            (replica,) = manager.fleet.replicas.values()
            counts = replica.instance.backend.stats().extensions
            assert counts["kv_store_prefetched"] >= pages
            await asyncio.gather(*busy)

    asyncio.run(asyncio.wait_for(main(), plane.GUARD_S))

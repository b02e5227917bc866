"""`benchmarks/chains.py`: embed, rerank with a cross-encoder, and chat on real engines, through one control plane."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from sage_infer import open_backend
from sage_infer.discovery import model_specs
from sage_infer.models import add_model
from sage_llm import ControlPlaneManager, LocalExecutor

GUARD_S = 300
QUERY = "what is the capital of france"
DOCUMENTS = ["Paris is the capital.", "The dog ran under a tree.", "Rain fell on Paris today. " * 8, "tree"]


def test_a_chain_on_real_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "benchmarks")
    for name in ("smollm2-135m", "minilm"):
        add_model(model_specs()[name])
    import chains

    models = chains.served(1, tmp_path)
    ranker = models[-1].descriptor

    async def main() -> None:
        async with open_backend("openvino-embedding", model=ranker) as alone:
            wanted = await alone.rerank(QUERY, DOCUMENTS)
        plane = ControlPlaneManager(models, LocalExecutor())
        try:
            await plane.start()
            found: Any = await asyncio.gather(*(plane.rerank(QUERY, DOCUMENTS) for _ in range(3)))
            assert [[hit.index for hit in one.hits] for one in found] == [[h.index for h in wanted.hits]] * 3
            assert len({hit.score for hit in wanted.hits}) == len(DOCUMENTS)
            scores = pytest.approx([hit.score for hit in wanted.hits], abs=1e-5)
            assert [[hit.score for hit in one.hits] for one in found] == [scores] * 3
            assert {one.usage for one in found} == {wanted.usage}
            for seed in range(2):
                await chains.chain(plane, seed, f"rag/{seed}", GUARD_S)
            step = plane.chains.begin("", "rag/next", chains.EMBEDDER, 0.0)
            assert step.later == (chains.RANKER, chains.LLM)
            ends = plane.dispatcher.calls.ends
            assert (ends["embed"]["finished"], ends["rerank"]["finished"]) == (2, 5)
            assert plane.dispatcher.ends["finished"] == 2
        finally:
            await plane.close()

    try:
        asyncio.run(asyncio.wait_for(main(), GUARD_S))
    finally:
        sys.modules.pop("chains", None)

"""The embedding backend: order, company, errors, cancellation, the end."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openvino_toy import DATA, descriptor, eventually, run
from sage_infer.contracts import EmbeddingBackend
from sage_infer.errors import EngineDead, InvalidRequest, RequestCancelled, SchemaError, UnsupportedFeature
from sage_infer.schemas import EmbeddingResult
from sage_infer_openvino.embedding_backend import OpenVINOEmbeddingBackend

TEXTS = [
    "A cat sits.",
    "The stock market fell by three percent on a rainy Monday.",
    "yes",
    "Water boils.",
] * 5


@asynccontextmanager
async def opened(minilm: Path, **options: Any) -> AsyncIterator[OpenVINOEmbeddingBackend]:
    limit = options.pop("max_sequence_length", None)
    model = descriptor(minilm, "minilm", max_sequence_length=limit)
    backend = OpenVINOEmbeddingBackend(model, **options)
    try:
        await backend.start()
        yield backend
    finally:
        await backend.close()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Holds the encoder's thread up before every inference, and sees what is computed together."""
    gate = Gate()
    from sage_infer_openvino.encoder import Encoder

    compute = Encoder.compute

    def held_up(self: Encoder, token_ids: Sequence[Sequence[int]]) -> Any:
        gate.batches.append(len(token_ids))
        gate.entered.release()
        assert gate.open.wait(30)
        if gate.failure is not None:
            raise gate.failure
        return compute(self, token_ids)

    monkeypatch.setattr(Encoder, "compute", held_up)
    yield gate
    gate.open.set()


class Gate:
    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        self.batches: list[int] = []
        self.failure: BaseException | None = None

    async def in_step(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=10)


def rows(result: EmbeddingResult) -> np.ndarray:
    return np.array(result.vectors, np.float32)


def test_vectors_are_those_of_sentence_transformers(minilm_dir: Path) -> None:
    cases = [c for c in json.loads((DATA / "vectors_minilm.json").read_text(encoding="utf-8")) if c["text"]]

    async def main() -> None:
        async with opened(minilm_dir) as backend:
            assert isinstance(backend, EmbeddingBackend)
            result = await backend.embed_batch([case["text"] for case in cases], truncate="end")
            for ours, case in zip(rows(result), cases, strict=True):
                theirs = np.array(case["vector"])
                assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > 0.9999

    run(main())


def test_calls_that_come_together_get_their_own_rows(minilm_dir: Path, gate: Gate) -> None:
    async def main() -> None:
        async with opened(minilm_dir, token_budget=64) as backend:
            gate.open.set()
            expected = rows(await backend.embed_batch(TEXTS))
            await gate.in_step()
            gate.open.clear()
            gate.batches.clear()
            calls = [asyncio.ensure_future(backend.embed(TEXTS[0]))]
            await gate.in_step()
            calls += [asyncio.ensure_future(backend.embed(text)) for text in TEXTS[1:]]
            await eventually(lambda: backend.stats().waiting == len(TEXTS) - 1)
            assert backend.stats().running == 1
            gate.open.set()
            results = await asyncio.gather(*calls)
            assert gate.batches == [1, len(TEXTS) - 1]  # the others waited, and were computed together
            for result, row in zip(results, expected, strict=True):
                assert np.abs(rows(result)[0] - row).max() < 1e-5
            stats = backend.stats()
            assert (stats.running, stats.waiting, stats.finished) == (0, 0, 1 + len(TEXTS))
            assert stats.prompt_tokens == 2 * sum(result.usage.prompt_tokens for result in results)

    run(main())


def test_cancelled_calls_leave_nothing(minilm_dir: Path, gate: Gate) -> None:
    async def main() -> None:
        async with opened(minilm_dir) as backend:
            running = asyncio.ensure_future(backend.embed("running"))
            await gate.in_step()
            waiting = [asyncio.ensure_future(backend.embed("waiting")) for _ in range(3)]
            await eventually(lambda: backend.stats().waiting == 3)
            for call in (running, *waiting[:2]):
                call.cancel()
            await asyncio.gather(running, *waiting[:2], return_exceptions=True)
            assert backend.stats().waiting == 1
            gate.open.set()
            assert len(await waiting[2]) == 1
            await eventually(lambda: backend.stats().finished == 4)
            stats = backend.stats()
            assert (stats.running, stats.waiting) == (0, 0)

    run(main())


def test_one_wrong_call_does_not_harm_those_beside_it(minilm_dir: Path, gate: Gate) -> None:
    async def main() -> None:
        async with opened(minilm_dir, max_sequence_length=16) as backend:
            assert backend.get_max_length() == backend.get_capability().max_sequence_length == 16
            first = asyncio.ensure_future(backend.embed("first"))
            await gate.in_step()
            wrong = asyncio.ensure_future(backend.embed_batch(["fine", "word " * 30]))
            outside = asyncio.ensure_future(backend.embed([10**6]))
            right = asyncio.ensure_future(backend.embed("word " * 30, truncate="end"))
            await eventually(lambda: backend.stats().waiting == 3)
            gate.open.set()
            with pytest.raises(InvalidRequest, match="input 1 has 32 tokens, but this model takes 16"):
                await wrong
            with pytest.raises(InvalidRequest, match="token ids outside"):
                await outside
            assert (await right).usage.prompt_tokens == 16
            assert len(await first) == 1

    run(main())


@pytest.mark.parametrize(
    ("texts", "truncate", "says"),
    [
        ("one string", "error", "use embed"),
        (["fine", ""], "error", "text 1 is empty"),
        (["fine", []], "error", "text 1 is empty"),
        ([3], "error", "text 0 must be a string or a list of token ids, got int"),
        ([["a"]], "error", "text 0 must be a string or a list of token ids, got list"),
        (["fine"], "start", "truncate must be 'error' or 'end', got 'start'"),
    ],
)
def test_what_cannot_be_embedded(minilm_dir: Path, texts: Any, truncate: Any, says: str) -> None:
    async def main() -> None:
        async with opened(minilm_dir) as backend:
            with pytest.raises(InvalidRequest, match=says):
                await backend.embed_batch(texts, truncate=truncate)
            assert len(await backend.embed_batch([])) == 0
            with pytest.raises(UnsupportedFeature, match="cross-encoder"):
                await backend.rerank("a", ["b"])
            assert backend.get_embedding_dim() == 384
            assert backend.get_capability().supports("embed")

    run(main())


def test_close_ends_calls_and_refuses_new_ones(minilm_dir: Path, gate: Gate) -> None:
    async def main() -> None:
        async with opened(minilm_dir) as backend:
            calls = [asyncio.ensure_future(backend.embed("running"))]
            await gate.in_step()
            calls += [asyncio.ensure_future(backend.embed("waiting")) for _ in range(2)]
            await eventually(lambda: backend.stats().waiting == 2)
            closing = asyncio.ensure_future(backend.close())
            await eventually(lambda: backend.stats().kv_blocks_total == 0 and backend._closed)
            gate.open.set()
            await closing
            await backend.close()
            for call in calls:
                with pytest.raises(RequestCancelled, match="closed"):
                    await call
            for call in (backend.embed("x"), backend.start()):
                with pytest.raises(EngineDead, match="closed"):
                    await call
            assert (await backend.health()).status == "dead"

    run(main())


def test_an_encoder_that_fails_is_dead(minilm_dir: Path, gate: Gate) -> None:
    async def main() -> None:
        async with opened(minilm_dir) as backend:
            call = asyncio.ensure_future(backend.embed("x"))
            await gate.in_step()
            gate.failure = RuntimeError("no more memory")
            gate.open.set()
            with pytest.raises(EngineDead, match="RuntimeError: no more memory"):
                await call
            with pytest.raises(EngineDead, match="no more memory"):
                await backend.embed("x")
            assert (await backend.health()).status == "dead"

    run(main())


def test_before_start_and_wrong_options(minilm_dir: Path) -> None:
    async def main() -> None:
        backend = OpenVINOEmbeddingBackend(descriptor(minilm_dir, "minilm"))
        assert (await backend.health()).status == "starting"
        assert backend.stats().running == 0
        with pytest.raises(EngineDead, match="not started"):
            await backend.embed("x")
        await backend.close()

    run(main())
    with pytest.raises(SchemaError, match="token_budget: must be"):
        OpenVINOEmbeddingBackend(descriptor(minilm_dir, "minilm"), token_budget=0)

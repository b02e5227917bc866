"""The embedding backend: order, concurrency, errors, cancellation, close."""

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
from encoder_toy import DOCUMENTS, EMBEDDERS, QUERY, RERANKERS, write_encoder
from encoder_toy import TEXTS as TOY_TEXTS
from openvino_toy import DATA, descriptor, eventually, greedy, run, tokens
from sage_infer.contracts import EmbeddingBackend
from sage_infer.errors import (
    EngineDead,
    InvalidRequest,
    Overloaded,
    RequestCancelled,
    SchemaError,
    UnsupportedFeature,
)
from sage_infer.schemas import EmbeddingResult, ModelDescriptor, Prompt, RequestOptions
from sage_infer_openvino.backend import OpenVINOBackend
from sage_infer_openvino.embedding_backend import OpenVINOEmbeddingBackend
from sage_infer_openvino.encoder.encoder import Encoder, EncoderInput

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
    compute = Encoder.compute

    def held_up(self: Encoder, batch: Sequence[EncoderInput]) -> Any:
        gate.batches.append(len(batch))
        gate.longest.append(max(map(len, batch)))
        gate.entered.release()
        assert gate.open.wait(300)
        if gate.failure is not None:
            raise gate.failure
        return compute(self, batch)

    monkeypatch.setattr(Encoder, "compute", held_up)
    yield gate
    gate.open.set()


class Gate:
    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        self.batches: list[int] = []
        self.longest: list[int] = []  # tokens of the longest text of each batch
        self.failure: BaseException | None = None

    async def in_step(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=300)

    def shut(self) -> None:
        """Forget what has been computed, and hold the next inference up."""
        self.open.clear()
        self.batches.clear()
        self.entered = threading.Semaphore(0)


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
        async with opened(minilm_dir) as backend:
            gate.open.set()
            expected = rows(await backend.embed_batch(TEXTS))
            await eventually(lambda: backend.stats().finished == 1)
            gate.shut()
            calls = [asyncio.ensure_future(backend.embed(TEXTS[0]))]
            await gate.in_step()
            calls += [asyncio.ensure_future(backend.embed(text)) for text in TEXTS[1:]]
            await eventually(lambda: backend.stats().waiting == len(TEXTS) - 1)
            assert backend.stats().running == 1
            gate.open.set()
            results = await asyncio.gather(*calls)
            assert sum(gate.batches) == len(TEXTS)
            assert len(gate.batches) <= 4  # the others waited, and were computed together
            for result, row in zip(results, expected, strict=True):
                assert np.abs(rows(result)[0] - row).max() < 1e-5
            await eventually(lambda: backend.stats().finished == 1 + len(TEXTS))
            stats = backend.stats()
            assert (stats.running, stats.waiting) == (0, 0)
            assert stats.prompt_tokens == 2 * sum(result.usage.prompt_tokens for result in results)

    run(main())


def test_more_texts_than_the_queue_takes_are_refused_for_now(minilm_dir: Path, gate: Gate) -> None:
    async def main() -> None:
        async with opened(minilm_dir, max_queue=4) as backend:
            first = asyncio.ensure_future(backend.embed_batch(TEXTS[:8]))  # over the limit, and alone
            await gate.in_step()
            with pytest.raises(Overloaded, match="max_queue=4") as refused:
                await backend.embed("one more")
            assert 0 < refused.value.retry_after <= 30
            gate.open.set()
            await first
            await eventually(lambda: backend.stats().finished == 1)
            results = await asyncio.gather(*(backend.embed(text) for text in TEXTS[:4]))
            assert len(results) == 4

    run(main())


def test_a_small_call_does_not_wait_for_a_big_one(minilm_dir: Path, gate: Gate) -> None:
    async def main() -> None:
        async with opened(minilm_dir, token_budget=64) as backend:
            big = asyncio.ensure_future(backend.embed_batch(["many words of one long text " * 5] * 20))
            await gate.in_step()
            small = asyncio.ensure_future(backend.embed("small"))
            await eventually(lambda: backend.stats().waiting == 1)
            gate.open.set()
            await small
            assert len(await big) == 20
            assert sum(gate.batches) == 21
            place = gate.longest.index(min(gate.longest))
            assert place <= 3 < len(gate.batches) - 1  # behind one, and what began before it was looked at

    run(main())


def test_cancelled_calls_leave_nothing(minilm_dir: Path, gate: Gate) -> None:
    async def main() -> None:
        async with opened(minilm_dir, token_budget=64) as backend:
            running = asyncio.ensure_future(backend.embed_batch(["as long as a batch " * 10] * 50))
            await gate.in_step()
            waiting = [asyncio.ensure_future(backend.embed("waiting")) for _ in range(3)]
            await eventually(lambda: backend.stats().waiting == 3)
            for call in (running, *waiting[:2]):
                call.cancel()
            await asyncio.gather(running, *waiting[:2], return_exceptions=True)
            assert (backend.stats().running, backend.stats().waiting) == (0, 1)
            gate.open.set()
            assert len(await waiting[2]) == 1
            await eventually(lambda: backend.stats().finished == 4)
            assert gate.batches == [1, 1]  # nothing of the 49 other texts was computed

    run(main())


def test_abort_and_deadlines_end_calls(minilm_dir: Path, gate: Gate) -> None:
    async def main() -> None:
        async with opened(minilm_dir) as backend:
            first = asyncio.ensure_future(backend.embed("first", request_id="first"))
            await gate.in_step()
            aborted = asyncio.ensure_future(backend.embed(["a", "b"], request_id="x"))
            await eventually(lambda: backend.stats().waiting == 1)
            with pytest.raises(InvalidRequest, match="'x' is in use"):
                await backend.embed("again", request_id="x")
            await backend.abort("x")
            await backend.abort("unknown")
            with pytest.raises(RequestCancelled, match="request x was aborted") as caught:
                await aborted
            assert caught.value.by == "caller"
            for seconds in (-1.0, 0.05):
                with pytest.raises(RequestCancelled, match="missed its deadline") as caught:
                    await backend.embed_batch(["late"], options=RequestOptions(deadline=seconds))
                assert caught.value.by == "deadline"
            gate.open.set()
            assert len(await first) == 1
            assert len(await backend.embed("x", request_id="x", options=RequestOptions(deadline=60))) == 1
            assert sum(gate.batches) == 2  # nothing of what was ended was computed
            with pytest.raises(UnsupportedFeature, match=r"options.priority \(feature priority\)"):
                await backend.embed("x", options=RequestOptions(priority=1))
            with pytest.raises(InvalidRequest, match="request_id must be a non-empty string"):
                await backend.embed("x", request_id="")

    run(main())


def test_batch_size_limits_concurrent_texts(minilm_dir: Path, gate: Gate) -> None:
    async def main() -> None:
        async with opened(minilm_dir) as backend:
            gate.open.set()
            free = rows(await backend.embed(TEXTS))
            assert max(gate.batches) > 3
            gate.batches.clear()
            assert np.abs(rows(await backend.embed_batch(TEXTS, 3)) - free).max() < 1e-5
            assert max(gate.batches) == 3
            assert sum(gate.batches) == len(TEXTS)
            for wrong in (0, -1, True, "3"):
                with pytest.raises(InvalidRequest, match="batch_size must be a number of texts"):
                    await backend.embed_batch(TEXTS, wrong)  # type: ignore[arg-type]

    run(main())


def test_one_wrong_call_does_not_harm_those_beside_it(minilm_dir: Path, gate: Gate) -> None:
    async def main() -> None:
        async with opened(minilm_dir, max_sequence_length=16) as backend:
            assert backend.get_max_length() == backend.get_capability().max_sequence_length == 16
            first = asyncio.ensure_future(backend.embed("first"))
            await gate.in_step()
            with pytest.raises(
                InvalidRequest, match="input 1 has 32 tokens, but the limit of this model is 16"
            ):
                await backend.embed_batch(["fine", "word " * 30])
            with pytest.raises(InvalidRequest, match="input 1 has 1002 tokens"):  # tokenized in a thread
                await backend.embed_batch(["fine", "word " * 1000])
            with pytest.raises(InvalidRequest, match="token ids outside"):
                await backend.embed([10**6])
            right = asyncio.ensure_future(backend.embed("word " * 30, truncate="end"))
            await eventually(lambda: backend.stats().waiting == 1)
            gate.open.set()
            assert (await right).usage.prompt_tokens == 16
            assert len(await first) == 1

    run(main())


@pytest.mark.parametrize(
    ("texts", "truncate", "says"),
    [
        ("one string", "error", "pass it in a list"),
        (["fine", ""], "error", "text 1 is empty"),
        (["fine", []], "error", "text 1 is empty"),
        ([3], "error", "text 0 must be a string or a list of token ids, got int"),
        ([["a"]], "error", "text 0 must be a string or a list of token ids, got list"),
        (["fine", "caf\udce9"], "error", "a text is not valid Unicode"),
        (["fine"], "start", "truncate must be 'error' or 'end', got 'start'"),
    ],
)
def test_invalid_inputs_of_embed(minilm_dir: Path, texts: Any, truncate: Any, says: str) -> None:
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


def test_prompts_are_options(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "e5", **EMBEDDERS["xlm-roberta"])
    recorded = json.loads((DATA / "encoders.json").read_text(encoding="utf-8"))

    async def main() -> None:
        for options, kind in (({"prompt_name": "query"}, "prompted"), ({"prompt": ""}, "texts")):
            async with opened(folder, **options) as backend:
                result = await backend.embed_batch(TOY_TEXTS)
                assert np.abs(rows(result) - recorded[kind]["xlm-roberta"]).max() < 5e-6

    run(main())


# --- reranking


@asynccontextmanager
async def reranker(folder: Path, name: str = "bert", **more: Any) -> AsyncIterator[OpenVINOEmbeddingBackend]:
    path = write_encoder(folder / name, **RERANKERS[name])
    model = ModelDescriptor(model_id=name, model_type="reranker", model_path=str(path), **more)
    backend = OpenVINOEmbeddingBackend(model)
    try:
        await backend.start()
        yield backend
    finally:
        await backend.close()


@pytest.mark.parametrize("name", RERANKERS)
def test_rerank_orders_as_the_cross_encoder_scores(tmp_path: Path, name: str) -> None:
    scores = json.loads((DATA / "encoders.json").read_text(encoding="utf-8"))["scores"][name]
    order = sorted(range(len(DOCUMENTS)), key=lambda index: -scores[index])

    async def main() -> None:
        async with reranker(tmp_path, name) as backend:
            assert isinstance(backend, EmbeddingBackend)
            assert backend.get_capability().features == ("rerank", "deadline", "reports", "tokenize")
            result = await backend.rerank(QUERY, DOCUMENTS)
            assert [hit.index for hit in result.hits] == order
            for hit in result.hits:
                assert hit.score == pytest.approx(scores[hit.index], abs=5e-6)
            assert result.usage.prompt_tokens > 30
            assert [hit.index for hit in (await backend.rerank(QUERY, DOCUMENTS, top_n=2)).hits] == order[:2]
            late = RequestOptions(deadline=0.0)
            with pytest.raises(RequestCancelled, match="request r missed its deadline"):
                await backend.rerank(QUERY, DOCUMENTS, request_id="r", options=late)
            with pytest.raises(InvalidRequest, match="not valid Unicode"):
                await backend.rerank("caf\udce9", DOCUMENTS)
            with pytest.raises(UnsupportedFeature, match="feature tenant"):
                await backend.rerank(QUERY, DOCUMENTS, options=RequestOptions(tenant="t"))
            assert len((await backend.rerank(QUERY, DOCUMENTS, top_n=99)).hits) == len(DOCUMENTS)
            assert (await backend.rerank(QUERY, [])).hits == ()

    run(main())


def test_pairs_are_cut_at_the_models_limit(tmp_path: Path) -> None:
    async def main() -> None:
        async with reranker(tmp_path, max_pair_length=12, max_sequence_length=20) as backend:
            assert backend.get_max_length() == backend.get_capability().max_sequence_length == 12
            result = await backend.rerank(QUERY, ["rain " * 50])
            assert result.usage.prompt_tokens == 12

    run(main())


@pytest.mark.parametrize(
    ("query", "documents", "top_n", "says"),
    [
        ("", ["a"], None, "query must be a text of at least one character"),
        ("q", "one string", None, "documents must be a list"),
        ("q", ["a", ""], None, "document 1 is empty"),
        ("q", ["a", 3], None, "document 1 must be a string, got int"),
        ("q", ["a"], 0, "top_n must be a number of hits, at least 1"),
        ("q", ["a"], True, "top_n must be"),
    ],
)
def test_invalid_inputs_of_rerank(tmp_path: Path, query: Any, documents: Any, top_n: Any, says: str) -> None:
    async def main() -> None:
        async with reranker(tmp_path) as backend:
            with pytest.raises(InvalidRequest, match=says):
                await backend.rerank(query, documents, top_n=top_n)

    run(main())


def test_a_reranker_has_no_vectors_and_no_prompt(tmp_path: Path) -> None:
    async def main() -> None:
        async with reranker(tmp_path) as backend:
            with pytest.raises(
                UnsupportedFeature, match="is a reranker; embedding requires an embedding model"
            ):
                await backend.embed("x")
            with pytest.raises(UnsupportedFeature, match="is a reranker"):
                backend.get_embedding_dim()
            with pytest.raises(InvalidRequest, match="a reranker has no prompt"):
                OpenVINOEmbeddingBackend(backend.model, prompt="query: ")

    run(main())


# --- next to generation


@pytest.mark.long
def test_concurrent_embeddings_and_generation(minilm_dir: Path, smollm2_gguf: Path, cache_dir: Path) -> None:
    """Both compute at the same time in one process, and each gives what it gives alone."""
    prompt = [1, *range(1000, 1030)]

    async def generate(backend: OpenVINOBackend) -> list[int]:
        (stream,) = await backend.generate(prompt, greedy(24))
        return await tokens(stream)

    async def main() -> None:
        llm = OpenVINOBackend(
            descriptor(smollm2_gguf, "smollm2"),
            cache_dir=str(cache_dir),
            kv_cache_gb=0.1,
            prefix_caching=False,
        )
        await llm.start()
        try:
            async with opened(minilm_dir) as encoder:
                alone = await generate(llm)
                vectors = rows(await encoder.embed_batch(TEXTS))
                generation = asyncio.gather(*[generate(llm) for _ in range(3)])
                rounds = 0
                while not generation.done():
                    assert np.abs(rows(await encoder.embed_batch(TEXTS)) - vectors).max() < 1e-5
                    rounds += 1
                assert rounds > 1
                assert await generation == [alone] * 3
        finally:
            await llm.close()

    run(main())


def test_reports_and_progress_of_an_encoder(minilm_dir: Path, gate: Gate) -> None:
    async def main() -> None:
        backend = OpenVINOEmbeddingBackend(descriptor(minilm_dir, "minilm"), token_budget=64)
        stages: list[str] = []
        backend.on_progress(lambda stage, share: stages.append(stage))
        try:
            await backend.start()
            assert stages == ["reading", "compiling"]
            identity = backend.describe()
            assert (identity.model_ids, identity.key_space) == (("minilm",), None)
            running = asyncio.ensure_future(backend.embed([[101] * 40, [101] * 20]))
            await gate.in_step()  # with the longer one
            waiting = asyncio.ensure_future(backend.embed([[101] * 7]))
            await eventually(lambda: backend.stats().waiting == 1)
            report = backend.report()
            assert (report.running, report.waiting, report.waiting_prompt_tokens) == (1, 1, 27)
            assert report.oldest_wait_s > 0
            gate.open.set()
            await asyncio.gather(running, waiting)
            done = backend.report()
            assert (done.waiting_prompt_tokens, done.oldest_wait_s, done.prompt_tokens) == (0, 0, 67)
            assert done.steps == len(gate.batches)
            assert done.step_s is not None
        finally:
            await backend.close()
        assert backend.report().state == "dead"

    run(main())


def test_tokens_are_those_that_are_embedded(minilm_dir: Path) -> None:
    async def main() -> None:
        async with opened(minilm_dir, prompt="query: ") as backend:
            assert "tokenize" in backend.get_capability().features
            text = "A Cat sits."
            ids = await backend.tokenize(text)
            assert (await backend.embed(text)).usage.prompt_tokens == len(ids)
            assert (await backend.embed([ids])).data == (await backend.embed(text)).data
            assert await backend.detokenize(ids) == "[CLS] query : a cat sits. [SEP]"
            assert await backend.tokenize(ids) == ids
            own = await backend.tokenize(Prompt(text=text, add_special_tokens=False))
            assert await backend.detokenize(own) == "a cat sits."
            assert len(await backend.tokenize("word " * 5000)) == 5004  # over the limit, to see by how much
            with pytest.raises(InvalidRequest, match="characters, but the limit of this model is"):
                await backend.tokenize("word " * 100_000)
            with pytest.raises(InvalidRequest, match="not valid Unicode"):
                await backend.tokenize("caf\udce9")
            for wrong in ([-1], [30522]):
                with pytest.raises(InvalidRequest, match="outside 0 to 30521"):
                    await backend.detokenize(wrong)

    run(main())

"""Embedding and reranking on a real vLLM, compared with the same weights in transformers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sage_infer.errors import EngineDead, InvalidRequest, RequestCancelled, UnsupportedFeature
from sage_infer.schemas import ModelDescriptor, RequestOptions
from sage_infer_testing.loop import LoopThread
from sage_infer_testing.waiting import eventually
from sage_infer_vllm.embedding_backend import VLLMEmbeddingBackend
from vllm_toys import have_vllm

pytestmark = pytest.mark.skipif(
    not have_vllm(), reason="vLLM is not installed in this environment; `hatch run vllm:test` has it"
)

TEXTS = ["A cat sleeps.", "Interest rates rose in March, and nobody knows why.", "yes"]
OPTIONS: dict[str, Any] = {"dtype": "float32", "eager": True, "max_batch_size": 8}


@pytest.fixture
def loop() -> Any:
    thread = LoopThread("vllm-pooling")
    yield lambda coroutine: thread.run(coroutine, timeout_s=300)
    thread.close()


def test_vectors_are_those_of_the_model(loop: Any, minilm: ModelDescriptor, live: Any) -> None:
    live.stop()  # one engine at a time

    async def main() -> list[list[float]]:
        backend = VLLMEmbeddingBackend(minilm, **OPTIONS)
        await backend.start()
        try:
            capability = backend.get_capability()
            assert capability.backend_name == "vllm-embedding"
            assert set(capability.features) == {"embed", "priority", "deadline", "reports"}
            assert (backend.get_embedding_dim(), backend.get_max_length()) == (
                384,
                capability.max_sequence_length,
            )
            result = await backend.embed_batch(TEXTS)
            assert len(await backend.embed_batch([])) == 0
            assert len(await backend.embed("word " * 400, truncate="end")) == 1
            with pytest.raises(InvalidRequest, match="text 1 has 402 tokens"):
                await backend.embed_batch(["a", "word " * 400])
            with pytest.raises(UnsupportedFeature, match="reranking requires a cross-encoder"):
                await backend.rerank("a", ["b"])
            with pytest.raises(UnsupportedFeature, match=r"does not support options\.tenant"):
                await backend.embed("a", options=RequestOptions(tenant="t"))
            counted = await backend.embed(["a", "b c"], options=RequestOptions(priority=-1))
            assert counted.text_tokens == (3, 4)
            stats = backend.stats()
            assert (stats.running, stats.waiting, stats.finished) == (0, 0, 6)
            return result.vectors
        finally:
            await backend.close()
            with pytest.raises(EngineDead):
                await backend.embed("a")

    vectors = loop(main())
    for vector, expected in zip(vectors, reference_vectors(Path(minilm.model_path)), strict=True):
        assert sum(a * b for a, b in zip(vector, expected, strict=True)) > 0.9999


def reference_vectors(folder: Path) -> list[list[float]]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModel.from_pretrained(folder, dtype=torch.float32),
    )
    encoded = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**encoded).last_hidden_state
    mask = encoded["attention_mask"].unsqueeze(-1)
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    found: list[list[float]] = torch.nn.functional.normalize(pooled, dim=1).tolist()
    return found


@pytest.mark.vllm_newest
def test_scores_are_those_of_the_cross_encoder(
    loop: Any, minilm: ModelDescriptor, live: Any, tmp_path: Path
) -> None:
    """A cross-encoder with random weights: the order means nothing, the numbers must be the same."""
    live.stop()
    query, documents = "what is a cat", ["a cat is an animal", "rates rose", "cats and dogs"]
    expected = write_cross_encoder(tmp_path / "model", Path(minilm.model_path), query, documents)
    model = ModelDescriptor(model_id="cross", model_type="reranker", model_path=str(tmp_path / "model"))

    async def main() -> None:
        backend = VLLMEmbeddingBackend(model, **OPTIONS)
        await backend.start()
        try:
            assert "rerank" in backend.get_capability().features
            result = await backend.rerank(query, documents)
            assert [hit.index for hit in result.hits] == sorted(range(3), key=lambda i: -expected[i])
            for hit in result.hits:
                assert hit.score == pytest.approx(expected[hit.index], abs=1e-5)
            assert len((await backend.rerank(query, documents, top_n=1)).hits) == 1
            with pytest.raises(InvalidRequest, match="top_n must be ≥ 1"):
                await backend.rerank(query, documents, top_n=0)
            with pytest.raises(UnsupportedFeature, match="is a reranker and has no embeddings"):
                await backend.embed("a")
            aborted = asyncio.ensure_future(backend.rerank(query, documents * 50, request_id="r"))
            await eventually(
                lambda: backend.stats().waiting_prompt_tokens > 0, "the call does not begin", within_s=300
            )
            await backend.abort("r")
            with pytest.raises(RequestCancelled, match="r was aborted"):
                await aborted
            assert len(backend._running.requests) == 0
            with pytest.raises(RequestCancelled) as late:
                await backend.rerank(query, documents * 50, options=RequestOptions(deadline=0.001))
            assert late.value.by == "deadline"
            closing = asyncio.ensure_future(backend.rerank(query, documents * 50))
            await asyncio.sleep(0)
        finally:
            await backend.close()
        with pytest.raises(RequestCancelled, match="closed") as caught:
            await closing
        assert caught.value.by == "close"

    loop(main())


def write_cross_encoder(
    folder: Path, tokenizer_folder: Path, query: str, documents: list[str]
) -> list[float]:
    """A small BERT with one score, and its scores of the pairs."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    torch.manual_seed(3)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        num_labels=1, initializer_range=0.5,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    encoded = tokenizer([query] * len(documents), documents, padding=True, return_tensors="pt")
    with torch.no_grad():
        found: list[float] = torch.sigmoid(model(**encoded).logits).flatten().tolist()
    return found

"""The contract's face of vLLM's pooling runner: sentence encoders and cross-encoders."""

from __future__ import annotations

import array
import asyncio
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sage_infer.contracts import Truncation, check_texts
from sage_infer.errors import InvalidRequest, RequestCancelled, SageInferError, UnsupportedFeature
from sage_infer.schemas import EmbeddingResult, ModelDescriptor, RerankHit, RerankResult, Usage

from sage_infer_vllm.base import BaseVLLMBackend
from sage_infer_vllm.engine.running import Running
from sage_infer_vllm.requests.texts import TokenizedText, tokenize_pairs, tokenize_texts
from sage_infer_vllm.settings import VLLMSettings

if TYPE_CHECKING:
    from sage_infer_vllm.engine.engine import VLLMEngine

__all__ = ["VLLMEmbeddingBackend"]


class VLLMEmbeddingBackend(BaseVLLMBackend):
    """``EmbeddingBackend`` on vLLM. See ``sage infer backend show vllm-embedding`` for the options."""

    runner: ClassVar[Literal["generate", "pooling"]] = "pooling"

    def __init__(
        self,
        model: ModelDescriptor,
        *,
        dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto",
        memory_fraction: float | None = None,
        max_batch_size: int | None = None,
        max_sequence_length: int | None = None,
        max_queue: int = 1024,
        tensor_parallel: int = 1,
        eager: bool = False,
        engine_options: Mapping[str, Any] | None = None,
    ) -> None:
        settings = VLLMSettings(
            dtype=dtype, memory_fraction=memory_fraction, max_batch_size=max_batch_size,
            max_sequence_length=max_sequence_length, max_queue=max_queue, tensor_parallel=tensor_parallel,
            eager=eager, engine_options=engine_options or {},
        )  # fmt: skip
        super().__init__(model, settings, None)
        self._slots = asyncio.Semaphore(max_queue)

    @property
    def name(self) -> str:
        return f"{self.platform.backend_name}-embedding"

    def served_features(self, engine: VLLMEngine) -> Sequence[str]:
        return [name for name, task in (("embed", "embed"), ("rerank", "classify")) if task in engine.tasks]

    # --- what the model is

    def get_embedding_dim(self) -> int:
        return int(self._ready().engine.config.model_config.embedding_size)

    def get_max_length(self) -> int:
        return self._ready().max_sequence_length

    # --- embedding

    async def embed(self, text: str | Sequence[int], *, truncate: Truncation = "error") -> EmbeddingResult:
        return await self.embed_batch([text], truncate=truncate)

    async def embed_batch(
        self, texts: Sequence[str | Sequence[int]], *, truncate: Truncation = "error"
    ) -> EmbeddingResult:
        running = await self._available()
        if not running.capability.supports("embed"):
            raise UnsupportedFeature(f"model {self.model.model_id!r} gives no embeddings; it is a reranker")
        check_texts(texts, truncate)
        tokenized = await asyncio.to_thread(
            tokenize_texts, running.tokenizer, texts, limit=running.max_sequence_length, cut=truncate == "end",
            vocab_size=running.vocab_size,
        )  # fmt: skip
        vectors = await self._run(running, "embed", tokenized)
        data = array.array("f")
        for vector in vectors:
            data.frombytes(vector.float().contiguous().numpy().tobytes())
        return EmbeddingResult(
            model_id=self.model.model_id,
            dim=self.get_embedding_dim(),
            data=memoryview(data),
            usage=Usage(prompt_tokens=sum(len(text.token_ids) for text in tokenized)),
        )

    async def rerank(self, query: str, documents: Sequence[str], *, top_n: int | None = None) -> RerankResult:
        running = await self._available()
        if not running.capability.supports("rerank"):
            raise UnsupportedFeature(
                f"model {self.model.model_id!r} is an embedding model; reranking needs a cross-encoder"
            )
        if top_n is not None and top_n < 1:
            raise InvalidRequest(f"top_n must be ≥ 1, got {top_n}")
        check_texts([query, *documents], "error")
        pairs = await asyncio.to_thread(
            tokenize_pairs, running.tokenizer, query, documents, limit=running.max_sequence_length
        )
        scores = [float(score.flatten()[0]) for score in await self._run(running, "classify", pairs)]
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        return RerankResult(
            model_id=self.model.model_id,
            hits=tuple(RerankHit(index=index, score=scores[index]) for index in order[:top_n]),
            usage=Usage(prompt_tokens=sum(len(pair.token_ids) for pair in pairs)),
        )

    # --- the engine

    async def _run(self, running: Running, task: str, texts: Sequence[TokenizedText]) -> list[Any]:
        """The pooler's output for each text, in their order; the first error ends the others."""
        tasks = [asyncio.ensure_future(self._pool(running, task, text)) for text in texts]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for unfinished in tasks:
                unfinished.cancel()

    async def _pool(self, running: Running, task: str, text: TokenizedText) -> Any:
        compat, request_id = running.compat, f"pool-{uuid.uuid4().hex}"
        params = compat.PoolingParams(task=task)
        if text.second_from is not None:
            params.extra_kwargs = {"compressed_token_type_ids": text.second_from}
        async with self._slots:
            with running.requests.pooled(request_id):
                try:
                    async for output in running.engine.llm.encode(
                        compat.tokens_input(text.token_ids), params, request_id
                    ):
                        if output.finished:
                            return output.outputs.data
                except asyncio.CancelledError:
                    if self._closed:
                        raise RequestCancelled("the request ended as the backend was closed") from None
                    if running.stopped:
                        raise running.dead() from None
                    raise
                except compat.EngineDeadError as error:
                    raise running.dead() from error
                except (compat.VLLMClientError, ValueError) as error:
                    raise InvalidRequest(f"vLLM refuses the text: {str(error).splitlines()[0]}") from error
        raise SageInferError("vLLM ended the request without a result; send it again")

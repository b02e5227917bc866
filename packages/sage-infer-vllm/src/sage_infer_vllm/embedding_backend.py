"""The backend for vLLM's pooling runner: sentence encoders and cross-encoders."""

from __future__ import annotations

import array
import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sage_infer.contracts import TextLike, Truncation, as_texts, check_texts
from sage_infer.errors import InvalidRequest, SageInferError, UnsupportedFeature
from sage_infer.schemas import (
    EmbeddingResult,
    ModelDescriptor,
    RequestOptions,
    RerankHit,
    RerankResult,
    Usage,
)
from sage_infer.sdk.claims import check_claims

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

    @property
    def name(self) -> str:
        return f"{self.platform.backend_name}-embedding"

    def served_features(self, engine: VLLMEngine) -> Sequence[str]:
        tasks = [name for name, task in (("embed", "embed"), ("rerank", "classify")) if task in engine.tasks]
        return [*tasks, "priority", "deadline", "reports"]

    # --- the model

    def get_embedding_dim(self) -> int:
        return int(self._ready().engine.config.model_config.embedding_size)

    def get_max_length(self) -> int:
        return self._ready().max_sequence_length

    # --- embedding

    async def embed(
        self,
        texts: TextLike | Sequence[TextLike],
        *,
        truncate: Truncation = "error",
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> EmbeddingResult:
        return await self._embed(as_texts(texts), self._settings.max_queue, truncate, request_id, options)

    async def embed_batch(
        self,
        texts: Sequence[TextLike],
        batch_size: int = 32,
        *,
        truncate: Truncation = "error",
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> EmbeddingResult:
        if batch_size < 1:
            raise InvalidRequest(f"batch_size must be ≥ 1, got {batch_size}")
        return await self._embed(texts, batch_size, truncate, request_id, options)

    async def _embed(
        self,
        texts: Sequence[TextLike],
        batch_size: int,
        truncate: Truncation,
        request_id: str | None,
        options: RequestOptions | None,
    ) -> EmbeddingResult:
        running, options = await self._available(), options or RequestOptions()
        if not running.capability.supports("embed"):
            raise UnsupportedFeature(f"model {self.model.model_id!r} is a reranker and has no embeddings")
        check_claims(running.capability.features, backend=self.name, options=options)
        check_texts(texts, truncate)

        def tokenized() -> list[TokenizedText]:
            return tokenize_texts(
                running.tokenizer, texts, limit=running.max_sequence_length, cut=truncate == "end",
                vocab_size=running.vocab_size,
            )  # fmt: skip

        vectors, tokens = await self._run(
            running, "embed", tokenized, len(texts), batch_size, request_id, options
        )
        data = array.array("f")
        for vector in vectors:
            data.frombytes(vector.float().contiguous().numpy().tobytes())
        return EmbeddingResult(
            model_id=self.model.model_id,
            dim=self.get_embedding_dim(),
            data=memoryview(data),
            usage=Usage(prompt_tokens=sum(tokens)),
            text_tokens=tuple(tokens),
        )

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> RerankResult:
        running, options = await self._available(), options or RequestOptions()
        if not running.capability.supports("rerank"):
            raise UnsupportedFeature(
                f"model {self.model.model_id!r} is an embedding model; reranking requires a cross-encoder"
            )
        check_claims(running.capability.features, backend=self.name, options=options)
        if top_n is not None and top_n < 1:
            raise InvalidRequest(f"top_n must be ≥ 1, got {top_n}")
        check_texts([query, *documents], "error")

        def tokenized() -> list[TokenizedText]:
            return tokenize_pairs(running.tokenizer, query, documents, limit=running.max_sequence_length)

        found, tokens = await self._run(
            running, "classify", tokenized, len(documents), self._settings.max_queue, request_id, options
        )
        scores = [float(score.flatten()[0]) for score in found]
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        return RerankResult(
            model_id=self.model.model_id,
            hits=tuple(RerankHit(index=index, score=scores[index]) for index in order[:top_n]),
            usage=Usage(prompt_tokens=sum(tokens)),
        )

    # --- the engine

    async def _run(
        self,
        running: Running,
        task: str,
        tokenized: Callable[[], list[TokenizedText]],
        count: int,
        batch_size: int,
        request_id: str | None,
        options: RequestOptions,
    ) -> tuple[list[Any], list[int]]:
        """The pooler's output and the number of tokens of each text, in order."""
        call_id = f"pool-{uuid.uuid4().hex}" if request_id is None else request_id
        with running.requests.call(call_id, texts=count, deadline=options.deadline) as call:
            texts = await asyncio.to_thread(tokenized)

            async def compute(index: int, text: TokenizedText) -> Any:
                return await self._pool(running, task, text, f"{call_id}/{index}", options)

            found = await call.run(
                texts, lambda text: len(text.token_ids), compute,
                concurrency=min(batch_size, self._settings.max_queue),
            )  # fmt: skip
            return found, [len(text.token_ids) for text in texts]

    async def _pool(
        self, running: Running, task: str, text: TokenizedText, request_id: str, options: RequestOptions
    ) -> Any:
        compat = running.compat
        params = compat.PoolingParams(task=task)
        if text.second_from is not None:
            params.extra_kwargs = {"compressed_token_type_ids": text.second_from}
        outputs = running.engine.llm.encode(
            compat.tokens_input(text.token_ids),
            params,
            request_id,
            trace_headers=options.trace or None,
            priority=options.priority,
        )
        try:
            async for output in outputs:
                if output.finished:
                    return output.outputs.data
        except compat.EngineDeadError as error:
            raise running.dead() from error
        except (compat.VLLMClientError, ValueError) as error:
            raise InvalidRequest(f"vLLM rejects the text: {str(error).splitlines()[0]}") from error
        raise SageInferError("vLLM ended the request without a result; retry it")

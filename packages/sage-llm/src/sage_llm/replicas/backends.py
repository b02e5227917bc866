"""Backends behind frames: text generation and embedding."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from sage_infer.contracts import (
    AnswerFormat,
    ChatAnswer,
    ChatMessage,
    DecodeResult,
    KVEvents,
    KVSnapshot,
    PrefillResult,
    PromptLike,
    TextLike,
    TokenStream,
    Truncation,
    as_prompts,
    as_texts,
    check_texts,
    request_ids,
)
from sage_infer.errors import InvalidRequest, RequestCancelled, UnsupportedFeature
from sage_infer.schemas import (
    DecodeState,
    EmbeddingResult,
    KVCacheSchema,
    Prompt,
    QuantizationProfile,
    RequestOptions,
    RerankResult,
    SamplingParams,
    TransportSettings,
)

from sage_llm.replicas import calls
from sage_llm.replicas.client import ReplicaClient

__all__ = ["EmbeddingReplica", "InferenceReplica"]


class InferenceReplica(ReplicaClient):
    """An ``InferenceBackend`` in another process, with the additional methods of the features that it claims."""

    kind = "inference"

    async def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> list[TokenStream]:
        several = tuple(as_prompts(prompts))
        self.check(params=params, options=options, prompts=several)
        name = uuid.uuid4().hex if request_id is None else _checked(request_id)
        arguments = calls.Generate(several, calls.packed_params(params), name, options)
        return list(await self.open_streams("generate", arguments, request_ids(name, len(several))))

    async def resume(
        self, states: Sequence[DecodeState], *, request_id: str, options: RequestOptions | None = None
    ) -> TokenStream:
        self.require("resume")
        self.check(params=states[0].params if states else None, options=options)
        arguments = calls.Resume(tuple(states), _checked(request_id), options)
        (stream,) = await self.open_streams("resume", arguments, [request_id])
        return stream

    async def prefill(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        *,
        request_id: str,
        params: SamplingParams | None = None,
        options: RequestOptions | None = None,
        hold_s: float | None = None,
    ) -> PrefillResult:
        self.require("prefill_decode")
        several = tuple(as_prompts(prompts))
        self.check(params=params, options=options, prompts=several)
        data = None if params is None else calls.packed_params(params)
        arguments = calls.Prefill(several, _checked(request_id), data, options, hold_s)
        result: PrefillResult = await self.call("prefill", arguments, PrefillResult)
        return result

    async def decode(
        self, state: DecodeState, *, request_id: str, options: RequestOptions | None = None
    ) -> DecodeResult:
        self.require("prefill_decode")
        self.check(params=state.params, options=options)
        arguments = calls.Decode(state, _checked(request_id), options)
        (stream,) = await self.open_streams("decode", arguments, [request_id])
        return DecodeResult(stream=stream)

    async def export_kv(self, state: DecodeState) -> tuple[DecodeState, list[memoryview]]:
        self.require("kv_export")
        found: calls.Exported = await self.call("export_kv", calls.State(state), calls.Exported)
        return found.state, [memoryview(buffer) for buffer in found.buffers]

    async def import_kv(self, state: DecodeState, buffers: Sequence[memoryview]) -> DecodeState:
        self.require("kv_import")
        arguments = calls.ImportKV(state, tuple(map(bytes, buffers)))
        result: DecodeState = await self.call("import_kv", arguments, DecodeState)
        return result

    async def prefetch_kv(self, token_ids: Sequence[int], *, cache_salt: str = "") -> int:
        arguments = calls.PrefetchKV(tuple(token_ids), cache_salt)
        result: int = await self.call("prefetch_kv", arguments, int)
        return result

    async def publish_kv(self, state: DecodeState, *, transport: str) -> DecodeState:
        """Publish the KV of a held prefill for other replicas; returns the state with its locations."""
        self.require("kv_export")
        result: DecodeState = await self.call("publish_kv", calls.PublishKV(state, transport), DecodeState)
        return result

    async def fetch_kv(
        self, state: DecodeState, *, transport: str, settings: TransportSettings
    ) -> tuple[DecodeState, int]:
        """Import the KV of a state that another replica has published; also returns the bytes moved."""
        self.require("kv_import")
        found: calls.Fetched = await self.call(
            "fetch_kv", calls.FetchKV(state, transport, settings), calls.Fetched
        )
        return found.state, found.nbytes

    async def release_kv(self, request_id: str) -> None:
        """End a request on the replica that has prefilled it: held KV, and what of it is published."""
        await self.call("release_kv", calls.Abort(request_id), None)

    async def kv_snapshot(self) -> KVSnapshot:
        self.require("kv_events")
        result: KVSnapshot = await self.call("kv_snapshot", calls.Nothing(), KVSnapshot)
        return result

    async def kv_events(self, since: int) -> AsyncIterator[KVEvents]:
        self.require("kv_events")
        try:
            slot, stream = await self.open_kv(since)
        except RequestCancelled:
            return  # closed meanwhile
        try:
            while (events := await stream.get()) is not None:
                yield events
                self.grant_kv(slot)
        finally:
            self.leave_kv(slot)

    async def render_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        arguments = calls.RenderChat(
            [dict(message) for message in messages],
            _dicts(tools),
            None if template_variables is None else dict(template_variables),
            add_generation_prompt,
        )
        result: Prompt = await self.call("render_chat", arguments, Prompt)
        return result

    async def parse_tool_calls(
        self, text: str, *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> ChatAnswer:
        self.require("tool_calls")
        result: ChatAnswer = await self.call(
            "parse_tool_calls", calls.ParseToolCalls(text, _dicts(tools)), ChatAnswer
        )
        return result

    async def answer_format(self) -> AnswerFormat | None:
        """Return the format; None if the replica's backend does not know it, or has a format of its own."""
        try:
            found = await self.call("answer_format", calls.Nothing(), calls.FormatData | None)
        except UnsupportedFeature:
            return None
        return calls.format_of(found)

    def get_kv_schema(self) -> KVCacheSchema:
        schema = self.get_capability().kv_schema
        if schema is None:
            raise UnsupportedFeature(
                f"{self.get_capability().backend_name} has no KV cache that a schema can describe"
            )
        return schema

    def load_quant_profile(self, profile: QuantizationProfile) -> None:
        raise UnsupportedFeature("a replica is quantized before its start; set it in the replica's options")


class EmbeddingReplica(ReplicaClient):
    """An ``EmbeddingBackend`` in another process."""

    kind = "embedding"

    async def embed(
        self,
        texts: TextLike | Sequence[TextLike],
        *,
        truncate: Truncation = "error",
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> EmbeddingResult:
        return await self._embed("embed", as_texts(texts), None, truncate, request_id, options)

    async def embed_batch(
        self,
        texts: Sequence[TextLike],
        batch_size: int = 32,
        *,
        truncate: Truncation = "error",
        request_id: str | None = None,
        options: RequestOptions | None = None,
    ) -> EmbeddingResult:
        return await self._embed("embed_batch", texts, batch_size, truncate, request_id, options)

    async def _embed(
        self,
        method: str,
        texts: Sequence[TextLike],
        batch_size: int | None,
        truncate: Truncation,
        request_id: str | None,
        options: RequestOptions | None,
    ) -> EmbeddingResult:
        self.check(options=options)
        check_texts(texts, truncate)
        several = tuple(text if isinstance(text, str) else tuple(text) for text in texts)
        arguments = calls.Embed(several, batch_size, truncate, request_id, options)
        found: calls.Embedded = await self.call(method, arguments, calls.Embedded)
        return EmbeddingResult(
            model_id=found.model_id,
            dim=found.dim,
            data=memoryview(found.data),
            usage=found.usage,
            text_tokens=found.text_tokens,
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
        self.check(options=options)
        arguments = calls.Rerank(query, tuple(documents), top_n, request_id, options)
        result: RerankResult = await self.call("rerank", arguments, RerankResult)
        return result

    def get_embedding_dim(self) -> int:
        dim = self.hello().embedding_dim
        if dim is None:
            raise UnsupportedFeature(f"{self.get_capability().backend_name} has no vectors; it is a reranker")
        return dim

    def get_max_length(self) -> int:
        length = self.hello().max_length
        assert length is not None
        return length


def _checked(request_id: object) -> str:
    if not isinstance(request_id, str) or not request_id:
        raise InvalidRequest(f"request_id must be a non-empty string, got {request_id!r}")
    return request_id


def _dicts(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    return None if tools is None else [dict(tool) for tool in tools]
